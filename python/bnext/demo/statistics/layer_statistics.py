"""The statistics of one layer: running averages of the same batches; distances from the exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import bnext
from bnext.demo.layers import Array

Float64Array = npt.NDArray[np.float64]


class Statistics(NamedTuple):
    """The statistics of a layer, each of shape (C,)."""

    mean: Float64Array
    var: Float64Array


class Following:
    """The running statistics of a layer of so many channels under several estimators.

    Running statistics have no influence on training, so one training run is enough for all.
    """

    def __init__(self, estimators: Sequence[bnext.Estimator], channels: int) -> None:
        self._estimators = estimators
        self._corrections = _column([each.bessel for each in estimators])
        # A row for each estimator, with a layer's initial values.
        self._mean = np.zeros((len(estimators), channels))
        self._var = np.ones((len(estimators), channels))
        self._batches = 0

    def observe(self, x: Array) -> None:
        """Move the statistics by the layer's input for one batch."""
        self._batches += 1
        batch = bnext.moments(x)
        var = batch.m2 / (batch.count - self._corrections)
        weights = _column([each.weight(self._batches) for each in self._estimators])
        self._mean += weights * (batch.mean - self._mean)
        self._var += weights * (var - self._var)

    def statistics(self) -> dict[bnext.Estimator, Statistics]:
        """Give the statistics of each estimator."""
        rows = zip(self._estimators, self._mean.copy(), self._var.copy(), strict=True)
        return {estimator: Statistics(mean, var) for estimator, mean, var in rows}


def _column(values: Sequence[float]) -> Float64Array:
    return np.array(values, np.float64).reshape(-1, 1)


class Distance(NamedTuple):
    """The change of a layer's normalized output if an estimate replaces the exact statistics.

    With z for the output by the exact statistics, of mean 0 and standard deviation 1, the estimate
    gives ``scale * z + shift``. The distance is the root mean square of the difference, over the
    data set and the channels; the contributions of means and variances add up in squares.
    """

    mean: float
    var: float

    @property
    def total(self) -> float:
        """Both together."""
        return math.hypot(self.mean, self.var)


def distance(estimate: Statistics, exact: Statistics, eps: float) -> Distance:
    """Compare an estimate with the exact statistics of a layer that adds `eps` to variances."""
    rstd = 1 / np.sqrt(estimate.var + eps)
    exact_rstd = 1 / np.sqrt(exact.var + eps)
    return Distance(
        mean=_rms((estimate.mean - exact.mean) * rstd),
        var=_rms(np.sqrt(exact.var) * (rstd - exact_rstd)),
    )


def _rms(values: Float64Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
