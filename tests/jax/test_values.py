"""Values of `bnext.jax` and their first gradients have the bits of the functions for NumPy."""

import numpy as np
import pytest

import bnext

from .support import ACTIVATIONS, DTYPES, Inputs, assert_same_bits, jax, jnp

GRADIENTS = ("dx", "dweight", "dbias", "dresidual")


def assert_agrees(inputs, activation=None, transform=lambda function: function):
    y, saved, gradients = inputs.by_numpy(activation)
    y_of_jax, moments, of_jax = inputs.by_jax(activation, transform)
    assert_same_bits(y_of_jax, y, "y")
    of_jax = [each for each in of_jax if each is not None]
    for name, actual, expected in zip(GRADIENTS, of_jax, gradients, strict=False):
        assert_same_bits(actual, expected, name)
    assert len(of_jax) == len(gradients) == (3 if inputs.residual is None else 4)
    dtype = inputs.weight.dtype
    assert moments.count == saved.count
    assert_same_bits(moments.mean, saved.mean.astype(dtype), "mean")
    assert_same_bits(moments.m2, saved.m2.astype(dtype), "m2")


@pytest.mark.parametrize("transform", [lambda function: function, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    ("shape", "channel_axis"),
    [((37, 19), -1), ((6, 5, 7, 19), -1), ((3, 5, 7, 9), 1), ((19, 4, 5), 0), ((64, 20), 1)],
)
def test_bits(rng, dtype, shape, channel_axis, transform):
    assert_agrees(Inputs(rng, shape, dtype, channel_axis), transform=transform)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: np.dtype(dtype).name)
def test_bits_of_epilogues(rng, dtype, activation, residual):
    assert_agrees(Inputs(rng, dtype=dtype, residual=residual), activation, jax.jit)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_bits_of_float64(rng, activation, residual):
    inputs = Inputs(rng, dtype=np.float64, residual=residual)
    inputs.x += 1e8  # where the mean has a low part
    assert_agrees(inputs, activation, jax.jit)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_bits_by_given_statistics(rng, dtype, activation, residual):
    inputs = Inputs(rng, dtype=dtype, residual=residual)
    arrays = (inputs.x, inputs.mean, inputs.var, *inputs.affine)
    expected = bnext.normalize(*arrays, **inputs.options(activation))
    actual = jax.jit(lambda *arrays: bnext.jax.normalize(*arrays, **inputs.options(activation)))(
        *arrays
    )
    assert_same_bits(actual, expected)


def test_without_parameters(rng):
    inputs = Inputs(rng)
    inputs.weight = inputs.bias = None
    y, saved = bnext.batch_norm_forward(inputs.x, channel_axis=-1)
    dx = bnext.batch_norm_backward(inputs.dy, inputs.x, saved)[0]
    actual, pull_back, _ = jax.vjp(bnext.jax.batch_norm, inputs.x, has_aux=True)
    assert_same_bits(actual, y)
    assert_same_bits(pull_back(inputs.dy)[0], dx)


def test_extremes(rng):
    """Where m2 in float32 overflows, y does not."""
    x = (rng.normal(size=(64, 5)) * 1e30).astype(np.float32)
    y, moments = jax.jit(bnext.jax.batch_norm)(x)
    assert_same_bits(y, bnext.batch_norm_forward(x)[0])
    assert np.isinf(moments.m2).all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 5, 4)])
def test_empty(shape):
    x = jnp.zeros(shape)
    y, moments = jax.jit(bnext.jax.batch_norm)(x)
    assert y.shape == shape
    assert moments.mean.shape == shape[-1:]
    gradient = jax.grad(lambda x: bnext.jax.batch_norm(x)[0].sum())(x)
    assert gradient.shape == shape


def test_moments(rng):
    x = rng.normal(size=(64, 20)).astype(np.float32)
    expected = bnext.moments(x)
    whole = jax.jit(bnext.jax.moments)(x)
    assert_same_bits(whole.mean, expected.mean.astype(np.float32))
    assert_same_bits(whole.m2, expected.m2.astype(np.float32))
    merged = bnext.jax.moments(x[:40]).merge(bnext.jax.moments(x[40:]))
    assert merged.count == 64
    np.testing.assert_allclose(merged.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(merged.var, expected.var, rtol=1e-5)
    np.testing.assert_allclose(whole.unbiased_var, expected.unbiased_var, rtol=1e-6)
    assert np.isnan(bnext.jax.moments(x[:1]).unbiased_var).all()


@pytest.mark.parametrize("bessel", [True, False])
def test_running_statistics(rng, bessel):
    inputs = Inputs(rng, (64, 20))
    layer = bnext.BatchNorm1d(20, estimator=bnext.Exponential(0.3, bessel=bessel))
    mean, var = jnp.zeros(20), jnp.ones(20)
    for _ in range(3):
        layer(inputs.x)
        moments = bnext.jax.batch_norm(inputs.x)[1]
        mean, var = bnext.jax.move_running(mean, var, moments, 0.3, bessel=bessel)
    np.testing.assert_allclose(mean, layer.running_mean, rtol=1e-6)
    np.testing.assert_allclose(var, layer.running_var, rtol=1e-6)
