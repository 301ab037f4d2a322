"""How far a layer's statistics are from the exact ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bnext.demo.statistics.following import Float64Array, Statistics


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
