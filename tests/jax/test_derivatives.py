"""Gradients of `bnext.jax`, of first and second order, beside plain formulas in float64."""

import functools

import numpy as np
import pytest

import bnext

from .norms import ADDED, ALL, SUBJECTS, Inputs
from .support import ACTIVATIONS, check_grads, close, in_float64, jax, jnp, plain
from .support import Inputs as OfBatch

# Sums of some hundred values in float32, in the formulas; relative to the largest value.
TANGENT = 2e-5


# A subject, what changes in it, and whether there is a residual.
CHECKED = [
    *(("batch", {"activation": name, "shape": (5, 3, 4)}, adds)
      for name in (None, "silu", "gelu", "gelu_tanh", "sigmoid", "tanh") for adds in (False, True)),
    *((subject, {}, False) for subject in SUBJECTS),
    *((subject, {"activation": "tanh"}, True) for subject in ADDED),
]  # fmt: skip
# The same behind a mean that is far from 0, or not.
SECOND = [
    *(("batch", {"activation": name}, adds, 0.0) for name in (None, *ACTIVATIONS)
      for adds in (False, True)),
    *((subject, {}, False, 0.0) for subject in SUBJECTS),
    *((subject, {"activation": name}, True, 0.0) for subject in ADDED for name in ("silu", None)),
    ("batch", {}, False, 1e4),
    *((subject, {}, False, 1e3) for subject in SUBJECTS if "rms" not in subject),
]  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("subject", "changed", "adds"), CHECKED, ids=str)
def test_check_grads(rng, subject, changed, adds):
    inputs = Inputs(rng, subject, np.float64, adds, **changed)
    check_grads(inputs.results, inputs.arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("activation", [None, "silu", "tanh"])
def test_check_grads_by_given_statistics(rng, activation):
    inputs = OfBatch(rng, (5, 3, 4), np.float64, residual=True)

    def function(*arrays):
        *arrays, residual = arrays
        return bnext.jax.normalize(*arrays, residual=residual, activation=activation)

    arrays = (inputs.x, inputs.mean, inputs.var, *inputs.affine, inputs.residual)
    check_grads(function, arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("x64")
def test_check_grads_of_moments(rng):
    x = rng.normal(size=(5, 3, 4))
    check_grads(lambda x: bnext.jax.moments(x)[1:], (x,), order=2, rtol=1e-4, atol=1e-4)


def products(loss, arrays, directions, twice=True):
    """Gradients, and Hessian-vector products, in one or both ways to write them."""
    gradient = jax.grad(loss, argnums=range(len(arrays)))
    first, forward = jax.jvp(gradient, tuple(arrays), tuple(directions))
    if not twice:
        return first, forward

    def along(*arrays):
        pairs = zip(gradient(*arrays), directions, strict=True)
        return sum((g * v).sum() for g, v in pairs)

    return first, forward, jax.grad(along, argnums=range(len(arrays)))(*arrays)


def assert_as_in_float64(losses, arrays, directions, twice=True, transform=jax.jit):
    """Products of the first loss, in float32, equal products of the second in float64."""
    mine, plain = (functools.partial(products, each, twice=twice) for each in losses)
    actual = transform(mine)(arrays, directions)
    close(actual, in_float64(plain, arrays, directions), TANGENT)


@pytest.mark.parametrize(("subject", "changed", "adds", "mean"), SECOND, ids=str)
def test_second_derivatives_in_float32(rng, subject, changed, adds, mean):
    inputs = Inputs(rng, subject, adds=adds, **changed)
    inputs.x += np.float32(mean)
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in inputs.arrays]

    def loss(results, *arrays):
        y, *moments = results(*arrays)
        of_moments = (moments[0] * moments[1]).sum() if moments and not mean else 0.0
        return (y * y * (1.0 if moments else y) * inputs.dy).sum() + of_moments

    losses = [functools.partial(loss, of) for of in (inputs.results, inputs.plain_results)]
    twice = subject == "batch" or not adds
    assert_as_in_float64(losses, inputs.arrays, directions, twice)


def test_hessian_vector_products_by_given_statistics(rng):
    inputs = OfBatch(rng, (8, 5, 7), residual=True)
    arrays = [inputs.x, inputs.mean, inputs.var, *inputs.affine, inputs.residual]
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in arrays]

    def loss(x, mean, var, weight, bias, residual):
        y = bnext.jax.normalize(x, mean, var, weight, bias, residual=residual, activation="gelu")
        return (y * y * inputs.dy).sum()

    def loss_of_plain(x, mean, var, weight, bias, residual):
        y = plain(x, weight, bias, residual, activation="gelu", statistics=(mean, var))[0]
        return (y * y * inputs.dy).sum()

    losses = loss, loss_of_plain
    assert_as_in_float64(losses, arrays, directions, transform=lambda function: function)


@pytest.mark.parametrize("subject", ALL)
def test_the_gradient_is_a_kernel(rng, subject):
    """First gradients call kernels; of XLA's own operations nothing has the size of x."""
    inputs = Inputs(rng, subject)

    def loss(*arrays):
        return (inputs.by_jax(*arrays) * inputs.dy).sum()

    gradient = jax.jit(jax.grad(loss, argnums=range(len(inputs.arrays))))
    text = gradient.lower(*inputs.arrays).as_text()
    kernel = inputs.norm.kernel
    assert text.count(f"@{kernel}_forward") == text.count(f"@{kernel}_backward") == 1
    assert "stablehlo.subtract" not in text


def test_a_constant_weight_has_no_gradient(rng):
    inputs = OfBatch(rng, (64, 20))
    gradient = jax.grad(lambda x: jnp.sum(bnext.jax.batch_norm(x, *inputs.affine)[0] * inputs.dy))
    _, _, expected = inputs.by_numpy()
    np.testing.assert_array_equal(gradient(inputs.x), expected[0])


@pytest.mark.parametrize("subject", ["layer", "rms", "group, channels last"])
def test_norms_second_derivatives_of_narrow_data(rng, subject):
    inputs = Inputs(rng, subject, jnp.bfloat16)
    direction = inputs.dy

    def product(norm, x):
        gradient = jax.grad(lambda x: (norm(x, *inputs.affine).astype(np.float32) ** 2).sum())
        return jax.jvp(gradient, (x,), (direction.astype(x.dtype),))[1]

    actual = product(inputs.norm.by_jax, jnp.asarray(inputs.x))
    assert actual.dtype == jnp.bfloat16
    plain = jax.jit(functools.partial(product, inputs.norm.plain))
    close(actual, plain(inputs.x.astype(np.float32)), 3e-2)


def test_norms_a_bias_of_rms(rng):
    """Which Equinox has: among the functions it is internal."""
    from bnext.jax.row_norms import normalized_rows

    x, dy = rng.normal(size=(2, 8, 6)).astype(np.float32)
    weight, bias = rng.normal(size=(2, 6)).astype(np.float32)

    def loss(norm, *arrays):
        return (norm(*arrays) ** 2 * dy).sum()

    def mine(x, weight, bias):
        return normalized_rows(x, 6, weight, bias, 1e-5, centered=False)

    def plain(x, weight, bias):
        return bnext.jax.rms_norm(x, 6, weight, eps=1e-5) + bias

    arrays = (x, weight, bias), (dy, bias, weight)
    actual, expected = (
        jax.jit(functools.partial(products, functools.partial(loss, norm)))(*arrays)
        for norm in (mine, plain)
    )
    close(actual, expected, TANGENT)
    close(mine(x, None, bias), plain(x, None, bias), 1e-6)
