"""One training run, and the outcome of each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import bnext
from bnext.demo.data import Digits
from bnext.demo.layers import Array
from bnext.demo.networks import Network, build
from bnext.demo.statistics.layer_statistics import Distance, Following, Statistics, distance
from bnext.demo.statistics.methods import EXACT, Method
from bnext.demo.training import Case, batches, evaluate


@dataclass(frozen=True)
class Outcome:
    """The results with the statistics of one method after one run."""

    case: Case
    method: Method
    accuracy: float  # on the held-out images, in inference mode; so is the loss
    loss: float
    distances: tuple[Distance, ...]  # from the exact statistics, of each layer

    @property
    def distance(self) -> float:
        """Distance of the farthest layer."""
        return float(np.max([each.total for each in self.distances]))  # NaN if any is


def run_case(case: Case, digits: Digits, methods: Sequence[Method]) -> list[Outcome]:
    """Train a network and test it with the statistics of each method."""
    network = build(case.kind, normalized=True, seed=case.seed)
    # At too large a rate the loss overflows: a result like others.
    with np.errstate(all="ignore"):
        following = train(network, case, digits, [m.estimator for m in methods if not m.from_data])
        parts = in_batches(digits.train_images, case.batch_size)
        found = {method: _statistics(method, network, following, parts) for method in methods}
        return [_test(case, method, network, found, digits) for method in methods]


def train(
    network: Network, case: Case, digits: Digits, estimators: Sequence[bnext.Estimator]
) -> list[Following]:
    """Train `network`; give the running statistics of all estimators, for each layer."""
    layers = network.normalizations()
    following = [Following(estimators, layer.bn.num_features) for layer in layers]
    for images, labels in batches(case, digits):
        network.step(images, labels, case.rate)
        for layer, each in zip(layers, following, strict=True):
            each.observe(layer.x)
    return following


def in_batches(images: Array, batch_size: int) -> list[Array]:
    """Divide all `images` into batches of nearly that size, at least two images each."""
    number = min(round(len(images) / batch_size), len(images) // 2)
    return np.array_split(images, max(1, number))


def _statistics(
    method: Method, network: Network, following: list[Following], parts: list[Array]
) -> list[Statistics]:
    """Give each layer's statistics by a method."""
    if method.from_data is None:
        return [each.statistics()[method.estimator] for each in following]
    layers = [layer.bn for layer in network.normalizations()]
    for bn in layers:
        bn.estimator = method.estimator
    bnext.update_statistics(network.forward, parts, layers, method.from_data)
    return [_running(bn) for bn in layers]


def _test(
    case: Case,
    method: Method,
    network: Network,
    found: dict[Method, list[Statistics]],
    digits: Digits,
) -> Outcome:
    layers = [layer.bn for layer in network.normalizations()]
    distances = []
    for bn, estimate, exact in zip(layers, found[method], found[EXACT], strict=True):
        for array, values in zip((bn.running_mean, bn.running_var), estimate, strict=True):
            assert array is not None
            array[...] = values
        distances.append(distance(_running(bn), exact, bn.eps))
    return Outcome(case, method, *evaluate(network, digits), tuple(distances))


def _running(bn: bnext.BatchNorm) -> Statistics:
    """Copy a layer's running statistics."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return Statistics(bn.running_mean.astype(np.float64), bn.running_var.astype(np.float64))
