"""Many running averages of one layer, from the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import bnext
from bnext.demo.layers import Array

Float64Array = npt.NDArray[np.float64]


class Statistics(NamedTuple):
    """A layer's, each of shape (C,)."""

    mean: Float64Array
    var: Float64Array


class Following:
    """What a layer's running statistics would be, had it each of several estimators.

    Running statistics have no influence on training, so that one training run shows them all.

    Parameters
    ----------
    estimators : sequence of bnext.Estimator
    channels : int
        Of the layer.
    """

    def __init__(self, estimators: Sequence[bnext.Estimator], channels: int) -> None:
        self._estimators = estimators
        self._corrections = _column([each.bessel for each in estimators])
        # A row for each estimator. All begin as a layer does.
        self._mean = np.zeros((len(estimators), channels))
        self._var = np.ones((len(estimators), channels))
        self._batches = 0

    def observe(self, x: Array) -> None:
        """Take in the layer's input for one batch."""
        self._batches += 1
        batch = bnext.moments(x)
        var = batch.m2 / (batch.count - self._corrections)
        weights = _column([each.weight(self._batches) for each in self._estimators])
        self._mean += weights * (batch.mean - self._mean)
        self._var += weights * (var - self._var)

    def statistics(self) -> dict[bnext.Estimator, Statistics]:
        """Give what each estimator has by now."""
        rows = zip(self._estimators, self._mean, self._var, strict=True)
        return {estimator: Statistics(mean.copy(), var.copy()) for estimator, mean, var in rows}


def _column(values: Sequence[float]) -> Float64Array:
    return np.array(values, np.float64).reshape(-1, 1)
