"""Norms of examples with a residual: NumPy's bits, derivatives of both orders, transformations."""

import functools

import numpy as np
import pytest

import bnext

from .norms import Inputs
from .support import DTYPES, activated, assert_same_bits, check_grads, close, in_float64, jax, jnp

KINDS = ("layer", "layer of two axes", "rms", "group, channels last", "group, channels first",
         "instance, channels last")  # fmt: skip
EVERY = pytest.mark.parametrize("subject", KINDS)
ACTIVATION = pytest.mark.parametrize("activation", ["silu", "leaky_relu", None])


class Added:
    """A call with a residual; its arrays are x, the parameters and the residual."""

    def __init__(self, rng, subject, activation, dtype=np.float32):
        self.of = Inputs(rng, subject, dtype)
        self.norm = self.of.norm._replace(activation=activation)
        self.dy, self.x = self.of.dy, self.of.x
        residual = rng.normal(size=self.x.shape).astype(dtype)
        self.arrays = (*self.of.arrays, residual)

    def by_jax(self, x, *others):
        *affine, residual = others
        options = {**self.norm.options, "residual": residual}
        if hasattr(self.norm, "dims"):
            shape = self.norm.parameter_shape(x.shape)
            if self.norm.has_bias:
                return bnext.jax.layer_norm(x, shape, *affine, **options)
            return bnext.jax.rms_norm(x, shape, *affine, **options)
        if self.norm.groups is None:
            return bnext.jax.instance_norm(x, *affine, **options)
        return bnext.jax.group_norm(x, self.norm.groups, *affine, **options)

    def gradients(self, dy, *arrays):
        y, pull_back = jax.vjp(self.by_jax, *arrays)
        return y, *pull_back(dy)

    def by_numpy(self):
        x, weight, *rest = self.arrays
        *bias, residual = rest
        options = {**self.norm.options, "residual": residual}
        if hasattr(self.norm, "dims"):
            name = "layer" if self.norm.has_bias else "rms"
            more = (self.norm.parameter_shape(x.shape),)
        else:
            name = "instance" if self.norm.groups is None else "group"
            more = () if self.norm.groups is None else (self.norm.groups,)
        forward, backward = (
            getattr(bnext, f"{name}_norm_{direction}") for direction in ("forward", "backward")
        )
        y, saved = forward(x, *more, weight, *bias, **options)
        return y, *backward(self.dy, x, saved, weight, residual=residual)

    def plain(self, x, *others):
        *affine, residual = others
        return activated(
            self.norm.activation,
            self.norm._replace(activation=None).plain(x, *affine) + residual,
        )


@ACTIVATION
@EVERY
def test_jax_norms_residual_bits(rng, subject, activation):
    for dtype in DTYPES:
        added = Added(rng, subject, activation, dtype)
        for transform in (jax.jit, lambda function: function):
            actual = transform(added.gradients)(added.dy, *added.arrays)
            for one, other in zip(actual, added.by_numpy(), strict=True):
                assert_same_bits(one, other, np.dtype(dtype).name)


@pytest.mark.usefixtures("x64")
@EVERY
def test_jax_norms_residual_check_grads(rng, subject):
    added = Added(rng, subject, "tanh", np.float64)
    for one, other in zip(
        jax.jit(added.gradients)(added.dy, *added.arrays), added.by_numpy(), strict=True
    ):
        assert_same_bits(one, other)
    check_grads(added.by_jax, added.arrays, order=2, modes=["rev"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["silu", None])
@EVERY
def test_jax_norms_residual_second_derivatives_in_float32(rng, subject, activation):
    added = Added(rng, subject, activation)
    directions = [rng.normal(size=each.shape).astype(np.float32) for each in added.arrays]

    def product(norm, arrays, directions):
        def loss(*arrays):
            return (norm(*arrays) ** 3 * added.dy).sum()

        gradient = jax.grad(loss, argnums=range(len(arrays)))
        return jax.jvp(gradient, tuple(arrays), tuple(directions))

    actual = jax.jit(functools.partial(product, added.by_jax))(added.arrays, directions)
    expected = in_float64(functools.partial(product, added.plain), added.arrays, directions)
    for one, other in zip(actual, expected, strict=True):
        close(one, other, 2e-5)


@ACTIVATION
@EVERY
def test_jax_norms_residual_vmap_is_a_loop(rng, subject, activation):
    many = [Added(rng, subject, activation) for _ in range(3)]
    columns = [np.stack(c) for c in zip(*((m.dy, *m.arrays) for m in many), strict=True)]
    others = len(columns) - 3
    for axes in (
        (0, 0, *(None,) * others, 0), (0, 0, *(None,) * others, None),
        (0, None, *(None,) * others, 0), (0,) * len(columns),
    ):  # fmt: skip
        given = [c if axis == 0 else c[0] for c, axis in zip(columns, axes, strict=True)]
        actual = jax.jit(jax.vmap(many[0].gradients, in_axes=axes))(*given)
        for k in range(3):
            one = [c[k] if axis == 0 else c for c, axis in zip(given, axes, strict=True)]
            for mine, expected in zip(actual, many[0].gradients(*one), strict=True):
                assert_same_bits(mine[k], expected, str(axes))


@EVERY
def test_jax_norms_residual_vmap_of_data_is_one_call(rng, subject):
    added = Added(rng, subject, "silu")
    x, *affine, residual = added.arrays
    axes = (0, *(None,) * len(affine), 0)

    def loss(x, *others):
        return (jax.vmap(added.by_jax, axes)(x, *others) ** 2).sum()

    many = [np.stack([each] * 3) for each in (x, residual)]
    gradient = jax.jit(jax.grad(loss, argnums=range(len(axes))))
    given = many[0], *affine, many[1]
    text = gradient.lower(*given).as_text()
    kind = "cells" if hasattr(added.norm, "groups") else "rows"
    assert text.count(f"@bnext_{kind}_forward") == text.count(f"@bnext_{kind}_backward") == 1
    alone = jax.grad(lambda *given: (added.by_jax(*given) ** 2).sum(), range(len(axes)))
    found, expected = gradient(*given), alone(*added.arrays)
    for k in (0, -1):
        assert_same_bits(found[k][2], expected[k])
    for k in range(1, len(affine) + 1):
        close(found[k], 3 * np.asarray(expected[k]), 1e-5)


def test_jax_norms_a_residual_alone_has_the_gradient_dy(rng):
    """Nothing is kept of it, and nothing computed."""
    for subject in ("layer", "group, channels last"):
        added = Added(rng, subject, None)
        gradients = jax.jit(added.gradients)(added.dy, *added.arrays)
        assert_same_bits(gradients[-1], added.dy)


def test_jax_norms_residual_errors():
    x = np.ones((4, 6), np.float32)
    for norm in (
        lambda **given: bnext.jax.layer_norm(x, 6, **given),
        lambda **given: bnext.jax.rms_norm(x, 6, **given),
        lambda **given: bnext.jax.group_norm(x, 2, **given),
    ):
        for given, kind, text in (
            ({"residual": x[:2]}, ValueError, "residual: expected shape"),
            ({"residual": jnp.ones((4, 6), jnp.bfloat16)}, TypeError, "residual: expected dtype"),
            ({"residual": "none"}, TypeError, "residual: expected an array"),
            ({"activation": "swish"}, ValueError, "activation: expected "),
            ({"activation": 3}, TypeError, "activation: "),
            ({"negative_slope": np.inf}, ValueError, "negative_slope: expected a finite"),
        ):
            for transform in (lambda function: function, jax.jit):
                with pytest.raises(kind, match=text):
                    transform(lambda norm=norm, given=given: norm(**given))()
