"""The rows of statistics that a forward pass leaves, by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnext import _core

__all__ = ["ROW", "Statistics", "two_sum", "unbound"]


class Statistics(NamedTuple):
    """One value for each row of the statistics, in the order in which kernels have the rows.

    The exact mean is ``mean + mean_low``; the latter is 0 but for float64 data.
    """

    mean: Any
    m2: Any
    var: Any
    rstd: Any
    mean_low: Any


# Places of the rows: ``rows[ROW.var]``.
ROW = Statistics(*map(_core.ROWS.index, Statistics._fields))


def unbound(rows: Any) -> Statistics:
    """Name the rows of an array or a tensor of shape (5, C)."""
    return Statistics(*(rows[place, :] for place in ROW))


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Add arrays; give the sum and its rounding error (Knuth's TwoSum).

    In NumPy's arrays the error is 0 where the sum is not finite.
    """
    high = a + b
    of_b = high - a
    low = (a - (high - of_b)) + (b - of_b)
    return high, np.where(np.isnan(low), 0.0, low) if isinstance(low, np.ndarray) else low
