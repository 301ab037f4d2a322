"""Gradients of `bnext.jax`, of first and second order, beside plain formulas in float64."""

import functools

import numpy as np
import pytest

import bnext

from ..activations import SLOPE
from .support import ACTIVATIONS, Inputs, check_grads, close, in_float64, jax, jnp, plain

# Sums of some hundred values in float32, in the formulas; relative to the largest value.
TANGENT = 2e-5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"])
def test_jax_check_grads(rng, activation, residual):
    inputs = Inputs(rng, (5, 3, 4), np.float64, residual=residual)

    def function(x, weight, bias, residual=None):
        y, moments = bnext.jax.batch_norm(x, weight, bias, residual=residual, activation=activation)
        return y, moments.mean, moments.var

    arrays = [inputs.x, *inputs.affine, *([inputs.residual] if residual else [])]
    check_grads(function, arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [None, "silu", "tanh"])
def test_jax_check_grads_by_given_statistics(rng, activation):
    inputs = Inputs(rng, (5, 3, 4), np.float64, residual=True)

    def function(*arrays):
        *arrays, residual = arrays
        return bnext.jax.normalize(*arrays, residual=residual, activation=activation)

    arrays = (inputs.x, inputs.mean, inputs.var, *inputs.affine, inputs.residual)
    check_grads(function, arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_jax_check_grads_of_moments(rng):
    x = rng.normal(size=(5, 3, 4))
    check_grads(lambda x: bnext.jax.moments(x)[1:], (x,), order=2, rtol=1e-4, atol=1e-4)


def hessian_products(loss, arrays, directions):
    """In both ways to write them."""
    gradient = jax.grad(loss, argnums=range(len(arrays)))

    def along(*arrays):
        pairs = zip(gradient(*arrays), directions, strict=True)
        return sum((g * v).sum() for g, v in pairs)

    forward = jax.jvp(gradient, tuple(arrays), tuple(directions))[1]
    return forward, jax.grad(along, argnums=range(len(arrays)))(*arrays)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_jax_hessian_vector_products_in_float32(rng, activation, residual):
    inputs = Inputs(rng, (8, 5, 7), residual=residual)
    arrays = [inputs.x, *inputs.affine, *([inputs.residual] if residual else [])]
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in arrays]
    options = {"activation": activation, "negative_slope": SLOPE}

    def loss(x, weight, bias, residual=None):
        y, moments = bnext.jax.batch_norm(x, weight, bias, residual=residual, **options)
        return (y * y * inputs.dy).sum() + (moments.mean * moments.var).sum()

    def loss_of_plain(x, weight, bias, residual=None):
        y, mean, m2 = plain(x, weight, bias, residual, activation=activation)
        return (y * y * inputs.dy).sum() + (mean * m2 / 40).sum()

    actual = jax.jit(functools.partial(hessian_products, loss))(arrays, directions)
    expected = in_float64(functools.partial(hessian_products, loss_of_plain), arrays, directions)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, TANGENT)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_jax_hessian_vector_products_far_from_zero(rng, mean):
    inputs = Inputs(rng, (64, 7))
    inputs.x += np.float32(mean)
    direction = rng.normal(size=inputs.x.shape).astype(np.float32)

    def loss(normalized, x):
        return (normalized(x, *inputs.affine)[0] ** 3 * inputs.dy).sum()

    def product(normalized, x, direction):
        return jax.jvp(jax.grad(functools.partial(loss, normalized)), (x,), (direction,))[1]

    actual = product(bnext.jax.batch_norm, inputs.x, direction)
    expected = in_float64(functools.partial(product, plain), inputs.x, direction)
    close(actual, expected, TANGENT)


def test_jax_hessian_vector_products_by_given_statistics(rng):
    inputs = Inputs(rng, (8, 5, 7), residual=True)
    arrays = [inputs.x, inputs.mean, inputs.var, *inputs.affine, inputs.residual]
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in arrays]

    def loss(x, mean, var, weight, bias, residual):
        y = bnext.jax.normalize(x, mean, var, weight, bias, residual=residual, activation="gelu")
        return (y * y * inputs.dy).sum()

    def loss_of_plain(x, mean, var, weight, bias, residual):
        y = plain(x, weight, bias, residual, activation="gelu", statistics=(mean, var))[0]
        return (y * y * inputs.dy).sum()

    actual = hessian_products(loss, arrays, directions)
    expected = in_float64(functools.partial(hessian_products, loss_of_plain), arrays, directions)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, TANGENT)


def test_jax_the_gradient_is_a_kernel(rng):
    """First gradients call kernels; of XLA's own operations nothing has the size of x."""
    inputs = Inputs(rng, (64, 20))

    def loss(x, weight, bias):
        return (bnext.jax.batch_norm(x, weight, bias)[0] * inputs.dy).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(inputs.x, *inputs.affine).as_text()
    assert text.count("@bnext_forward") == text.count("@bnext_backward") == 1
    assert "stablehlo.subtract" not in text


def test_jax_a_constant_weight_has_no_gradient(rng):
    inputs = Inputs(rng, (64, 20))
    gradient = jax.grad(lambda x: jnp.sum(bnext.jax.batch_norm(x, *inputs.affine)[0] * inputs.dy))
    _, _, expected = inputs.by_numpy()
    np.testing.assert_array_equal(gradient(inputs.x), expected[0])
