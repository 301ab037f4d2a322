"""Data at the ends of float32's range, of every dtype that has it: statistics, results, gradients.

float32 and bfloat16 reach from 1e-40 to 3e38, where squares, differences and scales are no float32.
float16 does not; its own ends are here as well. (test_numerics.py has what lies between.)
"""

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import reference
from .cases import Case, Memory
from .compare import assert_are_gradients, assert_is_forward, assert_same_bits, assert_within
from .everywhere import assert_same_bits_whatever_runs
from .operations import everything
from .sixteen import assert_is_rounded

F2, F4, BF = np.float16, np.float32, ml_dtypes.bfloat16

CASES = [
    Case("NC-many-chunks", (9001, 19)),
    Case("NC-wide", (67, 1031)),
    Case("NCHW-2x2", (131, 37, 2, 2)),
    Case("NCHW-7x7", (17, 21, 7, 7)),
    Case("NCHW-many-chunks", (5, 3, 61, 67)),
    Case("NCL-every-third", (5, 5, 129), memory=Memory(steps={2: 3})),
]
ENDS = {
    F4: [1e-43, 1e-40, 1e-38, 3.3e38],
    BF: [1e-38, 1e-30, 1e-20, 1e-18, 1e18, 1e20, 3.3e38],
    F2: [1e-5, 6e4],
}
DTYPES_AND_SCALES = [
    pytest.param(dtype, scale, id=f"{np.dtype(dtype).name}-{scale:g}")
    for dtype, scales in ENDS.items()
    for scale in scales
]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


def spread_out(case, rng, dtype, scale):
    """Values between -scale and scale, each channel about a mean of its own."""
    mean = case.per_channel(rng.uniform(-0.5, 0.5, case.channels))
    values = (rng.uniform(-0.5, 0.5, case.shape) + mean) * scale
    return case.memory.place(values.astype(dtype))


def assert_moments_are_close(m, x, axis):
    """Twice as far off as ordinary data of 16 bits may be (test_16bit.py): some channels' means lie
    two deviations from 0 here, and sums of 16 values round accordingly. float32 data are better."""
    expected = reference.moments(x, axis)
    deviation = np.sqrt(expected.var)
    assert_within(m.mean, expected.mean, 2.0**-22 * deviation, "mean")
    assert_within(m.m2, expected.m2, 2.0**-19 * expected.m2, "m2")


@pytest.mark.parametrize(("dtype", "scale"), DTYPES_AND_SCALES)
def test_statistics_and_results(rng, isa, case, dtype, scale):
    x = spread_out(case, rng, dtype, scale)
    weight, bias = case.weight(rng, F4), case.bias(rng, F4)
    axis, eps = case.channel_axis, 1e-5 if scale > 1 else 0.0
    y, saved = bnext.batch_norm_forward(x, weight, bias, eps=eps, channel_axis=axis)
    assert_moments_are_close(saved, x, axis)
    m = bnext.moments(x, channel_axis=axis)
    assert_same_bits(m.m2, saved.m2)
    if dtype is F4:
        assert_is_forward(y, x, weight, bias, eps=eps, channel_axis=axis)
    else:
        expected = reference.forward(x, weight, bias, eps=eps, channel_axis=axis)
        assert_is_rounded(y, expected, "y", axis)
    again = bnext.normalize(x, m.mean, m.var, weight, bias, eps=eps, channel_axis=axis)
    assert_same_bits(again, y)


@pytest.mark.parametrize("alike", [True, False], ids=["dy-as-large", "dy-ordinary"])
@pytest.mark.parametrize(("dtype", "scale"), DTYPES_AND_SCALES)
def test_gradients(rng, isa, case, dtype, scale, alike):
    size = scale
    if not alike:  # and dx, which is of the size of dy / scale, is a number
        size = 1.0 if 1e-30 < scale < 1e30 else scale * (1e3 if scale < 1 else 1e-3)
    if dtype is F2:
        size = min(size, scale)
    if dtype is F4:
        size = min(size, 1e34)  # so that dbias is a number as well
    x, dy = spread_out(case, rng, dtype, scale), spread_out(case, rng, dtype, size)
    weight = case.weight(rng, F4)
    axis, eps = case.channel_axis, 1e-5 if scale > 1 else 0.0
    _, saved = bnext.batch_norm_forward(x, weight, eps=eps, channel_axis=axis)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    if dtype is F4:
        return assert_are_gradients(gradients, dy, x, weight, eps=eps, channel_axis=axis)
    expected = reference.backward(dy, x, weight, eps=eps, channel_axis=axis)
    if np.abs(expected.dx).max() < float(ml_dtypes.finfo(dtype).max) / 2:
        assert_is_rounded(gradients[0], expected.dx, "dx", axis)
    rows = reference.per_channel(dy, axis)
    xhat = reference.standardize(x, saved.mean, saved.var, eps=eps, channel_axis=axis)
    for actual, terms, exact, name in (
        (gradients[2], rows, expected.dbias, "dbias"),
        (gradients[1], rows * xhat, expected.dweight, "dweight"),
    ):
        with np.errstate(over="ignore"):
            exact = exact.astype(F4).astype(np.float64)
        assert_within(actual, exact, 2.0**-22 * np.abs(terms).sum(axis=1) + 1e-44, name)
    return None


def mixed(case, rng, dtype):
    """Channels of all sizes side by side: ordinary ones at 0, 7, 14 ..., constant ones, zeros."""
    factors = np.array([1, 1e25, 1e-36, 0, 3.3e38, 1e-19, 1e19])
    x = spread_out(case, rng, np.float64, 1.0) * case.per_channel(
        np.resize(factors, case.channels)
    )  # fmt: skip
    dy = spread_out(case, rng, np.float64, 1.0) * case.per_channel(
        np.resize([1, 1, 1e-36, 1, 1e30, 0, 1e-30, 1e-19, 3e38], case.channels)
    )
    return case.memory.place(x.astype(dtype)), case.memory.place(dy.astype(dtype))


@pytest.mark.parametrize("dtype", [F4, BF], ids=["float32", "bfloat16"])
def test_ordinary_channels_are_as_without_such_neighbours(rng, isa, schedule, case, dtype):
    x, dy = mixed(case, rng, dtype)
    weight, bias = case.weight(rng, F4), case.bias(rng, F4)
    axis = case.channel_axis
    results = everything(x, dy, weight, bias, channel_axis=axis)
    ordinary = np.arange(0, case.channels, 63)
    others = np.setdiff1d(np.arange(case.channels), ordinary)
    calm_x, calm_dy = case.memory.place(x), case.memory.place(dy)
    for array in (calm_x, calm_dy):
        np.moveaxis(array, axis, 0)[others] = np.moveaxis(array, axis, 0)[0]
    calm = everything(calm_x, calm_dy, weight, bias, channel_axis=axis)
    for name, value in results.items():
        along = axis if value.ndim > 1 else 0
        assert_same_bits(
            np.ascontiguousarray(np.take(value, ordinary, along)),
            np.ascontiguousarray(np.take(calm[name], ordinary, along)),
            name,
        )
        rest = np.take(value, others, along).astype(np.float64)
        assert np.isfinite(rest).mean() > 0.5, name


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [F4, BF], ids=["float32", "bfloat16"])
def test_bits_are_the_same_whatever_runs(rng, case, dtype):
    x, dy = mixed(case, rng, dtype)
    weight, bias = case.weight(rng, F4), case.bias(rng, F4)
    options = {"channel_axis": case.channel_axis}
    assert_same_bits_whatever_runs(lambda: everything(x, dy, weight, bias, **options))


@pytest.mark.parametrize("dtype", [F4, BF], ids=["float32", "bfloat16"])
def test_zeros_and_constants_stay_exact(rng, isa, case, dtype):
    """What sums to 0 because it is 0 looks like what vanishes."""
    x, dy = spread_out(case, rng, dtype, 1.0), spread_out(case, rng, dtype, 1.0)
    axis = case.channel_axis
    values = case.per_channel(np.resize([0.0, -0.0, 0.5, 1e-30, 3e38], case.channels))
    x[...] = values.astype(dtype)
    y, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    assert (saved.m2 == 0).all()
    assert (saved.mean == values.reshape(-1).astype(dtype).astype(np.float64)).all()
    assert (y == 0).all()
    x = spread_out(case, rng, dtype, 1.0)
    _, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    dy[...] = dtype(0)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved)
    assert (dx == 0).all()
    assert (dweight == 0).all()
    assert (dbias == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_stays_in_its_channel(rng, isa, case, value):
    x, dy = mixed(case, rng, BF)
    axis = case.channel_axis
    clean = everything(x, dy, channel_axis=axis)
    np.moveaxis(x, axis, 0)[1].flat[3] = value
    spoiled = everything(x, dy, channel_axis=axis)
    others = np.setdiff1d(np.arange(case.channels), [1])
    for name in ("y", "dx", "m2", "mean"):
        along = axis if spoiled[name].ndim > 1 else 0
        one = np.take(spoiled[name], [1], along).astype(np.float64)
        assert not np.isfinite(one).any(), name
        assert_same_bits(
            np.ascontiguousarray(np.take(spoiled[name], others, along)),
            np.ascontiguousarray(np.take(clean[name], others, along)),
            name,
        )


@pytest.mark.parametrize("dtype", [F4, BF], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mean", "var"), [(0.0, 1e-80), (1e-40, 1e-82), (-3e38, 1e76), (2e38, 9e75), (0.0, 1e76)]
)
def test_given_statistics_at_the_ends(rng, isa, case, dtype, mean, var):
    """Statistics are float64 wherever they come from; rstd of 1e40 is no float32."""
    axis = case.channel_axis
    scale = np.sqrt(var)
    x = spread_out(case, rng, dtype, min(scale * 3, 3.3e38))
    means, variances = np.full(case.channels, mean), np.full(case.channels, var)
    y = bnext.normalize(x, means, variances, eps=0.0, channel_axis=axis)
    expected = reference.normalize(x, means, variances, eps=0.0, channel_axis=axis)
    assert_within(y, expected, 2.0 ** (-8 if dtype is BF else -22) * np.abs(expected).max(), "y")


@pytest.mark.parametrize("dtype", [F4, BF], ids=["float32", "bfloat16"])
def test_an_outlier_at_the_end_of_the_range(rng, isa, case, dtype):
    """Of a batch of ordinary values one is the largest that there is, of either sign."""
    x = spread_out(case, rng, dtype, 1.0)
    largest = ml_dtypes.finfo(dtype).max
    rows = np.moveaxis(x, case.channel_axis, 0)
    for channel in range(case.channels):
        rows[channel].flat[channel % case.count] = largest if channel % 2 else -largest
    y, saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)
    assert_moments_are_close(saved, x, case.channel_axis)
    expected = reference.forward(x, channel_axis=case.channel_axis)
    bound = 2.0 ** (-8 if dtype is BF else -22) * np.abs(expected).max()
    assert_within(y, expected, bound, "y")
