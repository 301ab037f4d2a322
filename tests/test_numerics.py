"""Where batch normalization goes wrong: far from zero, no variance, the ends of the range."""

import numpy as np
import pytest

import bnext

from . import reference
from .cases import FEW, named
from .compare import (
    assert_are_gradients,
    assert_are_moments,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
)
from .tolerances import VARIANCE_FAR_FROM_ZERO

pytestmark = pytest.mark.usefixtures("runtime")

BOTH_LAYOUTS = named(
    "NC", "NC-many-rows", "NCHW-7x7", "NCHW-2x2", "NCL-2-many-chunks", "NCHW-3x3-many-chunks",
    "NCHW-many-chunks", "NCHW-stored-NHWC",
)  # fmt: skip


@pytest.fixture(params=BOTH_LAYOUTS, ids=str)
def layout(request):
    return request.param


@pytest.mark.parametrize(
    ("ratio", "std"), [(1e4, 1.0), (-1e4, 1e-3), (1e6, 1.0), (-1e6, 1e3)], ids=str
)
def test_mean_far_from_zero(rng, layout, dtype, ratio, std):
    exact = rng.normal(ratio * std, std, layout.shape)
    x, dy = layout.memory.place(exact.astype(dtype)), layout.dy(rng, dtype)
    y, saved = bnext.batch_norm_forward(x, eps=0.0)
    assert_are_moments(saved, x)
    assert_is_forward(y, x, eps=0.0)
    var = reference.moments(x).var
    np.testing.assert_allclose(saved.var, var, rtol=VARIANCE_FAR_FROM_ZERO)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x, eps=0.0)


@pytest.mark.parametrize("ratio", [2**13, 2**17])
def test_mean_far_from_zero_known_in_advance(rng, layout, dtype, ratio):
    """Pairs about a mean of about 10^4 and 10^5 deviations: no reference is needed."""
    mean = rng.integers(-8, 9, layout.channels) / 2.0 + 2 * ratio
    x, m2 = layout.pairs(rng, dtype, mean)
    y, saved = bnext.batch_norm_forward(x, out=layout.poisoned(dtype))
    np.testing.assert_allclose(saved.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(saved.m2, m2, rtol=1e-9)
    assert_is_y(y, x, mean, m2 / layout.count)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e-30, 3e30])
def test_constant_channels_have_no_variance(rng, layout, dtype, value):
    value = dtype(value)
    x = layout.memory.place(np.full(layout.shape, value))
    weight, bias = layout.weight(rng, dtype), layout.bias(rng, dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias, out=layout.poisoned(dtype))
    assert (saved.mean == np.float64(value)).all()
    assert (saved.m2 == 0.0).all()
    assert (reference.per_channel(y) == bias.astype(np.float64)[:, None]).all()
    dy = layout.dy(rng, dtype)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    assert (gradients[1] == 0.0).all()
    assert_are_gradients(gradients, dy, x, weight)


@pytest.mark.parametrize(
    ("place", "outlier"), [("first", 1e3), ("first", -1e6), ("first", 1e12), ("last", 1e12)]
)
def test_outlier(rng, layout, dtype, outlier, place):
    """Algorithms that shift by the first element, or by a running mean, lose the others here."""
    x, dy = layout.x(rng, dtype), layout.dy(rng, dtype)
    end = 0 if place == "first" else -1
    np.moveaxis(x, 1, -1)[(end,) * (x.ndim - 1)] = outlier
    y, saved = bnext.batch_norm_forward(x)
    assert_are_moments(saved, x)
    assert_is_forward(y, x)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x)


@pytest.mark.parametrize("std", [1e-3, 1e-6, 1e-12, 1e-18])
def test_small_variance_without_eps(rng, layout, dtype, std):
    x = layout.memory.place((rng.normal(size=layout.shape) * std).astype(dtype))
    y, saved = bnext.batch_norm_forward(x, eps=0.0)
    assert_are_moments(saved, x)
    assert_is_forward(y, x, eps=0.0)
    dy = layout.dy(rng, dtype)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x, eps=0.0)


@pytest.mark.parametrize("std", [1e9, 1e18, 1e25])
def test_large_values(rng, layout, dtype, std):
    """The square of 1e25 is no float32; the variance of the channel still is a float64."""
    x = layout.memory.place((rng.normal(size=layout.shape) * std).astype(dtype))
    y, saved = bnext.batch_norm_forward(x)
    assert_are_moments(saved, x)
    assert_is_forward(y, x)
    dy = layout.dy(rng, dtype)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x)


def test_denormals_are_not_flushed(rng, layout, dtype):
    smallest = float(np.finfo(dtype).smallest_subnormal)
    units = rng.integers(-1000, 1001, layout.shape)
    x = layout.memory.place((units * smallest).astype(dtype))
    y, saved = bnext.batch_norm_forward(x)
    assert_is_forward(y, x)
    assert np.count_nonzero(y) > 0.9 * y.size
    np.testing.assert_allclose(saved.mean, reference.moments(x).mean, rtol=1e-6, atol=4 * smallest)
    # Ordinary values among them: they must not be lost either.
    normalized = bnext.normalize(x, np.zeros(layout.channels), np.ones(layout.channels), eps=0.0)
    assert_same_bits(normalized, x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_stays_in_its_channel(rng, layout, dtype, value):
    x, dy, weight = layout.x(rng, dtype), layout.dy(rng, dtype), layout.weight(rng, dtype)
    clean, clean_saved = bnext.batch_norm_forward(x, weight)
    clean_gradients = bnext.batch_norm_backward(dy, x, clean_saved, weight)
    spoiled = [0, layout.channels // 2, layout.channels - 1]
    others = np.setdiff1d(np.arange(layout.channels), spoiled)
    for channel in spoiled:
        channel_values = x[:, channel]
        channel_values[tuple(rng.integers(0, size) for size in channel_values.shape)] = value

    y, saved = bnext.batch_norm_forward(x, weight)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    for whole, whole_clean in ((y, clean), (dx, clean_gradients[0])):
        assert np.isnan(whole[:, spoiled]).all()
        assert_same_bits(whole[:, others], whole_clean[:, others])
    for vector, vector_clean in (
        (saved.mean, clean_saved.mean), (saved.m2, clean_saved.m2),
        (dweight, clean_gradients[1]),
    ):  # fmt: skip
        assert not np.isfinite(vector[spoiled]).any()
        assert_same_bits(vector[others], vector_clean[others])
    assert_same_bits(dbias, clean_gradients[2])  # has no x in it


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_in_dy_stays_in_its_channel(rng, layout, dtype, value):
    x, dy = layout.x(rng, dtype), layout.dy(rng, dtype)
    _, saved = bnext.batch_norm_forward(x)
    clean = bnext.batch_norm_backward(dy, x, saved)
    others = np.arange(1, layout.channels)
    dy[-1, 0] = value
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved)
    assert not np.isfinite(dx[:, 0]).any()
    assert_same_bits(dx[:, others], clean[0][:, others])
    for actual, expected in ((dweight, clean[1]), (dbias, clean[2])):
        assert not np.isfinite(actual[0])
        assert_same_bits(actual[others], expected[others])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inference_lets_each_element_be_its_own(rng, layout, dtype, value):
    """With given statistics an element is normalized by itself: NaN does not even spread."""
    x = layout.x(rng, dtype)
    mean, var = np.zeros(layout.channels), np.ones(layout.channels)
    clean = bnext.normalize(x, mean, var)
    x[0, 0] = value
    y = bnext.normalize(x, mean, var)
    expected = clean.copy()
    expected[0, 0] = value
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_not_a_number_in_a_parameter_stays_in_its_channel(rng, case, dtype):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    clean, _ = bnext.batch_norm_forward(x, weight, bias)
    weight[0] = np.nan
    bias[-1] = np.nan
    y, _ = bnext.batch_norm_forward(x, weight, bias)
    assert np.isnan(y[:, [0, -1]]).all()
    inside = np.arange(1, case.channels - 1)
    assert_same_bits(y[:, inside], clean[:, inside])


def test_counts_are_exact_past_the_floats(dtype):
    """2^24 + 2 values in one channel: a float32 count stands still at 2^24."""
    count = 2**24 + 2
    x = np.full((count // 2, 1, 2), 3, dtype)
    x += np.array([0.5, -0.5], dtype)
    m = bnext.moments(x)
    assert m.count == count
    assert m.mean.tolist() == [3.0]
    np.testing.assert_allclose(m.m2, [0.25 * count], rtol=1e-13)
