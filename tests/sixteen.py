"""The 16-bit dtypes: their values, their units in the last place, and how far results are off."""

import functools

import ml_dtypes
import numpy as np

from . import reference
from .compare import largest
from .remembered import remembered

TYPES = [np.float16, ml_dtypes.bfloat16]


def name_of(dtype):
    return np.dtype(dtype).name


def all_values(dtype):
    """Every bit pattern."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def finite_values(dtype):
    values = all_values(dtype)
    return values[(bits_of(values) & 0x7FFF) < bits_of(dtype(np.inf))]


@functools.cache
def magnitudes(dtype):
    """All finite values from 0 on, and what would follow if exponents went on; in float64."""
    values = finite_values(dtype)
    finite = values[~np.signbit(values)].astype(np.float64)
    return np.append(finite, 2 * finite[-1] - finite[-2])


def bits_of(array):
    return np.asarray(array, order="C").view(np.uint16)


def is_nan(array):
    """As np.isnan, by the bits: that warns of signalling ones in bfloat16."""
    return (bits_of(array) & 0x7FFF) > bits_of(array.dtype.type(np.inf))


@remembered
def nearest(values, dtype):
    """Each value rounded to the nearest one of `dtype`, of two the even one.

    Candidates are found by bisection among all finite values, so that no conversion is trusted.
    """
    values = np.asarray(values, np.float64)
    steps = magnitudes(dtype)
    magnitude = np.minimum(np.abs(values), steps[-1])
    above = np.searchsorted(steps, magnitude)
    below = np.maximum(above - 1, 0)
    to_above, to_below = steps[above] - magnitude, magnitude - steps[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    rounded = np.where(up, above, below).astype(np.uint16)  # the last has the bits of infinity
    return (rounded | np.where(np.signbit(values), 0x8000, 0).astype(np.uint16)).view(dtype)


def units(scale, dtype):
    """One unit in the last place of `dtype` at each magnitude of `scale`, in float64."""
    info = ml_dtypes.finfo(dtype)
    exponent = np.floor(np.log2(np.maximum(scale, float(info.smallest_normal))))
    return np.exp2(exponent) * float(info.eps)


def assert_is_rounded(actual, expected, what, channel_axis=1):
    """`actual` is the float64 array `expected`, computed in float32 or better and rounded once.

    That is off by a unit at most, and the nearest value unless `expected` lies within float32's
    error of the middle between two: of one element in a hundred at most.
    """
    dtype = actual.dtype.type
    assert actual.shape == expected.shape
    rows = reference.per_channel(actual, channel_axis)
    exact = reference.per_channel(expected, channel_axis)
    assert np.isfinite(rows).all(), f"{what}: not finite"
    off = np.abs(rows - exact) / units(largest(exact), dtype)[:, None]
    assert off.max(initial=0.0) <= 1.0, f"{what}: off by {off.max():.3g} units"
    wrong = np.count_nonzero(bits_of(actual) != bits_of(nearest(expected, dtype)))
    assert wrong <= max(1, actual.size // 100), f"{what}: {wrong} of {actual.size} not the nearest"
