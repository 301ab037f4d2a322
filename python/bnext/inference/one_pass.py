"""Statistics of layers' inputs in one pass, where batches are normalized by their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bnext._moments import Moments
from bnext.groups.exchange import Header, Merged, Rows
from bnext.groups.group import Group
from bnext.groups.visits import on_visit
from bnext.inference.layers import Estimate, PassGroup, no_batch
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
) -> tuple[list[Estimate], list[int], list[int]]:
    """Estimates of each layer, how many batches went through it, and how many each left out."""
    collected = [kind(layer) for layer in layers]
    members = CollectingGroup(layers, group, collected)

    def through() -> int:
        number = 0
        for x in watch(batches, "all layers"):
            network(x)
            members.end_batch()
            number += 1
        return number

    number = on_visit(layers, members, through)
    if any(each.count == 0 for each in collected):
        raise no_batch(members.left_out)
    return [each.estimate() for each in collected], [number], members.left_out


class CollectingGroup(PassGroup):
    """A batch that is alone, or the shard of an inner group's; what layers bring is collected."""

    def __init__(
        self, layers: list[BatchNorm], inner: Group | None, collected: Sequence[Pooled | Average]
    ) -> None:
        super().__init__(layers, inner, once=True)
        self._collected = collected  # for each layer

    size = property(lambda self: 1 if self._inner is None else self._inner.size)

    def end_batch(self) -> None:
        """ValueError unless the batch has come to every layer; the next one begins."""
        self.check_reached(self._calls)
        self._calls.clear()

    def _exchange(self, header: Header, count: float, rows: Rows) -> Merged:
        if header.direction != "forward":
            raise RuntimeError("network: expected no backward pass in update_statistics, got one")
        part = self.inner_part(header.layer)
        merged = part.merge_moments(header.dtype, count, *rows)
        batch = Moments(merged.total_count, merged.first, merged.second)
        if not self.leaves_out(header.layer, batch):
            self._collected[header.layer].add(merged)
        return merged


class Pooled:
    """Moments of a layer's input over all batches; `count` is its number of values."""

    @property
    def count(self) -> float:
        """Values of a channel so far, or their weight."""
        return self._moments.count

    def __init__(self, layer: BatchNorm) -> None:
        self._layer = layer
        self._moments = Moments.empty(layer.num_features)

    def add(self, batch: Merged) -> None:
        """Take a batch in."""
        self._moments += Moments(batch.total_count, batch.first, batch.second)

    def estimate(self) -> Estimate:
        """Make it of all batches."""
        return Estimate.of(self._moments, self._layer)


class Average:
    """Means over the `count` batches with data of their means and variances."""

    def __init__(self, layer: BatchNorm) -> None:
        self._bessel = layer.estimator.bessel
        self.count: int = 0
        self._mean: Any = 0.0
        self._var: Any = 0.0

    def add(self, batch: Merged) -> None:
        """Take a batch in."""
        if batch.total_count <= 1:  # without a variance
            return
        self.count += 1
        # Averages that move, so that nothing grows with the number of batches.
        share = 1.0 / self.count
        with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
            var = batch.second / (batch.total_count - self._bessel)
            self._mean = self._mean + (batch.first - self._mean) * share
            self._var = self._var + (var - self._var) * share

    def estimate(self) -> Estimate:
        """Make it of all batches."""
        return Estimate(self._mean, self._var)
