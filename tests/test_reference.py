"""The reference itself: against finite differences, torch and answers known in advance."""

import numpy as np
import pytest

from . import reference
from .cases import CASES, EMPTY, Memory, named
from .numerical import numerical_gradient
from .tolerances import FINITE_DIFFERENCE

TINY = [((5, 3), 1), ((2, 4, 3), 1), ((2, 3, 2, 2), 1), ((2, 2, 3, 3), -1), ((4, 3), 0)]


def channels_of(shape, channel_axis):
    return shape[channel_axis]


@pytest.mark.parametrize(("shape", "axis"), TINY)
@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
def test_backward_is_the_derivative_of_forward(rng, shape, axis, argument):
    channels = channels_of(shape, axis)
    values = {
        "x": rng.normal(size=shape),
        "weight": rng.uniform(0.5, 2, channels),
        "bias": rng.normal(size=channels),
    }
    dy = rng.normal(size=shape)

    def loss(varied):
        return (dy * reference.forward(**(values | {argument: varied}), channel_axis=axis)).sum()

    gradients = reference.backward(dy, values["x"], values["weight"], channel_axis=axis)
    expected = numerical_gradient(loss, values[argument])
    actual = {"x": gradients.dx, "weight": gradients.dweight, "bias": gradients.dbias}[argument]
    np.testing.assert_allclose(actual, expected, atol=FINITE_DIFFERENCE * np.abs(expected).max())


@pytest.mark.parametrize(("shape", "axis"), TINY)
@pytest.mark.parametrize("argument", ["x", "weight"])
def test_backward_constant_is_the_derivative_of_normalize(rng, shape, axis, argument):
    channels = channels_of(shape, axis)
    mean, var = rng.normal(size=channels), rng.uniform(0.5, 2, channels)
    values = {"x": rng.normal(size=shape), "weight": rng.uniform(0.5, 2, channels)}
    dy = rng.normal(size=shape)

    def loss(varied):
        given = values | {argument: varied}
        y = reference.normalize(given["x"], mean, var, given["weight"], channel_axis=axis)
        return (dy * y).sum()

    gradients = reference.backward_constant(
        dy, values["x"], mean, var, values["weight"], channel_axis=axis
    )
    expected = numerical_gradient(loss, values[argument])
    actual = {"x": gradients.dx, "weight": gradients.dweight}[argument]
    np.testing.assert_allclose(actual, expected, atol=FINITE_DIFFERENCE * np.abs(expected).max())


@pytest.mark.parametrize(
    "case", named("NC", "NCL", "NCHW-7x7", "NCDHW", "NCHW-two-values"), ids=str
)
def test_agrees_with_torch(torch, rng, case):
    x, dy = case.x(rng, np.float64), case.dy(rng, np.float64)
    weight, bias = case.weight(rng, np.float64), case.bias(rng, np.float64)
    leaves = [torch.tensor(value, requires_grad=True) for value in (x, weight, bias)]
    y = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True)
    y.backward(torch.tensor(dy))

    np.testing.assert_allclose(reference.forward(x, weight, bias), y.detach(), atol=1e-12)
    for actual, leaf in zip(reference.backward(dy, x, weight), leaves, strict=True):
        np.testing.assert_allclose(actual, leaf.grad, atol=1e-11)


def test_pairs_have_the_moments_they_were_made_with(rng, case):
    mean = rng.integers(-8, 9, case.channels) / 2.0
    x, m2 = case.pairs(rng, np.float32, mean)
    assert x.shape == case.shape
    actual = reference.moments(x, case.channel_axis)
    assert actual.count == case.count
    np.testing.assert_allclose(actual.mean, mean, atol=1e-14)
    np.testing.assert_allclose(actual.m2, m2, rtol=1e-13)


def test_rstd_is_zero_where_variance_and_eps_are():
    assert reference.rstd([0.0, 4.0], 0).tolist() == [0.0, 0.5]
    assert reference.rstd([0.0], 0.25).tolist() == [2.0]
    assert np.isnan(reference.rstd([np.nan], 0.0)).all()


def test_memory_is_what_it_says():
    whole, view = Memory(order=(0, 2, 1), steps={1: -2}, margins={2: (1, 3)}, offset=1).allocate(
        (5, 3, 2), np.float32, fill=7.0
    )
    assert whole.shape == (5, 6, 6)
    assert view.strides == (144, -8, 24)
    assert view.ctypes.data % 64 == 1 + 24 + 16
    view[...] = 0.0
    assert (whole == 7.0).sum() == whole.size - view.size
    assert np.shares_memory(whole, view)


@pytest.mark.parametrize("case", CASES + EMPTY, ids=str)
def test_every_case_lies_where_it_says(rng, case):
    x = case.x(rng, np.float32)
    assert x.shape == case.shape
    assert np.isfinite(x).all()
    assert x.ctypes.data % 4 == case.memory.offset % 4
    assert np.isnan(case.poisoned(np.float32)).all()
    assert case.poisoned(np.float32).strides == x.strides
