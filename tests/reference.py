"""Batch normalization as it is defined, in float64 NumPy: what every kernel is measured against.

Per channel, over its n values x (Ioffe and Szegedy 2015, algorithm 1)::

    mean = sum(x) / n                 var = sum((x - mean)^2) / n        (biased)
    rstd = 1 / sqrt(var + eps)        xhat = (x - mean) * rstd           y = xhat * weight + bias

    dbias = sum(dy)    dweight = sum(dy * xhat)
    dx    = weight * rstd * (dy - dbias / n - xhat * dweight / n)

Nothing here is fast, and nothing is shared with the package.
"""

import math
from typing import NamedTuple

import numpy as np

from .remembered import remembered


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each channel."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @property
    def var(self):
        """The biased variance; 0 for an empty batch, which has no values to normalize with it."""
        return self.m2 / max(self.count, 1)


class Gradients(NamedTuple):
    """What the backward pass returns."""

    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray


def per_channel(x, channel_axis=1):
    """`x` in float64 with one row a channel, shape (C, n).

    Contiguous, because NumPy sums contiguous rows in pairs, and strided ones one by one.
    """
    rows = np.moveaxis(np.asarray(x, np.float64), channel_axis, 0)
    return np.ascontiguousarray(rows).reshape(rows.shape[0], math.prod(rows.shape[1:]))


def in_place_of(x, rows, channel_axis=1):
    """The inverse of `per_channel`: `rows` in the shape of `x`."""
    shape = np.moveaxis(x, channel_axis, 0).shape
    return np.moveaxis(rows.reshape(shape), 0, channel_axis)


def column(values, channels, default):
    """One value a channel, as a column beside rows; `default` where there is none."""
    if values is None:
        values = np.full(channels, default)
    return np.asarray(values, np.float64)[:, None]


@remembered
def moments(x, channel_axis=1):
    """Count, mean and m2 of each channel; zeros for an empty batch."""
    rows = per_channel(x, channel_axis)
    channels, count = rows.shape
    if count == 0:
        return Moments(0, np.zeros(channels), np.zeros(channels))
    with np.errstate(invalid="ignore"):  # inf - inf, where a channel holds an infinity
        mean = rows.mean(axis=1)
        mean += (rows - mean[:, None]).mean(axis=1)  # what rounding the first sum lost
        m2 = ((rows - mean[:, None]) ** 2).sum(axis=1)
    return Moments(count, mean, m2)


def rstd(var, eps):
    """1 / sqrt(var + eps), and 0 where both are 0."""
    var = np.asarray(var, np.float64)
    with np.errstate(divide="ignore"):
        return np.where((var == 0) & (eps == 0), 0.0, 1.0 / np.sqrt(var + eps))


@remembered
def standardize(x, mean, var, *, eps=1e-5, channel_axis=1):
    """xhat, one row a channel."""
    rows = per_channel(x, channel_axis)
    with np.errstate(invalid="ignore"):
        return (rows - column(mean, len(rows), 0.0)) * column(rstd(var, eps), len(rows), 1.0)


@remembered
def normalize(x, mean, var, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """y from given statistics: inference."""
    xhat = standardize(x, mean, var, eps=eps, channel_axis=channel_axis)
    rows = xhat * column(weight, len(xhat), 1.0) + column(bias, len(xhat), 0.0)
    return in_place_of(x, rows, channel_axis)


def forward(x, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """y from the batch's own statistics: training."""
    batch = moments(x, channel_axis)
    return normalize(x, batch.mean, batch.var, weight, bias, eps=eps, channel_axis=channel_axis)


@remembered
def backward(dy, x, weight=None, *, eps=1e-5, channel_axis=1):
    """The gradients of `forward`."""
    batch = moments(x, channel_axis)
    xhat = standardize(x, batch.mean, batch.var, eps=eps, channel_axis=channel_axis)
    rows = per_channel(dy, channel_axis)
    with np.errstate(invalid="ignore"):
        dbias = rows.sum(axis=1)
        dweight = (rows * xhat).sum(axis=1)
        n = max(batch.count, 1)
        centred = rows - dbias[:, None] / n - xhat * dweight[:, None] / n
    slope = column(weight, len(rows), 1.0) * rstd(batch.var, eps)[:, None]
    return Gradients(in_place_of(x, slope * centred, channel_axis), dweight, dbias)


@remembered
def backward_constant(dy, x, mean, var, weight=None, *, eps=1e-5, channel_axis=1):
    """The gradients of `normalize` with the statistics held constant: evaluation mode."""
    xhat = standardize(x, mean, var, eps=eps, channel_axis=channel_axis)
    rows = per_channel(dy, channel_axis)
    slope = column(weight, len(rows), 1.0) * rstd(var, eps)[:, None]
    dx = in_place_of(x, slope * rows, channel_axis)
    return Gradients(dx, (rows * xhat).sum(axis=1), rows.sum(axis=1))


def update_running(running, batch, momentum, correction=1):
    """The running mean and variance after one batch; by default the variance is unbiased."""
    running_mean, running_var = (np.asarray(value, np.float64) for value in running)
    return (
        (1 - momentum) * running_mean + momentum * batch.mean,
        (1 - momentum) * running_var + momentum * batch.m2 / (batch.count - correction),
    )
