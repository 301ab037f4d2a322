"""Running statistics of several domains, for layers that share their parameters."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from bnext.arguments import values_of
from bnext.inference.layers import checked_layers
from bnext.layers import BatchNorm
from bnext.layers.state import StateDict
from bnext.running import Running, check_tracked
from bnext.writes import Writes

__all__ = ["Domains", "Switch"]

Statistics = TypeVar("Statistics")  # of one layer
NAMES = ("running_mean", "running_var", "num_batches_tracked")


class Switch(abc.ABC, Generic[Statistics]):
    """Which domain's statistics layers have. Subclasses know the layers."""

    def __init__(self, names: Iterable[str], places: list[str]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        for name in self.names:
            if not isinstance(name, str):
                raise TypeError(f"names: expected strings, got {type(name).__name__}")
        if isinstance(names, str) or not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"names: expected a name or more, each once, got {self.names}")
        self._places = places
        self._current = self.names[0]
        now = self._now()
        self._kept = {name: [self._copied(each) for each in now] for name in self.names}
        self._kept[self._current] = now

    @abc.abstractmethod
    def _now(self) -> list[Statistics]:
        """Give the statistics that the layers have."""

    @abc.abstractmethod
    def _give(self, statistics: list[Statistics]) -> None:
        """Give statistics to the layers."""

    @abc.abstractmethod
    def _copied(self, statistics: Statistics) -> Statistics:
        """Copy the statistics of one layer."""

    @abc.abstractmethod
    def _arrays(self, statistics: Statistics) -> dict[str, Any]:
        """Give arrays by the layer's names for them."""

    @abc.abstractmethod
    def _write(self, found: list[tuple[str, Any, Any]]) -> None:
        """Write values to arrays, given as names, arrays and values."""

    @property
    def current(self) -> str:
        """The domain whose statistics the layers use and move; may be set."""
        return self._current

    @current.setter
    def current(self, name: str) -> None:
        self._check(name)
        self._kept[self._current] = self._now()  # which may have been moved elsewhere
        self._give(self._kept[name])
        self._kept[name] = self._now()
        self._current = name

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Make a domain the current one within a ``with`` block.

        Parameters
        ----------
        name : str
            The domain.

        Raises
        ------
        ValueError
            There is no domain of this name.
        """
        before = self._current
        self.current = name
        try:
            yield
        finally:
            self.current = before

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(f"domain: expected one of {', '.join(self.names)}, got {name!r}")

    def _everything(self) -> dict[str, Any]:
        """Give the arrays of all domains, by ``domain.layer.name``."""
        self._kept[self._current] = self._now()
        return {
            f"{domain}.{place}.{name}": array
            for domain in self.names
            for place, statistics in zip(self._places, self._kept[domain], strict=True)
            for name, array in self._arrays(statistics).items()
        }

    def _chosen(self, state: Mapping[str, Any], strict: bool) -> list[tuple[str, Any, Any]]:
        """Match a state with the arrays: names, arrays, values."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state_dict: expected a mapping, got {type(state).__name__}")
        arrays = self._everything()
        missing = [name for name in arrays if name not in state]
        unexpected = [name for name in state if name not in arrays]
        if strict and (missing or unexpected):
            raise RuntimeError(
                f"state_dict: expected the names of {self}, got none for {missing}, and besides "
                f"{unexpected}"
            )
        found = [(name, array, state[name]) for name, array in arrays.items() if name in state]
        for name, array, value in found:
            if tuple(np.shape(value)) != tuple(array.shape):
                raise RuntimeError(
                    f"{name}: expected shape {tuple(array.shape)}, got {tuple(np.shape(value))}"
                )
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy the statistics of all domains into the arrays that there are.

        Parameters
        ----------
        state_dict : mapping of str to array or tensor
            As `state_dict` gives it.
        strict : bool
            Whether missing and unexpected names are errors.

        Raises
        ------
        RuntimeError
            A name is missing or unexpected, or a shape is another. Nothing was changed then.
        TypeError
            `state_dict` is not a mapping, or a value not what the layers have.
        """
        self._write(self._chosen(state_dict, strict))

    def __repr__(self) -> str:
        """Name the domains, and how many layers there are."""
        names = ", ".join(self.names)
        return (
            f"{type(self).__name__}({names}; {len(self._places)} layers; current: {self.current})"
        )


class Domains(Switch[Running]):
    """Running statistics of several domains for the layers of a network, which share parameters.

    Statistics differ between domains where parameters may serve all of them (Li et al. 2016,
    "Revisiting Batch Normalization for Practical Domain Adaptation"; Chang et al. 2019,
    "Domain-Specific Batch Normalization"). Each domain begins with the statistics that the layers
    have, counters included; the layers then use and move the current one's.

    Parameters
    ----------
    layers : iterable of BatchNorm
        The layers, each once, with running statistics.
    names : iterable of str
        The domains. The first is the current one, and has the layers' own arrays.

    Attributes
    ----------
    names : tuple of str
        The domains.
    layers : list of BatchNorm
        The layers. Their parameters, estimators and modes are the same in every domain.

    Raises
    ------
    ValueError
        There is no layer or no name, one is given twice, or a layer has no running statistics.
    TypeError
        An argument is of a wrong type.

    Examples
    --------
    >>> domains = bnext.Domains(layers, ["photo", "sketch"])           # doctest: +SKIP
    >>> with domains("sketch"):                                        # doctest: +SKIP
    ...     network(x)
    """

    def __init__(self, layers: Iterable[BatchNorm], names: Iterable[str]) -> None:
        self.layers: list[BatchNorm] = checked_layers(layers)
        for place, layer in enumerate(self.layers):
            check_tracked(layer, f"layers[{place}]")
        super().__init__(names, [str(place) for place in range(len(self.layers))])

    def _now(self) -> list[Running]:
        return [layer.running for layer in self.layers]

    def _give(self, statistics: list[Running]) -> None:
        for layer, running in zip(self.layers, statistics, strict=True):
            before = layer.running
            running.estimator, running.skips = before.estimator, before.skips
            layer.running = running

    def _copied(self, statistics: Running) -> Running:
        return copy.deepcopy(statistics)

    def _arrays(self, statistics: Running) -> dict[str, Any]:
        found = zip(NAMES, (statistics.mean, statistics.var, statistics.counter), strict=True)
        return {name: array for name, array in found if array is not None}

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the statistics of all domains.

        Returns
        -------
        StateDict
            Arrays by ``domain.layer.name``, where `layer` is a place in `layers`.
        """
        return StateDict((name, np.array(values_of(array, name)))
                         for name, array in self._everything().items())  # fmt: skip

    def _write(self, found: list[tuple[str, Any, Any]]) -> None:
        writes = Writes()
        for name, array, value in found:
            dtype = np.int64 if name.endswith(NAMES[2]) else np.asarray(array).dtype
            writes.add(name, array, values_of(value, name), dtype)
        writes.commit()
