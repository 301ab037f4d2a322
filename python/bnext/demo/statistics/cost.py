"""The cost of statistics: passes over the data, and the work in them."""

from __future__ import annotations

from dataclasses import dataclass

import bnext
from bnext.demo.layers import Array, Conv2d, Layer, Linear
from bnext.demo.networks import Kind, build
from bnext.demo.statistics.experiment import forward, in_batches
from bnext.demo.statistics.methods import FROM_DATA, FromData


@dataclass(frozen=True)
class Cost:
    """The cost of one method, after training.

    Attributes
    ----------
    passes : int
        The number of passes over the data set.
    work : float
        Multiplications in them, in units of one pass of the whole network over the data set.
    """

    name: str
    passes: int
    work: float


def costs(kind: Kind, images: Array, batch_size: int) -> list[Cost]:
    """Count the cost of each method; `images` come in batches of nearly `batch_size`."""
    result = [Cost("running averages", 0, 0.0)]
    for method in reversed(FROM_DATA):
        result.append(_cost(kind, images, batch_size, method, None, method))
    again = _cost(kind, images, batch_size, "exact", 0, "exact, keeping nothing")
    # Without the package greenlet, exact statistics keep nothing.
    return result if again.passes == result[-1].passes else [*result, again]


def _cost(
    kind: Kind, images: Array, batch_size: int, method: FromData, keep: int | None, name: str
) -> Cost:
    network = build(kind, normalized=True, seed=0)
    work = 0

    def count(layer: Layer, x: Array) -> None:
        nonlocal work
        work += multiplications(layer, x)

    forward(network, images[:2], count)
    whole_pass = work / 2 * len(images)
    work = 0
    update = bnext.update_statistics(
        lambda x: forward(network, x, count),
        in_batches(images, batch_size),
        [layer.bn for layer in network.normalizations()],
        method,
        keep=keep,
    )
    return Cost(name, update.passes, work / whole_pass)


def multiplications(layer: Layer, x: Array) -> int:
    """Count multiplications in the matrix product of a layer; other layers count as 0."""
    if isinstance(layer, Linear):
        return len(x) * int(layer.weight.size)
    if isinstance(layer, Conv2d):
        height, width = (-(-int(extent) // layer.stride) for extent in x.shape[2:])
        return len(x) * int(layer.weight.size) * height * width
    return 0
