"""The outcomes of one network, as means over its runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bnext.demo.networks import Kind
from bnext.demo.statistics.experiment import Outcome
from bnext.demo.statistics.layer_statistics import Float64Array
from bnext.demo.statistics.methods import Method, shown


class Means(NamedTuple):
    """The means of a method at a batch size."""

    accuracy: float
    loss: float
    farthest: float  # distance of the farthest layer
    layers: Float64Array  # (layers, 3): distance by its means, by its variances, and in total


class Comparison:
    """The batch sizes, the methods for tables, and the means of every method at every size."""

    def __init__(self, kind: Kind, outcomes: Iterable[Outcome]) -> None:
        runs: dict[tuple[int, Method], list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.case.kind == kind:
                runs[outcome.case.batch_size, outcome.method].append(outcome)
        self.kind = kind
        self.sizes: list[int] = sorted({size for size, _ in runs})
        self.methods: list[Method] = shown(dict.fromkeys(method for _, method in runs))
        self.means: dict[tuple[int, Method], Means] = {
            key: _means(found) for key, found in runs.items()
        }


def _means(found: list[Outcome]) -> Means:
    layers = [[(*each, each.total) for each in outcome.distances] for outcome in found]
    return Means(
        accuracy=float(np.mean([outcome.accuracy for outcome in found])),
        loss=float(np.mean([outcome.loss for outcome in found])),
        farthest=float(np.mean([outcome.distance for outcome in found])),
        layers=np.mean(layers, axis=0),
    )
