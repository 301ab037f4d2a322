"""Where the CUDA kernels may differ more from float64 than the CPU's, with the reasons."""

import numpy as np

from .. import compare, reference
from ..compare import assert_are_moments, assert_within, largest
from ..tolerances import MEAN

# dweight and dbias of float32 data and parameters: 32 products follow each other in float32, with
# half a unit of their sum each time, before sums are in double (csrc/cuda/backward.hpp).
PARAMETER_GRADIENT = 4.0

# The mean, at the largest distance of a value from it, and m2, relative: 32 values, and their
# squares, follow each other in float32 likewise, about a value near them (csrc/cuda/forward.hpp).
DEVIATION = 2.0**-24
M2 = 32 * 2.0**-24


def of_outliers(dtype):
    """How far m2 may be off, relative, if the first value is an outlier.

    Sums are about the middle one of three (csrc/cuda/sums.hpp), which it is not: it costs nothing.
    """
    return M2 if dtype == np.float32 else 2.0**-48


_mean_units_here = compare.mean_units


def mean_units(x, channel_axis):
    """How well the mean is known there, in place of `compare.mean_units`."""
    here = _mean_units_here(x, channel_axis)
    if x.dtype == np.float64:
        return here
    rows = reference.per_channel(x, channel_axis)
    with np.errstate(invalid="ignore"):
        deviation = largest(rows - rows.mean(axis=1, keepdims=True))
    return here + DEVIATION / MEAN[np.float32] * deviation


def assert_close_to_outliers(actual, dy, x, *, channel_axis=1):
    """`actual` = (y, dx, dweight, dbias) where that much of m2, and so of rstd, may be lost."""
    axis = {"channel_axis": channel_axis}
    batch = reference.moments(x, channel_axis)
    off = of_outliers(x.dtype)
    rows, xhat = (
        reference.per_channel(a, channel_axis) for a in (dy, reference.forward(x, **axis))
    )
    dx, dweight, dbias = reference.backward(dy, x, **axis)
    assert_within(reference.per_channel(actual[0], channel_axis), xhat,
                  off * largest(xhat)[:, None], "y")  # fmt: skip
    projection = np.abs(dweight) / batch.count
    slope = reference.rstd(batch.var, 1e-5)
    terms = slope * np.maximum(largest(rows), largest(xhat) * projection)
    assert_within(reference.per_channel(actual[1], channel_axis),
                  reference.per_channel(dx, channel_axis), off * terms[:, None], "dx")  # fmt: skip
    of_mean = MEAN[x.dtype.type] * compare.mean_units(x, channel_axis) * slope * np.abs(dbias)
    products = np.sqrt(((rows * xhat) ** 2).sum(axis=1)) + np.abs(dweight)
    assert_within(actual[2], dweight, off * products + of_mean, "dweight")
    allowed = off * (np.sqrt((rows**2).sum(axis=1)) + np.abs(dbias))
    assert_within(actual[3], dbias, allowed, "dbias")


def assert_are_moments_there(moments, x, *, channel_axis=1):
    """`moments`, in NumPy arrays, has the count, mean and m2 of `x`."""
    if x.dtype == np.float64:
        assert_are_moments(moments, x, channel_axis=channel_axis)
        return
    expected = reference.moments(x, channel_axis)
    assert moments.count == expected.count
    assert moments.mean.dtype == moments.m2.dtype == np.float64
    of_mean = MEAN[np.float32] * mean_units(x, channel_axis)
    tiny = np.finfo(np.float64).tiny
    assert_within(moments.mean, expected.mean, of_mean + tiny, "mean")
    allowed = M2 * expected.m2 + expected.count * of_mean**2
    assert_within(moments.m2, expected.m2, allowed + tiny, "m2")
