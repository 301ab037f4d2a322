"""The layers that a pass over data is given: checks, and the group that they visit meanwhile."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnext._moments import Moments
from bnext.groups.exchange import Float64Array
from bnext.groups.group import ALONE, Group, Part
from bnext.groups.visits import check_at_rest
from bnext.layers import BatchNorm

__all__ = [
    "Estimate", "PassGroup", "checked_layers", "common_group", "is_finite", "no_batch",
]  # fmt: skip


class Estimate(NamedTuple):
    """A layer's new statistics."""

    mean: Float64Array
    var: Float64Array

    @classmethod
    def of(cls, moments: Moments, layer: BatchNorm) -> Estimate:
        """Make it of a layer's whole input, with Bessel's correction if its estimator has it."""
        var = moments.unbiased_var if layer.estimator.bessel else moments.var
        return cls(moments.mean, var)


def is_finite(moments: Moments, dtype: Any, *, bessel: bool = True) -> bool:
    """Whether mean and variance of a batch are finite in a layer's dtype, as `skip_nonfinite` asks.

    Parameters
    ----------
    moments : Moments
        Of the batch.
    dtype : dtype
        NumPy's.
    bessel : bool
        Whether the variance has Bessel's correction.

    Returns
    -------
    bool
    """
    with np.errstate(all="ignore"):
        var = moments.m2 / max(moments.count - bessel, 1)
        return all(np.isfinite(row.astype(dtype)).all() for row in (moments.mean, var))


def no_batch(left_out: Sequence[int]) -> ValueError:
    """Give the error of a layer that had no batch, where layers left out so many."""
    data = "finite data" if any(left_out) else "data"
    return ValueError(f"batches: expected at least one with {data}, got none")


def checked_layers(layers: Any) -> list[BatchNorm]:
    """Make a list of the layers: at least one, each a layer of bnext, and each once."""
    checked = list(layers)
    if not checked:
        raise ValueError("layers: expected at least one, got none")
    for place, layer in enumerate(checked):
        if not isinstance(layer, BatchNorm):
            got = type(layer).__name__
            raise TypeError(f"layers[{place}]: expected a layer of bnext, got {got}")
        if any(layer is other for other in checked[:place]):
            raise ValueError(f"layers[{place}]: expected each layer once, got one a second time")
    check_at_rest(checked)
    return checked


def common_group(layers: Sequence[BatchNorm]) -> Group | None:
    """Give the group that all layers are in; ValueError if they are in different ones."""
    groups = [layer.group for layer in layers]
    for place, group in enumerate(groups):
        if group is not groups[0]:
            raise ValueError(
                f"layers[{place}]: expected the group of layers[0], {groups[0]!r}, got {group!r}"
            )
    return groups[0] if groups else None


class PassGroup(Group):
    """A group that layers visit while a pass over data runs; one thread has all of its members.

    Errors call the `layers` by their places. The batch may be this caller's shard of an `inner`
    group's. With `once`, a layer that is called twice for a batch is an error.
    """

    def __init__(self, layers: Sequence[BatchNorm], inner: Group | None, *, once: bool) -> None:
        super().__init__()
        self._layers = layers
        self._places = {id(layer): place for place, layer in enumerate(layers)}
        self._inner = inner
        self._once = once
        self._calls: dict[int, int] = {}  # of the present batch, by the place of the layer
        self.left_out: list[int] = [0] * len(layers)  # batches that are not finite, for each layer

    def leaves_out(self, place: int, batch: Moments) -> bool:
        """Whether a layer skips a batch, since it is not finite; such a one is counted."""
        layer = self._layers[place]
        if layer.num_batches_skipped is None or is_finite(
            batch, layer.dtype, bessel=layer.estimator.bessel
        ):
            return False
        self.left_out[place] += 1
        return True

    @property
    def rank(self) -> int:
        """0: a layer keeps what the latest call needs."""
        return 0

    def begin(self, layer: Any) -> tuple[int, int]:
        """Give the layer's place, and how often it was called before for the present batch."""
        place = self._places[id(layer)]
        step = self._calls.get(place, 0)
        self._calls[place] = step + 1
        if step and self._once:
            raise ValueError(
                f"layers[{place}]: expected one call for each batch, got a second one: a layer "
                "that is shared has no statistics of one input"
            )
        return place, step

    def inner_part(self, place: int) -> Part:
        """Begin a forward call of a layer in the inner group."""
        return ALONE if self._inner is None else self._inner.part(self._layers[place])

    def check_reached(self, reached: Container[int]) -> None:
        """ValueError for the first layer that is not among those that were `reached`."""
        for place, layer in enumerate(self._layers):
            if place not in reached:
                name = f"{type(layer).__name__}({layer.num_features})"
                raise ValueError(
                    f"layers[{place}]: expected the network to call it, got no call of this {name}"
                )

    def fail(self, message: str) -> None:
        """Tell nobody: no other member waits, and the inner group is told by the pass."""
