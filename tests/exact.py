"""The definition in long double, for float64 results, and the comparison with it.

`reference.py` is float64 itself, so its mean is rounded at the magnitude of the data. Where a mean
is 1e8 standard deviations from 0, that alone is 1e8 units in the last place of y.
"""

import numpy as np

from . import reference, tolerances
from .compare import assert_within, largest, units
from .optional import NotHere
from .remembered import remembered

LONG = np.longdouble


def require_long_double():
    """A test that is not run where long double is double."""
    if np.finfo(LONG).nmant < 63:
        raise NotHere("a long double of 64 bits", "NumPy's has no more than a double")


def per_channel(values, channel_axis):
    """`values` in long double with one row a channel, and no rounding on the way."""
    rows = np.moveaxis(np.asarray(values, LONG), channel_axis, 0)
    return rows.reshape(len(rows), -1)


@remembered
def exact(x, dy, weight, bias, eps, channel_axis):
    """y, dx and dweight, and a bound of each, for any mean.

    Bounds are taken at the largest value that a channel can have: of y and dx at the largest among
    the result and its terms, of dweight at the sum of the magnitudes that it is the sum of.
    """
    rows, grads = per_channel(x, channel_axis), per_channel(dy, channel_axis)
    centred = rows - rows[:, :1]  # exact; a mean is then no larger than the deviations
    centred -= centred.mean(1, keepdims=True)
    centred -= centred.mean(1, keepdims=True)
    rstd = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + LONG(eps))
    xhat = centred * rstd
    slope = np.asarray(weight, LONG)[:, None]
    shift = np.asarray(bias, LONG)[:, None]
    projection = (grads * xhat).mean(1, keepdims=True)
    mean_dy = grads.mean(1, keepdims=True)
    y = xhat * slope + shift
    dx = slope * rstd * (grads - mean_dy - xhat * projection)
    of_y = np.maximum(largest(np.concatenate([y, xhat * slope], 1)), np.abs(shift[:, 0]))
    of_dx = np.concatenate([grads, mean_dy, xhat * projection], 1)
    of_dx = np.abs(slope * rstd)[:, 0] * largest(of_dx)
    scales = of_y, of_dx, np.abs(grads * xhat).sum(1)
    bounds = [tolerances.ANY_MEAN * units(scale.astype(np.float64), np.float64) for scale in scales]
    return y, dx, (grads * xhat).sum(1), *bounds


def assert_is_exact(results, x, dy, weight, bias, *, eps=1e-5, channel_axis=1):
    """`results` = (y, dx, dweight) of float64 data are `exact`, within its bounds."""
    expected = exact(x, dy, weight, bias, eps, channel_axis)
    rows = [per_channel(each, channel_axis) for each in results[:2]]
    rows.append(np.asarray(results[2], LONG))
    for name, result, value, allowed in zip(
        ("y", "dx", "dweight"), rows, expected[:3], expected[3:], strict=True
    ):  # in long double, the difference alone is rounded
        allowed = allowed.reshape(-1, *[1] * (value.ndim - 1))
        assert_within(result - value, np.zeros(value.shape), allowed, name)


def drawn(case, rng, far):
    """`x` of float64 in the case's memory, each channel `far` standard deviations from 0; `dy`."""
    std = case.per_channel(10.0 ** rng.uniform(-1, 1, case.channels))
    sign = case.per_channel(rng.choice([-1.0, 1.0], case.channels))
    x = case.memory.place((rng.normal(size=case.shape) + far * sign) * std)
    assert far == 0 or reference.moments(x, case.channel_axis).var.min() > 0
    return x, case.dy(rng, np.float64)
