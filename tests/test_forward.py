"""batch_norm_forward: y, and what it saves, against the definition and against known answers."""

import numpy as np
import pytest

import bnext

from . import reference
from .cases import FEW, named
from .compare import (
    assert_are_moments,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
    assert_same_memory_order,
    assert_within,
    largest,
    units,
)
from .tolerances import FEW_ROUNDINGS, Y_OF_MOST

pytestmark = pytest.mark.usefixtures("runtime")


def test_agrees_with_the_definition(rng, case, dtype):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    before = x.copy()
    axis = case.channel_axis
    fresh, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    assert fresh.dtype == dtype
    assert type(fresh) is np.ndarray
    assert_same_memory_order(fresh, x)
    assert_is_forward(fresh, x, weight, bias, channel_axis=axis)
    assert_are_moments(saved, x, channel_axis=axis)

    out = case.poisoned(dtype)
    y, _ = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, out=out)
    assert y is out
    assert_same_bits(y, fresh)
    assert_same_bits(x, before, "x")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_most_elements_are_closer_than_the_bound(rng, case, dtype):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    y, _ = bnext.batch_norm_forward(x, weight, bias)
    expected = reference.per_channel(reference.forward(x, weight, bias))
    allowed = Y_OF_MOST[dtype] * units(largest(expected), dtype)
    far = np.abs(reference.per_channel(y) - expected) > allowed[:, None]
    assert far.mean() <= 0.01


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("given", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_weight_and_bias_are_each_optional(rng, case, dtype, given):
    affine = {name: getattr(case, name)(rng, dtype) for name in given}
    x = case.x(rng, dtype)
    y, _ = bnext.batch_norm_forward(x, **affine)
    assert_is_forward(y, x, **affine)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_finds_the_mean_that_was_put_in(rng, case, dtype):
    mean = rng.integers(-16, 17, case.channels) / 2.0
    x, m2 = case.pairs(rng, dtype, mean)
    y, saved = bnext.batch_norm_forward(x, out=case.poisoned(dtype))
    allowed = FEW_ROUNDINGS * units(np.abs(mean) + 4, np.float64)  # pairs are within 4 of it
    assert_within(saved.mean, mean, allowed, "mean")
    np.testing.assert_allclose(saved.m2, m2, rtol=1e-12)
    assert_is_y(y, x, mean, m2 / case.count)


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 100])
def test_eps_is_added_to_the_variance(rng, case, dtype, eps):
    x = case.x(rng, dtype)
    y, saved = bnext.batch_norm_forward(x, eps=eps)
    assert saved.eps == eps
    assert_is_forward(y, x, eps=eps)


def test_rstd_is_zero_where_variance_and_eps_are(dtype):
    x = np.array([[3, 1], [3, 2], [3, 3]], dtype)
    y, saved = bnext.batch_norm_forward(x, bias=np.array([5, 0], dtype), eps=0.0)
    assert saved.rstd[0] == 0.0
    assert y[:, 0].tolist() == [5.0, 5.0, 5.0]
    assert np.isfinite(y).all()


@pytest.mark.parametrize("case", named("NC", "NCHW-7x7", "NHWC", "channels-inside-5d"), ids=str)
def test_negative_channel_axis_counts_from_the_end(rng, case, dtype):
    x = case.x(rng, dtype)
    axis = case.channel_axis % x.ndim
    y, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    same, same_saved = bnext.batch_norm_forward(x, channel_axis=axis - x.ndim)
    assert_same_bits(same, y)
    assert same_saved.channel_axis == saved.channel_axis == axis
    assert_is_forward(y, x, channel_axis=axis)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_saved_holds_what_backward_needs(rng, case, dtype):
    x = case.x(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, eps=1e-3)
    assert isinstance(saved, bnext.Saved)
    assert (saved.shape, saved.dtype, saved.channel_axis) == (x.shape, dtype, 1)
    assert saved.count == case.count
    assert type(saved.count) is int
    assert saved.batch_statistics is True
    for value in (saved.mean, saved.m2, saved.var, saved.rstd):
        assert value.dtype == np.float64
        assert value.shape == (case.channels,)
    np.testing.assert_allclose(saved.var, saved.m2 / case.count, rtol=1e-15)
    rstd = reference.rstd(saved.var, 1e-3)
    np.testing.assert_allclose(saved.rstd, rstd, rtol=FEW_ROUNDINGS * 2.0**-53)


def test_saved_cannot_be_changed(rng, dtype):
    (case,) = named("NC")
    x = case.x(rng, dtype)
    _, saved = bnext.batch_norm_forward(x)
    mean = saved.mean.copy()
    for name in ("count", "mean", "m2", "var", "rstd", "eps", "shape", "dtype", "channel_axis"):
        with pytest.raises(AttributeError):
            setattr(saved, name, getattr(saved, name))
    with pytest.raises(ValueError, match="read-only"):
        saved.mean[0] = 7.0
    assert_same_bits(saved.mean, mean)


def test_empty_batch(empty_case, dtype):
    case = empty_case
    weight, bias = np.ones(case.channels, dtype), np.ones(case.channels, dtype)
    x = np.empty(case.shape, dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=case.channel_axis)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert saved.count == case.count
    assert saved.mean.tolist() == saved.m2.tolist() == [0.0] * case.channels


def test_channels_alone_are_one_value_each(dtype):
    x = np.array([1, 2, 3], dtype)
    assert bnext.moments(x, channel_axis=0).mean.tolist() == [1.0, 2.0, 3.0]
    y = bnext.normalize(x, np.zeros(3, dtype), np.ones(3, dtype), eps=0.0, channel_axis=0)
    assert_same_bits(y, x)


def test_lists_are_arrays_of_float64():
    values = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]
    y, saved = bnext.batch_norm_forward(values, [1.0, 2.0], [0.5, 0.25])
    assert y.dtype == saved.dtype == np.float64
    assert_is_forward(y, np.array(values), [1.0, 2.0], [0.5, 0.25])


def test_functional_holds_the_same_functions():
    for name in ("batch_norm_forward", "batch_norm_backward", "moments", "normalize"):
        assert getattr(bnext.functional, name) is getattr(bnext, name)
