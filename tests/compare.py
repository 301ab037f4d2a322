"""Comparisons that the tests share; each says in its failure where and by how much.

Allowed errors are absolute, per channel: a bound of `tolerances.py` times one unit in the last
place at the largest magnitude among the result and the terms that it is the sum of; plus what a
rounding of the float64 moments themselves is worth.
"""

import numpy as np

from . import reference, tolerances
from .remembered import remembered


def units(scale, dtype):
    """One unit in the last place of `dtype` at each magnitude of `scale`, in float64."""
    scale = np.where(np.isfinite(scale), np.abs(scale), 0.0)
    below_overflow = np.minimum(scale, float(np.finfo(dtype).max) / 2)
    return np.spacing(below_overflow.astype(dtype)).astype(np.float64)


def assert_within(actual, expected, allowed, what):
    """`actual` is within `allowed` of `expected`, in absolute terms, element by element.

    NaN must stand where NaN is expected, and an infinity where that same infinity is.
    """
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=what)
    assert np.isfinite(actual[finite]).all(), f"{what}: not finite where the reference is"
    if not finite.any():
        return
    share = np.zeros(expected.shape)
    np.subtract(actual, expected, out=share, where=finite)
    share = np.abs(share) / allowed
    worst = np.unravel_index(np.argmax(share), share.shape)
    assert share[worst] <= 1.0, (
        f"{what}: {share[worst]:.3g} times the allowed error at {tuple(map(int, worst))}: "
        f"{actual[worst]!r}, not {expected[worst]!r}"
    )


def assert_same_bits(actual, expected, what="result"):
    """The two arrays have the same dtype, shape and bits: signs of zeros and NaNs too."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if actual.dtype.kind == "f" or actual.dtype.name == "bfloat16":
        integers = np.dtype(f"u{actual.dtype.itemsize}")
        one, other = (np.ascontiguousarray(array).view(integers) for array in (actual, expected))
    else:
        one, other = actual, expected
    differ = np.asarray(one != other)
    if differ.any():
        first = tuple(map(int, np.argwhere(differ)[0]))
        raise AssertionError(
            f"{what}: {differ.sum()} of {differ.size} elements differ in their bits, the first at "
            f"{first}: {actual[first]!r}, not {expected[first]!r}"
        )


def assert_same_memory_order(actual, x):
    """`actual` is dense, and its axes are nested in memory as those of `x` are."""
    slowest_first = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    assert actual.transpose(slowest_first).flags.c_contiguous, (
        f"strides {actual.strides} for an input of strides {x.strides} and shape {x.shape}"
    )


def largest(rows):
    """The largest magnitude in each row; 0 for an empty one."""
    return np.abs(rows).max(axis=1, initial=0.0)


def slope_of(var, weight, eps):
    """|weight| * rstd: what an error in x - mean is worth in y."""
    rstd = reference.rstd(var, eps)
    return np.abs(reference.column(weight, len(rstd), 1.0)[:, 0] * rstd)


def mean_units(x, channel_axis):
    """One unit in the last place of float64 at the largest magnitude of each channel of `x`.

    No mean of these values is known better than to a few of these, since means are float64.
    """
    return units(largest(reference.per_channel(x, channel_axis)), np.float64)


def assert_are_moments(actual, x, *, channel_axis=1):
    """`actual` has the count, mean and m2 of `x`, within the bounds of its dtype."""
    dtype = x.dtype.type
    expected = reference.moments(x, channel_axis)
    assert actual.count == expected.count
    assert actual.mean.dtype == actual.m2.dtype == np.float64
    of_mean = tolerances.MEAN[dtype] * mean_units(x, channel_axis)
    assert_within(actual.mean, expected.mean, of_mean, "mean")
    # A wrong mean of a part of the values is worth 2 * (its distance from the others) * error.
    allowed = tolerances.M2[dtype] * units(expected.m2, np.float64)
    allowed += 2 * of_mean * np.sqrt(expected.count * expected.m2) + expected.count * of_mean**2
    assert_within(actual.m2, expected.m2, allowed, "m2")


@remembered
def bounds_of_y(dtype, x, mean, var, weight, bias, eps, channel_axis):
    """y, one row a channel, and how far it may be off."""
    xhat = reference.standardize(x, mean, var, eps=eps, channel_axis=channel_axis)
    product = xhat * reference.column(weight, len(xhat), 1.0)
    shift = reference.column(bias, len(xhat), 0.0)
    expected = product + shift
    scale = np.maximum(np.maximum(largest(expected), largest(product)), largest(shift))
    known = mean_units(x, channel_axis) * slope_of(var, weight, eps)
    allowed = tolerances.Y[dtype] * units(scale, dtype) + tolerances.MEAN[dtype] * known
    return expected, allowed[:, None]


def assert_is_y(y, x, mean, var, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """`y` is `x` normalized with `mean` and `var`, within the bound of its dtype."""
    bounds = bounds_of_y(y.dtype.type, x, mean, var, weight, bias, eps, channel_axis)
    assert_within(reference.per_channel(y, channel_axis), *bounds, "y")


def assert_is_forward(y, x, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """`y` is `x` normalized with its own statistics, within the bound of its dtype."""
    batch = reference.moments(x, channel_axis)
    assert_is_y(
        y, x, batch.mean, batch.var, weight, bias, eps=eps, channel_axis=channel_axis
    )  # fmt: skip


def bounds_of_sum(dtype, terms, known=0.0):
    """The sum of each row of `terms`, each of which is known to within `known`, and its bound."""
    expected = terms.sum(axis=1)
    scale = np.maximum(np.abs(expected), np.sqrt((terms**2).sum(axis=1)))
    return expected, tolerances.PARAMETER_GRADIENT[dtype] * units(scale, dtype) + known


def assert_is_sum(actual, terms, what):
    """`actual` is the sum of each row of `terms`."""
    assert_within(actual, *bounds_of_sum(actual.dtype.type, terms), what)


@remembered
def bounds_of_gradients(dtype, dy, x, weight, eps, channel_axis):
    """Of dx (one row a channel), dweight and dbias: values and bounds in turn."""
    batch = reference.moments(x, channel_axis)
    xhat = reference.standardize(x, batch.mean, batch.var, eps=eps, channel_axis=channel_axis)
    rows = reference.per_channel(dy, channel_axis)
    expected = reference.backward(dy, x, weight, eps=eps, channel_axis=channel_axis)
    n = max(batch.count, 1)
    mean_dy, projection = np.abs(expected.dbias) / n, np.abs(expected.dweight) / n
    of_xhat = reference.rstd(batch.var, eps) * mean_units(x, channel_axis)
    slope = slope_of(batch.var, weight, eps)

    terms = np.maximum(np.maximum(largest(rows), mean_dy), largest(xhat) * projection)
    allowed = tolerances.DX[dtype] * units(slope * terms, dtype)
    allowed += tolerances.MEAN[dtype] * slope * of_xhat * (projection + largest(xhat) * mean_dy)
    return _with_sums(dtype, expected, allowed, rows, xhat, of_xhat, channel_axis)


@remembered
def bounds_of_constant_gradients(dtype, dy, x, mean, var, weight, eps, channel_axis):
    xhat = reference.standardize(x, mean, var, eps=eps, channel_axis=channel_axis)
    rows = reference.per_channel(dy, channel_axis)
    expected = reference.backward_constant(
        dy, x, mean, var, weight, eps=eps, channel_axis=channel_axis
    )
    of_xhat = reference.rstd(var, eps) * mean_units(x, channel_axis)
    allowed = tolerances.DX[dtype] * units(slope_of(var, weight, eps) * largest(rows), dtype)
    return _with_sums(dtype, expected, allowed, rows, xhat, of_xhat, channel_axis)


def _with_sums(dtype, expected, allowed_dx, dy_rows, xhat, of_xhat, channel_axis):
    known = tolerances.MEAN[dtype] * of_xhat * np.abs(expected.dbias)
    return (
        reference.per_channel(expected.dx, channel_axis), allowed_dx[:, None],
        *bounds_of_sum(dtype, dy_rows * xhat, known), *bounds_of_sum(dtype, dy_rows),
    )  # fmt: skip


def assert_are_gradients(actual, dy, x, weight=None, *, eps=1e-5, channel_axis=1):
    """`actual` = (dx, dweight, dbias) of the forward pass with the batch's statistics."""
    bounds = bounds_of_gradients(actual[0].dtype.type, dy, x, weight, eps, channel_axis)
    _assert_gradients(actual, bounds, channel_axis)


def assert_are_constant_gradients(
    actual, dy, x, mean, var, weight=None, *, eps=1e-5, channel_axis=1
):
    """`actual` = (dx, dweight, dbias) with the statistics held constant."""
    dtype = actual[0].dtype.type
    bounds = bounds_of_constant_gradients(dtype, dy, x, mean, var, weight, eps, channel_axis)
    _assert_gradients(actual, bounds, channel_axis)


def _assert_gradients(actual, bounds, channel_axis):
    dx, dweight, dbias = actual
    assert dweight.dtype == dbias.dtype == dx.dtype
    assert_within(reference.per_channel(dx, channel_axis), *bounds[:2], "dx")
    assert_within(dweight, *bounds[2:4], "dweight")
    assert_within(dbias, *bounds[4:], "dbias")
