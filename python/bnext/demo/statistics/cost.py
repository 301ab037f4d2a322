"""The cost of statistics: passes over the data, and the work in them."""

from __future__ import annotations

from typing import NamedTuple

import bnext
from bnext.demo.layers import Array
from bnext.demo.networks import Kind, build
from bnext.demo.statistics.experiment import in_batches
from bnext.demo.statistics.methods import FROM_DATA, FromData


class Cost(NamedTuple):
    """The cost of one method after training."""

    name: str
    passes: int  # over the data set
    work: float  # multiplications in them; 1: as many as one pass of the whole network has


def costs(kind: Kind, images: Array, batch_size: int) -> list[Cost]:
    """Count the cost of each method; `images` come in batches of nearly `batch_size`."""
    network = build(kind, normalized=True, seed=0)
    layers = [layer.bn for layer in network.normalizations()]

    def multiplications() -> int:
        return sum(layer.multiplications for layer in network.layers)

    network.forward(images[:2])
    whole_pass = multiplications() / 2 * len(images)

    def cost(name: str, method: FromData, keep: int | None = None) -> Cost:
        before = multiplications()
        batches = in_batches(images, batch_size)
        update = bnext.update_statistics(network.forward, batches, layers, method, keep=keep)
        return Cost(name, update.passes, (multiplications() - before) / whole_pass)

    result = [Cost("running averages", 0, 0.0)]
    result += [cost(method, method) for method in reversed(FROM_DATA)]
    again = cost("exact, keeping nothing", "exact", 0)
    # Without the package greenlet, exact statistics keep nothing.
    return result if again.passes == result[-1].passes else [*result, again]
