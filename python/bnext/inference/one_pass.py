"""Statistics of layers' inputs in one pass, where batches are normalized by their own.

What each layer brings for a batch is collected on the way; `_Pooled` and `_Average` are the two
things that can be made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bnext._moments import Moments
from bnext.groups.exchange import Float64Array, Header, Merged
from bnext.groups.group import Group
from bnext.groups.visits import VISITS, visits_of
from bnext.inference.layers import Estimate, called_twice, not_reached
from bnext.inference.progress import Watch
from bnext.layers import BatchNorm

__all__ = ["Average", "Pooled", "one_pass"]


def one_pass(
    network: Callable[[Any], Any],
    batches: Iterable[Any],
    layers: list[BatchNorm],
    group: Group | None,
    kind: type[Pooled] | type[Average],
    watch: Watch,
) -> tuple[list[Estimate], int]:
    """Estimates of each layer, and how many batches there were."""
    sums = [kind(layer.estimator.bessel) for layer in layers]
    members = PassGroup(layers, group, lambda place, merged: sums[place].add(merged))
    number = 0
    before, during = VISITS.get(), visits_of(layers, members)
    try:
        VISITS.set(during)
        for x in watch(batches, "all layers"):
            members.next_batch()
            network(x)
            members.end_batch()
            number += 1
    finally:
        VISITS.set(before)
    estimates = [each.estimate() for each in sums]
    if number == 0 or any(estimate is None for estimate in estimates):
        raise ValueError("batches: expected at least one with data, got none")
    return [estimate for estimate in estimates if estimate is not None], number


class PassGroup(Group):
    """A batch that is alone, or the shard of an outer group's; what layers bring is collected."""

    def __init__(self, layers: list[BatchNorm], inner: Group | None, collect: Any) -> None:
        super().__init__()
        self._places = {id(layer): place for place, layer in enumerate(layers)}
        self._layers = layers
        self._inner = inner
        self._collect = collect  # (place, count, mean, m2)
        self._batch = -1
        self._called: set[int] = set()

    size = property(lambda self: 1 if self._inner is None else self._inner.size)
    rank = property(lambda self: 0)

    def next_batch(self) -> None:
        """Begin with another batch."""
        self._batch += 1
        self._called.clear()

    def end_batch(self) -> None:
        """ValueError unless the batch has come to every layer."""
        if len(self._called) < len(self._layers):
            raise not_reached(self._called, self._layers)

    def begin(self, layer: Any) -> tuple[int, int]:
        """Count a call; see `Group`."""
        place = self._places[id(layer)]
        if place in self._called:
            raise called_twice(place)
        self._called.add(place)
        return place, self._batch

    def merge_moments(
        self,
        header: Header,
        count: int,
        mean: Float64Array,
        m2: Float64Array,
        mean_low: Float64Array | None = None,
    ) -> Merged:
        """Collect what the batch has brought, and give it back; see `Group`."""
        merged = Merged(count, mean, m2, self._batch + 1, False, mean_low)
        if self._inner is not None:
            part = self._inner.part(self._layers[header.layer])
            merged = part.merge_moments(header.dtype, count, mean, m2, mean_low)
        self._collect(header.layer, merged)
        return merged

    def merge_sums(
        self, header: Header, count: int, sum_dy: Float64Array, sum_dy_xmu: Float64Array
    ) -> Merged:
        """Refuse: there is no backward pass here."""
        raise RuntimeError("network: expected no backward pass in update_statistics, got one")

    def fail(self, message: str) -> None:
        """Tell nobody: `update_statistics` announces its own errors."""


class Pooled:
    """Moments of a layer's input over all batches."""

    def __init__(self, bessel: bool) -> None:
        self._bessel = bessel
        self._moments: Moments | None = None

    def add(self, merged: Merged) -> None:
        """Take a batch in."""
        moments = Moments(merged.total_count, merged.first, merged.second)
        self._moments = moments if self._moments is None else self._moments + moments

    def estimate(self) -> Estimate | None:
        """Make it of what came; None if that were no data."""
        m = self._moments
        if m is None or m.count == 0:
            return None
        return Estimate(m.mean, m.unbiased_var if self._bessel else m.var)


class Average:
    """Means over batches of their means and variances; batches without data do not count."""

    def __init__(self, bessel: bool) -> None:
        self._bessel = bessel
        self._batches = 0
        self._mean: Any = 0.0
        self._var: Any = 0.0

    def add(self, merged: Merged) -> None:
        """Take a batch in."""
        if merged.total_count == 0:
            return
        self._batches += 1
        # Averages that move, so that nothing grows with the number of batches.
        share = 1.0 / self._batches
        with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
            var = merged.second / (merged.total_count - self._bessel)
            self._mean = self._mean + (merged.first - self._mean) * share
            self._var = self._var + (var - self._var) * share

    def estimate(self) -> Estimate | None:
        """Make it of what came; None if that were no data."""
        return Estimate(self._mean, self._var) if self._batches else None
