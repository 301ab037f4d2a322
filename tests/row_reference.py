"""Layer and RMS normalization as they are defined, in NumPy's long double.

Over the K values x of each row (Ba, Kiros and Hinton 2016; Zhang and Sennrich 2019)::

    mean = sum(x) / K, or 0          var = sum((x - mean)^2) / K
    rstd = 1 / sqrt(var + eps)       xhat = (x - mean) * rstd           y = xhat * weight + bias

    g  = dy * weight
    dx = rstd * (g - [sum(g) / K] - xhat * sum(g * xhat) / K)
    dweight = sum over rows of dy * xhat        dbias = sum over rows of dy

Nothing here is fast, and nothing is shared with the package.
"""

from typing import NamedTuple

import numpy as np

from .remembered import remembered


class Normalized(NamedTuple):
    """y, the statistics of each row, and xhat, all of shape (rows, K) or (rows, 1)."""

    y: np.ndarray
    mean: np.ndarray
    rstd: np.ndarray
    xhat: np.ndarray


def rows_of(array, dims):
    """An array in long double with one row for each set of normalized values."""
    wide = np.asarray(array, np.longdouble)
    leading = wide.shape[: wide.ndim - dims]
    return wide.reshape(int(np.prod(leading)), -1)


@remembered
def forward(x, dims, weight=None, bias=None, *, eps, centered=True):
    rows = rows_of(x, dims)
    weight = 1 if weight is None else rows_of(weight, np.ndim(weight))
    bias = 0 if bias is None else rows_of(bias, np.ndim(bias))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # About the first value, so that the mean of what is left has bits enough.
        origin = rows[:, :1] if centered else np.zeros((len(rows), 1), np.longdouble)
        values = rows - origin
        mean = values.mean(axis=1, keepdims=True) if centered else np.zeros_like(origin)
        var = ((values - mean) ** 2).mean(axis=1, keepdims=True)
        rstd = np.where(var + eps == 0, 0, 1 / np.sqrt(var + eps))
        xhat = (values - mean) * rstd
        return Normalized(xhat * weight + bias, origin + mean, rstd, xhat)


@remembered
def backward(dy, x, dims, weight=None, *, eps, centered=True):
    """dx, dweight and dbias, the last two of K values."""
    of = forward(x, dims, eps=eps, centered=centered)
    rows = rows_of(dy, dims)
    g = rows if weight is None else rows * rows_of(weight, np.ndim(weight))
    dx = g - of.xhat * (g * of.xhat).mean(axis=1, keepdims=True)
    if centered:
        dx = dx - g.mean(axis=1, keepdims=True)
    return of.rstd * dx, (rows * of.xhat).sum(axis=0), rows.sum(axis=0)
