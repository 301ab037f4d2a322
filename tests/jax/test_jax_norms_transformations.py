"""The norms of examples under jit, vmap, scan, checkpoint, and with donated buffers."""

import functools
import itertools

import numpy as np
import pytest

import bnext

from .norms import SUBJECTS, Inputs
from .support import assert_same_bits, close, jax, jnp

FEW = ["layer", "rms of two axes", "group, channels last", "instance, channels first"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_jax_norms_vmap_is_a_loop(rng, subject):
    """Over examples, over models, over gradients: mapped arrays beside others."""
    many = [Inputs(rng, subject) for _ in range(3)]
    columns = [
        np.stack(column) for column in zip(*((each.dy, *each.arrays) for each in many), strict=True)
    ]
    count = len(columns)
    for axes in (
        (0, 0, *(None,) * (count - 2)), (0,) * count, (None, None, *(0,) * (count - 2)),
        (0, *(None,) * (count - 1)), (None, 0, *(None,) * (count - 2)),
    ):  # fmt: skip
        given = [c if axis == 0 else c[0] for c, axis in zip(columns, axes, strict=True)]
        actual = jax.jit(jax.vmap(many[0].gradients, in_axes=axes))(*given)
        for k in range(3):
            one = [c[k] if axis == 0 else c for c, axis in zip(given, axes, strict=True)]
            for mine, expected in zip(actual, many[0].gradients(*one), strict=True):
                assert_same_bits(mine[k], expected, str(axes))


def test_jax_norms_vmap_over_x_is_one_call(rng):
    """As Equinox writes it: a function of one example has the bits of all examples at once."""
    x = rng.normal(size=(7, 3, 4, 11)).astype(np.float32)
    weight, bias = rng.normal(size=(2, 11)).astype(np.float32)

    def one(x):
        return bnext.jax.layer_norm(x, 11, weight, bias)

    y = jax.jit(jax.vmap(jax.vmap(jax.vmap(one))))(x)
    assert_same_bits(y, bnext.layer_norm_forward(x, 11, weight, bias)[0])

    def example(x):
        return bnext.jax.instance_norm(x[None], weight, bias)[0]

    y = jax.jit(jax.vmap(example))(x)
    assert_same_bits(y, bnext.instance_norm_forward(x, weight, bias, channel_axis=-1)[0])
    gradient = jax.jit(jax.vmap(jax.grad(lambda x: (example(x) ** 3).sum())))(x)
    expected = [jax.grad(lambda x: (example(x) ** 3).sum())(each) for each in x]
    for mine, other in zip(gradient, expected, strict=True):
        assert_same_bits(mine, other)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_jax_norms_vmap_over_x_is_one_call_of_both_passes(rng, subject):
    """The mapped axis, wherever it is, is one more axis of examples: dweight is one sum."""
    many = [Inputs(rng, subject) for _ in range(3)]
    norm, affine = many[0].norm, many[0].affine
    x, dy = (np.stack([getattr(each, name) for each in many]) for name in ("x", "dy"))

    def both(function, dy, x, *affine):
        y, pull_back = jax.vjp(function, x, *affine)
        return y, *pull_back(dy)

    def together(x, *affine):
        if hasattr(norm, "groups"):
            return norm.by_jax(x.reshape(-1, *x.shape[2:]), *affine).reshape(x.shape)
        return norm.by_jax(x, *affine)

    expected = jax.jit(functools.partial(both, together))(dy, x, *affine)
    for axis in (0, 1, -1):
        axes = (axis, *(None,) * len(affine))
        moved = [np.moveaxis(each, 0, axis) for each in (dy, x)]
        mapped = jax.jit(functools.partial(both, jax.vmap(norm.by_jax, axes, axis)))
        text = mapped.lower(*moved, *affine).as_text()
        assert text.count("@bnext_") == 2
        assert "stablehlo.reduce" not in text
        y, dx, *rest = mapped(*moved, *affine)
        actual = (np.moveaxis(y, axis, 0), np.moveaxis(dx, axis, 0), *rest)
        for mine, other in zip(actual, expected, strict=True):
            assert_same_bits(mine, other)


def test_jax_norms_vmap_of_models_over_examples(rng):
    """Weights are mapped outside of the examples, and inside."""
    x, dy = rng.normal(size=(2, 4, 9)).astype(np.float32)
    weights = rng.normal(size=(3, 9)).astype(np.float32)

    def gradient(examples, x, weight):
        return jax.grad(lambda x, w: (examples(x, w) ** 2 * dy).sum(), (0, 1))(x, weight)

    def rows(x, weight):
        return jax.vmap(lambda x: bnext.jax.layer_norm(x, 9, weight))(x)

    expected = [gradient(lambda x, w: bnext.jax.layer_norm(x, 9, w), x, each) for each in weights]
    outside = jax.vmap(functools.partial(gradient, rows), (None, 0))(x, weights)

    def inside(x, weights):
        models = jax.vmap(lambda x, w: bnext.jax.layer_norm(x, 9, w), (None, 0))
        return jax.vmap(models, (0, None), 1)(x, weights)

    def loss(x, weights):
        return (inside(x, weights) ** 2 * dy).sum()

    of_all = jax.grad(loss, (0, 1))(x, weights)
    for k, (dx, dweight) in enumerate(expected):
        close((outside[0][k], outside[1][k]), (dx, dweight), 1e-6)
        close(of_all[1][k], dweight, 1e-6)
    close(of_all[0], sum(dx for dx, _ in expected), 1e-6)


def test_jax_norms_vmap_over_nothing():
    weight = jnp.ones(5)
    for norm in (
        lambda x: bnext.jax.layer_norm(x, 5, weight), lambda x: bnext.jax.rms_norm(x, 5),
        lambda x: bnext.jax.group_norm(x, 5, weight), lambda x: bnext.jax.instance_norm(x),
    ):  # fmt: skip
        x = jnp.zeros((0, 4, 3, 5))
        assert jax.jit(jax.vmap(norm))(x).shape == x.shape
        assert jax.jit(jax.vmap(jax.grad(lambda x, norm=norm: norm(x).sum())))(x).shape == x.shape


def test_jax_norms_vmap_along_other_axes(rng):
    x = rng.normal(size=(4, 2, 5, 3, 8)).astype(np.float32)  # mapped: 1 and 3
    weight = rng.normal(size=(8, 3)).astype(np.float32)  # mapped: 1

    def call(x, weight):
        return bnext.jax.group_norm(x, 2, weight)

    inner = jax.vmap(call, in_axes=(2, 1), out_axes=2)
    y = jax.jit(jax.vmap(inner, in_axes=(1, None), out_axes=1))(x, weight)
    for i, k in itertools.product(range(2), range(3)):
        expected = bnext.group_norm_forward(
            x[:, i, :, k].copy(), 2, weight[:, k].copy(), channel_axis=-1
        )
        assert_same_bits(y[:, i, :, k], expected[0])


@pytest.mark.parametrize("subject", FEW)
def test_jax_norms_vmap_of_second_derivatives(rng, subject):
    many = [Inputs(rng, subject) for _ in range(3)]
    x = np.stack([each.x for each in many])

    def product(x):
        gradient = jax.grad(lambda x: (many[0].norm.by_jax(x, *many[0].affine) ** 3).sum())
        return jax.jvp(gradient, (x,), (x,))[1]

    expected = [product(each) for each in x]
    np.testing.assert_allclose(jax.vmap(product)(x), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("subject", FEW)
def test_jax_norms_are_traced_once(rng, subject):
    inputs = Inputs(rng, subject)
    traced = []

    @jax.jit
    def step(*arrays):
        traced.append(1)
        return jax.grad(lambda x: inputs.norm.by_jax(x, *arrays[1:]).sum())(arrays[0])

    for shift in range(3):
        step(inputs.x + np.float32(shift), *inputs.affine)
    assert len(traced) == 1
    y = jax.eval_shape(inputs.norm.by_jax, *inputs.arrays)
    assert (y.shape, y.dtype) == (inputs.x.shape, inputs.x.dtype)


@pytest.mark.parametrize("subject", FEW)
def test_jax_norms_scan_and_checkpoint(rng, subject):
    inputs = Inputs(rng, subject)
    weights = np.stack([inputs.affine[0] + k for k in range(4)])

    def through(x, weights, scan):
        def step(x, weight):
            return jnp.tanh(inputs.norm.by_jax(x, weight)), ()

        if scan:
            return (jax.lax.scan(jax.checkpoint(step), x, weights)[0] ** 2).sum()
        for weight in weights:
            x, _ = step(x, weight)
        return (x**2).sum()

    gradient = jax.jit(jax.grad(through, (0, 1)), static_argnums=2)
    actual, expected = (gradient(inputs.x, weights, scan) for scan in (True, False))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


def test_jax_norms_donated_buffers(rng):
    inputs = Inputs(rng, "layer")
    expected = inputs.by_numpy()[0]
    x = jnp.array(inputs.x)
    y = jax.jit(inputs.norm.by_jax, donate_argnums=0)(x, *inputs.affine)
    assert x.is_deleted()
    assert_same_bits(y, expected)


def test_jax_norms_many_calls_in_flight(rng):
    inputs = Inputs(rng, "group, channels last")
    step = jax.jit(inputs.norm.by_jax)
    batches = [inputs.x * np.float32(k) for k in range(30)]
    results = [step(x, *inputs.affine) for x in batches]
    for x, y in zip(batches, results, strict=True):
        assert_same_bits(y, inputs.norm.by_numpy(x, *inputs.affine)[0])
