"""Masks and weights of `bnext.jax` alone, and beside an activation and a residual."""

import functools

import numpy as np
import pytest

import bnext

from .support import (
    DTYPES,
    SLOPE,
    Inputs,
    activated,
    assert_same_bits,
    check_grads,
    close,
    in_float64,
    jax,
    jnp,
)
from .test_masks import KINDS, OUTSIDES, SHAPES, assert_agrees, given, plain, spoil

# Flags of a bit where both are there and the derivative is a step; z again elsewhere.
COMBINATIONS = [
    ("relu", True), ("silu", True), (None, True), ("leaky_relu", False), ("gelu", False),
    ("relu6", True), ("relu", False),
]  # fmt: skip
EACH = pytest.mark.parametrize(("activation", "residual"), COMBINATIONS, ids=str)
PLAIN = (None, False)
ALL = pytest.mark.parametrize(("activation", "residual"), [PLAIN, *COMBINATIONS], ids=str)


@EACH
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_masks_bits_of_epilogues(rng, shape, axis, activation, residual):
    for kind in ("mask", "weights of examples"):
        inputs = Inputs(rng, shape, channel_axis=axis, residual=residual)
        assert_agrees(inputs, given(rng, inputs, kind), activation)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_bits_of_kinds(rng, kind):
    """Also of masks that leave nothing, and of those that are none."""
    for activation, residual in ((None, True), ("relu", True), ("gelu", False)):
        inputs = Inputs(rng, (6, 5, 19), residual=residual)
        assert_agrees(inputs, given(rng, inputs, kind), activation)


@pytest.mark.parametrize("masked", OUTSIDES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_masks_bits_of_dtypes_beside_nan(rng, dtype, masked):
    kinds = "mask", "sample_weight", "mask", "both", "mask", "both"
    for kind, (activation, residual) in zip(kinds, [PLAIN] * 2 + COMBINATIONS, strict=False):
        inputs = Inputs(rng, (6, 5, 19), dtype, residual=residual)
        options = given(rng, inputs, kind)
        spoil(inputs, np.logical_and(*[each > 0 for each in [*options.values()] * 2][:2]))
        assert_agrees(inputs, {**options, "masked": masked}, activation)


def inference(inputs, activation, options):
    """`normalize` of an input's arrays, as functions of them all; by NumPy and in a program."""
    applied = {"activation": activation, "negative_slope": SLOPE, "channel_axis": -1}

    def in_program(*arrays):
        *inputs, residual = arrays if len(arrays) == 6 else (*arrays, None)
        return bnext.jax.normalize(*inputs, residual=residual, **applied, **options)

    arrays = (inputs.x, inputs.mean, inputs.var, *inputs.affine)
    expected = bnext.normalize(*arrays, residual=inputs.residual, **applied, **options)
    return in_program, arrays + (() if inputs.residual is None else (inputs.residual,)), expected


OF_GIVEN = [
    *((*each, "zero") for each in COMBINATIONS), *((*PLAIN, masked) for masked in OUTSIDES)
]  # fmt: skip


@pytest.mark.parametrize(("activation", "residual", "masked"), OF_GIVEN, ids=str)
@pytest.mark.parametrize("kind", ["mask", "sample_weight", "none", "all"])
def test_masks_by_given_statistics(rng, kind, activation, residual, masked):
    """Gradients are the unmasked ones of dy that is 0 where positions do not count."""
    inputs = Inputs(rng, (6, 5, 19), residual=residual)
    options = given(rng, inputs, kind)
    counts = np.expand_dims(np.broadcast_to(next(iter(options.values())) > 0, (6, 5)), -1)
    clean, arrays, _ = inference(inputs, activation, {})
    _, pull_back = jax.vjp(jax.jit(clean), *arrays)
    expected = pull_back(np.where(counts, inputs.dy, np.float32(0)))
    spoil(inputs, counts[..., 0])
    function, arrays, y = inference(inputs, activation, {**options, "masked": masked})
    actual, pull_back = jax.vjp(jax.jit(function), *arrays)
    assert_same_bits(actual, y)
    close(pull_back(inputs.dy), expected, 1e-6)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
@pytest.mark.parametrize(
    ("activation", "residual"), [PLAIN, ("silu", True), (None, True), ("tanh", False)], ids=str,
)  # fmt: skip
def test_masks_check_grads(rng, kind, activation, residual):
    inputs = Inputs(rng, (5, 3, 4), np.float64, residual=residual)
    options = given(rng, inputs, kind)

    def function(x, weight, bias, residual=None):
        y, moments = bnext.jax.batch_norm(
            x, weight, bias, residual=residual, activation=activation, **options
        )
        return y, moments.mean, moments.var

    arrays = (inputs.x, *inputs.affine, *[inputs.residual] * residual)
    check_grads(function, arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)
    by_given, arrays, _ = inference(inputs, activation, options)
    check_grads(by_given, arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)
    moments = functools.partial(bnext.jax.moments, **options)
    check_grads(lambda x: moments(x)[1:], (inputs.x,), order=2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("activation", "residual", "kind"),
    [*((*each, "both") for each in [PLAIN, *COMBINATIONS]), (*PLAIN, "mask"),
     (*PLAIN, "sample_weight")], ids=str,
)  # fmt: skip
def test_masks_second_derivatives_beside_nan(rng, activation, residual, kind):
    """Hessian-vector products in float32, against the definition of clean arrays in float64."""
    inputs = Inputs(rng, (8, 5, 7), residual=residual)
    options = given(rng, inputs, kind)
    weights = options.get("sample_weight", 1) * options.get("mask", 1)
    scale = inputs.dy.copy()
    count = 3 + residual

    def arrays():
        return (inputs.x.copy(), *inputs.affine, *[inputs.residual] * residual)

    clean = arrays()
    directions = tuple(rng.normal(size=each.shape).astype(np.float32) for each in clean)
    spoil(inputs, weights > 0)

    def product(normalized, arrays, directions):
        def loss(*arrays):
            y, mean, var = normalized(*arrays)
            return (y**3 * scale).sum() + (mean * var).sum()

        gradient = jax.grad(loss, range(count))
        return gradient(*arrays), jax.jvp(gradient, arrays, directions)[1]

    def mine(x, weight, bias, residual=None):
        y, moments = bnext.jax.batch_norm(
            x, weight, bias, residual=residual, activation=activation, negative_slope=SLOPE,
            **options,
        )  # fmt: skip
        return y, moments.mean, moments.var

    def definition(x, weight, bias, residual=0.0):
        z, mean, var = plain(x, weight, bias, weights.astype(np.float64))
        return jnp.where(weights[..., None] > 0, activated(activation, z + residual), 0), mean, var

    actual = jax.jit(functools.partial(product, mine))(arrays(), directions)

    def counted(each):
        return np.where(weights[..., None] > 0, each, 0) if each.ndim == 3 else each

    counting = (tuple(map(counted, group)) for group in (clean, directions))
    expected = in_float64(functools.partial(product, definition), *counting)
    close(actual, expected, 3e-5 if activation is None else 5e-5)


# --- transformations ------------------------------------------------------------------------------


# Of the gradient, x, the parameters, the residual, the mask.
AXES = [
    (0, 0, 0, 0, 0), (0, 0, None, None, 0), (None, None, 0, 0, None), (0, 0, 0, 0, None),
    (None, None, None, None, 0),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "residual", "axes"), [
    *((*PLAIN, axes) for axes in AXES),
    *((name, True, axes) for name in (None, "relu", "silu")
      for axes in (AXES[0], AXES[1], AXES[4])),
], ids=str)  # fmt: skip
def test_masks_vmap_is_a_loop(rng, activation, residual, axes):
    inputs = [Inputs(rng, (6, 5, 19), residual=residual) for _ in range(3)]
    masks = np.stack([given(rng, each, "mask")["mask"] for each in inputs])
    masks[1] = True  # a slice in which no kernel writes the residual's gradient
    rows = ((e.dy, e.x, *e.affine, *[e.residual] * residual) for e in inputs)
    arrays = (*(np.stack(column) for column in zip(*rows, strict=True)), masks)
    axes = (*axes[:2], axes[2], axes[2], *[axes[3]] * residual, axes[4])

    def gradients(dy, *arrays):
        *arrays, mask = arrays

        def call(x, weight, bias, residual=None):
            return bnext.jax.batch_norm(
                x, weight, bias, residual=residual, activation=activation, mask=mask
            )

        y, pull_back, moments = jax.vjp(call, *arrays, has_aux=True)
        return y, *pull_back(dy), moments.count

    chosen = [c if axis == 0 else c[0] for c, axis in zip(arrays, axes, strict=True)]
    actual = jax.jit(jax.vmap(gradients, in_axes=axes))(*chosen)
    for k in range(3):
        one = [c[k] if axis == 0 else c for c, axis in zip(chosen, axes, strict=True)]
        for mine, expected in zip(actual, gradients(*one), strict=True):
            assert_same_bits(mine[k], expected)


@ALL
def test_masks_of_a_batch_along_a_mapped_axis(rng, activation, residual):
    """A part of the batch may have nothing that counts."""
    inputs = Inputs(rng, (6, 5, 7), channel_axis=1, residual=residual)
    mask = rng.random((6, 7)) < 0.5
    mask[2] = False
    spoil(inputs, mask)
    options = {"activation": activation, "negative_slope": SLOPE}

    def both(mask, dy, x, weight, bias, *residual):
        def call(x, weight, bias, *residual):
            def example(x, mask, *residual):
                return bnext.jax.batch_norm(
                    x, weight, bias, residual=residual[0] if residual else None, mask=mask,
                    channel_axis=0, axis_name="batch", **options,
                )  # fmt: skip

            return jax.vmap(example, axis_name="batch", out_axes=(0, None))(x, mask, *residual)

        y, pull_back, moments = jax.vjp(call, x, weight, bias, *residual, has_aux=True)
        return y, moments, pull_back(dy)

    arrays = (inputs.x, *inputs.affine, *[inputs.residual] * residual)
    y, moments, gradients = jax.jit(both)(mask, inputs.dy, *arrays)
    expected, saved = bnext.batch_norm_forward(
        inputs.x, *inputs.affine, mask=mask, residual=inputs.residual, **options
    )
    read = inputs.residual if saved.reads_residual else None
    of_all = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight, residual=read)
    assert moments.count == mask.sum()
    close((y, moments.mean, *gradients), (expected, saved.mean, *of_all), 3e-6)


@pytest.mark.parametrize(("activation", "residual"), [PLAIN, ("relu", True)], ids=str)
def test_masks_the_gradient_is_a_kernel(rng, activation, residual):
    inputs = Inputs(rng, (64, 20), residual=residual)
    mask = np.arange(64) < 40

    def loss(x, weight, bias, mask, residual=None):
        y, _ = bnext.jax.batch_norm(
            x, weight, bias, residual=residual, activation=activation, mask=mask
        )
        return (y * inputs.dy).sum()

    added = [inputs.residual] * residual
    wanted = (0, 1, 2, 4)[: 3 + residual]
    lowered = jax.jit(jax.grad(loss, wanted)).lower(inputs.x, *inputs.affine, mask, *added)
    text = lowered.as_text()
    assert text.count("@bnext_forward") == text.count("@bnext_backward") == 1
    assert "stablehlo.subtract" not in text
