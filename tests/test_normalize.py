"""normalize: inference with given statistics."""

import numpy as np
import pytest

import bnext

from .cases import FEW
from .compare import assert_is_forward, assert_is_y, assert_same_bits, assert_same_memory_order

pytestmark = pytest.mark.usefixtures("runtime")


def statistics(rng, case, dtype):
    return (
        rng.uniform(-2, 2, case.channels).astype(dtype),
        rng.uniform(0.25, 4, case.channels).astype(dtype),
    )


def test_agrees_with_the_definition(rng, case, dtype):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    mean, var = statistics(rng, case, dtype)
    before = x.copy()
    axis = case.channel_axis
    fresh = bnext.normalize(x, mean, var, weight, bias, channel_axis=axis)
    assert_same_memory_order(fresh, x)
    assert_is_y(fresh, x, mean, var, weight, bias, channel_axis=axis)

    out = case.poisoned(dtype)
    y = bnext.normalize(x, mean, var, weight, bias, channel_axis=axis, out=out)
    assert y is out
    assert_same_bits(y, fresh)
    assert_same_bits(x, before, "x")


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=str)
def test_weight_and_bias_are_each_optional(rng, case, dtype, given):
    affine = {name: getattr(case, name)(rng, dtype) for name in given}
    x = case.x(rng, dtype)
    mean, var = statistics(rng, case, dtype)
    assert_is_y(bnext.normalize(x, mean, var, **affine), x, mean, var, **affine)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_statistics_may_be_float64_whatever_the_data(rng, case, dtype):
    x = case.x(rng, dtype)
    mean, var = statistics(rng, case, np.float64)
    y = bnext.normalize(x, mean, var)
    assert y.dtype == dtype
    assert_is_y(y, x, mean, var)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_with_the_batch_s_own_statistics_it_is_the_forward_pass(rng, case, dtype):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, weight, bias)
    y = bnext.normalize(x, saved.mean, saved.var, weight, bias)
    assert_is_forward(y, x, weight, bias)


@pytest.mark.parametrize("ratio", [1e4, 1e6])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_a_mean_far_from_zero_does_not_cancel(rng, case, dtype, ratio):
    """float64 statistics of float32 data: the mean has digits that float32 cannot hold."""
    x = (case.x(rng, np.float64) + ratio).astype(dtype)
    mean = np.full(case.channels, ratio) + rng.normal(size=case.channels)
    var = rng.uniform(0.25, 4, case.channels)
    assert_is_y(bnext.normalize(x, mean, var), x, mean, var)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 1, 100.0])
def test_eps_is_added_to_the_variance(rng, dtype, eps):
    x = rng.normal(size=(7, 5, 3)).astype(dtype)
    mean, var = np.zeros(5, dtype), rng.uniform(0.25, 4, 5).astype(dtype)
    assert_is_y(bnext.normalize(x, mean, var, eps=eps), x, mean, var, eps=eps)


def test_zero_variance_without_eps_gives_the_bias(dtype):
    x = np.array([[1, 1], [2, 2]], dtype)
    y = bnext.normalize(x, [0.0, 0.0], [0.0, 4.0], bias=np.array([7, 1], dtype), eps=0.0)
    assert y.tolist() == [[7.0, 1.5], [7.0, 2.0]]


def test_negative_variance_is_not_a_number(dtype):
    """A variance below -eps has no root; it spoils its own channel, silently as in torch."""
    x = np.ones((3, 2), dtype)
    y = bnext.normalize(x, [0.0, 0.0], [-1.0, 1.0], eps=0.0)
    assert np.isnan(y[:, 0]).all()
    assert y[:, 1].tolist() == [1.0, 1.0, 1.0]


def test_empty_batch(empty_case, dtype):
    case = empty_case
    x = np.empty(case.shape, dtype)
    zeros = np.zeros(case.channels, dtype)
    y = bnext.normalize(x, zeros, zeros, channel_axis=case.channel_axis)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
