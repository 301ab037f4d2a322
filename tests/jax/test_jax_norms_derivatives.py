"""Gradients of the norms of examples, of first and second order, beside plain formulas."""

import functools

import numpy as np
import pytest

import bnext

from .norms import SUBJECTS, Inputs
from .support import check_grads, close, in_float64, jax, jnp

TANGENT = 2e-5  # in float32, relative to the largest value


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_jax_norms_check_grads(rng, subject):
    inputs = Inputs(rng, subject, np.float64)
    check_grads(inputs.norm.by_jax, inputs.arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


def products(loss, arrays, directions):
    """Hessian-vector products, in both ways to write them."""
    gradient = jax.grad(loss, argnums=range(len(arrays)))

    def along(*arrays):
        pairs = zip(gradient(*arrays), directions, strict=True)
        return sum((g * v).sum() for g, v in pairs)

    forward = jax.jvp(gradient, tuple(arrays), tuple(directions))[1]
    return gradient(*arrays), forward, jax.grad(along, argnums=range(len(arrays)))(*arrays)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_jax_norms_second_derivatives_in_float32(rng, subject):
    """Near zero and far from it, with the same two programs."""
    inputs = Inputs(rng, subject)
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in inputs.arrays]

    def loss(norm, *arrays):
        return (norm(*arrays) ** 3 * inputs.dy).sum()

    mine, plain = (
        jax.jit(functools.partial(products, functools.partial(loss, norm)))
        for norm in (inputs.norm.by_jax, inputs.norm.plain)
    )
    for mean in (0, 1e3):
        if "rms" not in subject:
            inputs.x += np.float32(mean)
        actual = mine(inputs.arrays, directions)
        expected = in_float64(plain, inputs.arrays, directions)
        for one, other in zip(actual, expected, strict=True):
            close(one, other, TANGENT)


@pytest.mark.parametrize("subject", ["layer", "rms", "group, channels last"])
def test_jax_norms_second_derivatives_of_narrow_data(rng, subject):
    inputs = Inputs(rng, subject, jnp.bfloat16)
    direction = inputs.dy

    def product(norm, x):
        gradient = jax.grad(lambda x: (norm(x, *inputs.affine).astype(np.float32) ** 2).sum())
        return jax.jvp(gradient, (x,), (direction.astype(x.dtype),))[1]

    actual = product(inputs.norm.by_jax, jnp.asarray(inputs.x))
    assert actual.dtype == jnp.bfloat16
    plain = jax.jit(functools.partial(product, inputs.norm.plain))
    close(actual, plain(inputs.x.astype(np.float32)), 3e-2)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_jax_norms_the_gradient_is_a_kernel(rng, subject):
    inputs = Inputs(rng, subject)

    def loss(*arrays):
        return (inputs.norm.by_jax(*arrays) * inputs.dy).sum()

    gradient = jax.jit(jax.grad(loss, argnums=range(len(inputs.arrays))))
    text = gradient.lower(*inputs.arrays).as_text()
    kind = "cells" if hasattr(inputs.norm, "groups") else "rows"
    assert text.count(f"@bnext_{kind}_forward") == text.count(f"@bnext_{kind}_backward") == 1
    assert "stablehlo.subtract" not in text


def test_jax_norms_a_bias_of_rms(rng):
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
