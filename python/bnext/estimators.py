"""Estimators: how a layer estimates, batch by batch, the statistics for inference.

Each estimator moves the running statistics by a weight w of the new batch,

    running = (1 - w) * running + w * batch,

and gives w for the t-th batch. Estimators have no state beside the layer's arrays and its counter,
so that state dicts are PyTorch's for every estimator.

Exact statistics for trained parameters need the data again: `bnext.update_statistics`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

from bnext import _core
from bnext.arguments import count_of

__all__ = [
    "DEFAULT_MOMENTUM",
    "Cumulative",
    "DebiasedExponential",
    "Estimator",
    "Exponential",
    "FirstBatchExponential",
]


class _Default(float):
    """A number that differs, as an object, from the same number given by a caller."""


DEFAULT_MOMENTUM: float = _Default(0.1)


class Estimator(abc.ABC):
    """The rule for a layer's running statistics; `Exponential` is the default.

    Attributes
    ----------
    momentum : float or None
        Weight of the new batch in an exponential average; None in a cumulative one.
    bessel : bool
        Whether the running variance has Bessel's correction, ``m2 / (n - 1)``, as in PyTorch and
        Chainer, or is the biased ``m2 / n``, as in Keras, Flax and ONNX.
    """

    __slots__ = ()
    momentum: float | None
    bessel: bool

    @abc.abstractmethod
    def weight(self, batch: int) -> float:
        """Weight of a new batch.

        Parameters
        ----------
        batch : int
            Its number, from 1.

        Returns
        -------
        float
            w of ``running = (1 - w) * running + w * batch``.

        Raises
        ------
        TypeError
            `batch` is not an integer.
        ValueError
            It is less than 1.
        """

    @property
    def decay(self) -> float | None:
        """``1 - momentum``, the alpha of the literature; None in a cumulative average."""
        return None if self.momentum is None else 1.0 - self.momentum

    def with_momentum(self, momentum: float | None) -> Estimator:
        """Give the same estimator with another momentum.

        Parameters
        ----------
        momentum : float or None
            Weight of the new batch; None for the cumulative average.

        Returns
        -------
        Estimator
            A new one.
        """
        return Cumulative(bessel=self.bessel) if momentum is None else self._exponential(momentum)

    def with_decay(self, decay: float) -> Estimator:
        """Give the same estimator with another decay.

        Parameters
        ----------
        decay : float
            ``1 - momentum``, the alpha of the literature.

        Returns
        -------
        Estimator
            A new one.
        """
        return self._exponential(_momentum_of(None, decay))

    def _exponential(self, momentum: float) -> Exponential:
        kind = type(self) if isinstance(self, Exponential) else Exponential
        return kind(momentum, bessel=self.bessel)


@dataclass(frozen=True, init=False, repr=False)
class Exponential(Estimator):
    """Exponential average: w is `momentum`, for every batch.

    Parameters
    ----------
    momentum : float, optional
        Weight of the new batch; 0.1 if neither it nor `decay` is given. At most one may be given.
    decay : float, optional
        Weight of the old average, ``1 - momentum``.
    bessel : bool
        Whether the variance has Bessel's correction.

    Raises
    ------
    ValueError
        Both were given, or the number is not finite.
    TypeError
        It is not a number.
    """

    momentum: float
    bessel: bool

    def __init__(
        self, momentum: float | None = None, *, decay: float | None = None, bessel: bool = True
    ) -> None:
        object.__setattr__(self, "momentum", _momentum_of(momentum, decay))
        object.__setattr__(self, "bessel", bool(bessel))

    def weight(self, batch: int) -> float:
        """`momentum`, whatever the number of the `batch` is."""
        return self.momentum

    def __repr__(self) -> str:
        """Write the call that makes it."""
        return f"{type(self).__name__}(momentum={self.momentum}{_repr_of(self.bessel)})"


@dataclass(frozen=True, init=False, repr=False)
class DebiasedExponential(Exponential):
    """Exponential average without the bias towards its initial values.

    After t batches an exponential average still has ``decay**t`` of the initial 0 and 1. Divided by
    ``1 - decay**t`` (Kingma and Ba 2015, section 3), it is an average of batches alone. It moves by

        w = momentum / (1 - decay**t),

    1 for the first batch and soon `momentum`.

    Parameters
    ----------
    momentum : float, optional
        Weight of the new batch in the long run, above 0 and at most 1; 0.1 if neither it nor
        `decay` is given. At most one may be given.
    decay : float, optional
        Weight of the old average, ``1 - momentum``.
    bessel : bool
        Whether the variance has Bessel's correction.

    Raises
    ------
    ValueError
        Both were given, or the number is not in this range.
    TypeError
        It is not a number.
    """

    def __init__(
        self, momentum: float | None = None, *, decay: float | None = None, bessel: bool = True
    ) -> None:
        super().__init__(momentum, decay=decay, bessel=bessel)
        if not 0.0 < self.momentum <= 1.0:
            raise ValueError(
                f"momentum: expected a number above 0 and at most 1, got {self.momentum}"
            )

    def weight(self, batch: int) -> float:
        """``momentum / (1 - decay**batch)``, where `batch` is its number, from 1."""
        if self.momentum == 1.0:
            return 1.0
        # 1 - decay**t cancels where momentum is small.
        number = count_of(batch, "batch", 1)
        return self.momentum / -math.expm1(number * math.log1p(-self.momentum))


@dataclass(frozen=True, init=False, repr=False)
class FirstBatchExponential(Exponential):
    """Exponential average that begins with the first batch, whole, in place of initial values.

    w is 1 for the first batch and `momentum` after it. (Equinox with ``mode="ema"``.)

    Parameters
    ----------
    momentum : float, optional
        Weight of the new batch after the first; 0.1 if neither it nor `decay` is given. At most one
        may be given.
    decay : float, optional
        Weight of the old average, ``1 - momentum``.
    bessel : bool
        Whether the variance has Bessel's correction.

    Raises
    ------
    ValueError
        Both were given, or the number is not finite.
    TypeError
        It is not a number.
    """

    def weight(self, batch: int) -> float:
        """1 for the first `batch`, `momentum` for every other; batches have numbers from 1."""
        return 1.0 if count_of(batch, "batch", 1) == 1 else self.momentum


@dataclass(frozen=True, repr=False)
class Cumulative(Estimator):
    """Plain average of all batches so far: w is 1/t.

    Parameters
    ----------
    bessel : bool
        Whether the variance has Bessel's correction.
    """

    momentum: ClassVar[None] = None  # type: ignore[misc]  # narrower on purpose
    bessel: bool = True

    def weight(self, batch: int) -> float:
        """``1 / batch``, where `batch` is its number, from 1."""
        return 1.0 / count_of(batch, "batch", 1)

    def __repr__(self) -> str:
        """Write the call that makes it."""
        return f"Cumulative({_repr_of(self.bessel).removeprefix(', ')})"


def _repr_of(bessel: bool) -> str:
    return "" if bessel else ", bessel=False"


def _momentum_of(momentum: float | None, decay: float | None) -> float:
    if decay is None:
        return _core.check_momentum(DEFAULT_MOMENTUM if momentum is None else momentum)
    if momentum is not None:
        raise ValueError(
            f"decay: expected it or momentum, which is 1 - decay, got decay={decay} and "
            f"momentum={momentum}"
        )
    if isinstance(decay, bool) or not hasattr(decay, "__float__"):
        raise TypeError(f"decay: expected a number, got {type(decay).__name__}")
    if not math.isfinite(decay):
        raise ValueError(f"decay: expected a finite number, got {decay}")
    return 1.0 - float(decay)


def chosen(momentum: float | None, decay: float | None, estimator: Estimator | None) -> Estimator:
    """Make the estimator from a layer's arguments, of which at most one may be given.

    A momentum other than `DEFAULT_MOMENTUM` itself counts as given; None is cumulative.
    """
    arguments = {"momentum": momentum, "decay": decay, "estimator": estimator}
    defaults = {"momentum": DEFAULT_MOMENTUM}
    given = {k: value for k, value in arguments.items() if value is not defaults.get(k)}
    if len(given) > 1:
        text = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(
            f"{[*given][1]}: expected one of momentum, decay and estimator, got {text}"
        )
    if estimator is not None:
        if not isinstance(estimator, Estimator):
            got = type(estimator).__name__
            raise TypeError(f"estimator: expected one such as bnext.Exponential(), got {got}")
        return estimator
    if momentum is None:
        return Cumulative()
    return Exponential(momentum if decay is None else None, decay=decay)
