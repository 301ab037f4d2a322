"""`bnext.jax` under jit, vmap, scan, checkpoint, with donated buffers and under JAX's checks."""

import itertools

import numpy as np
import pytest

import bnext

from .support import Inputs, assert_same_bits, jax, jnp


@pytest.fixture
def inputs(rng):
    return Inputs(rng, (6, 3, 5, 19), residual=True)


def gradients(x, weight, bias, residual, dy, activation="relu"):
    """y and all gradients."""

    def call(x, weight, bias, residual):
        return bnext.jax.batch_norm(x, weight, bias, residual=residual, activation=activation)[0]

    y, pull_back = jax.vjp(call, x, weight, bias, residual)
    return y, *pull_back(dy)


def test_jax_jit_traces_once(inputs):
    traced = []

    @jax.jit
    def step(x, weight, bias):
        traced.append(1)
        return jax.grad(lambda x: bnext.jax.batch_norm(x, weight, bias, eps=1e-3)[0].sum())(x)

    for shift in range(4):
        step(inputs.x + np.float32(shift), *inputs.affine)
    assert len(traced) == 1


def test_jax_eager_calls_compile_once(inputs, capfd):
    """Outside of jit the numbers of a call are the same constants each time."""
    bnext.jax.batch_norm(inputs.x, *inputs.affine)
    with jax.log_compiles():
        bnext.jax.batch_norm(inputs.x + 1, *inputs.affine)
    assert "Compiling" not in capfd.readouterr().err


def test_jax_eval_shape(inputs):
    y, moments = jax.eval_shape(bnext.jax.batch_norm, inputs.x, *inputs.affine)
    assert (y.shape, y.dtype) == (inputs.x.shape, inputs.x.dtype)
    assert moments.mean.shape == moments.m2.shape == (19,)


MAPPED = [axes for axes in itertools.product((0, None), repeat=5) if 0 in axes]


@pytest.mark.parametrize("axes", MAPPED[::5], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_jax_vmap_is_a_loop(rng, axes, activation):
    """Over models, over data, over both; with what is not mapped as it is."""
    many = [Inputs(rng, (6, 5, 19), residual=True) for _ in range(3)]
    arrays = [[each.x, each.weight, each.bias, each.residual, each.dy] for each in many]
    columns = [np.stack(column) for column in zip(*arrays, strict=True)]
    given = [c if axis == 0 else c[0] for c, axis in zip(columns, axes, strict=True)]
    actual = jax.jit(jax.vmap(lambda *a: gradients(*a, activation), in_axes=axes))(*given)
    for k in range(3):
        one = [c[k] if axis == 0 else c for c, axis in zip(given, axes, strict=True)]
        for mine, expected in zip(actual, gradients(*one, activation), strict=True):
            assert_same_bits(mine[k], expected)


def test_jax_vmap_twice_and_along_other_axes(rng):
    x = rng.normal(size=(8, 2, 5, 3, 7)).astype(np.float32)  # mapped: 1 and 3
    weight = rng.normal(size=(7, 3)).astype(np.float32)  # mapped: 1

    def call(x, weight):
        return bnext.jax.batch_norm(x, weight)[0]

    inner = jax.vmap(call, in_axes=(2, 1), out_axes=2)
    y = jax.jit(jax.vmap(inner, in_axes=(1, None), out_axes=1))(x, weight)
    assert y.shape == x.shape
    for i, k in itertools.product(range(2), range(3)):
        expected = bnext.batch_norm_forward(
            x[:, i, :, k].copy(), weight[:, k].copy(), channel_axis=-1
        )
        assert_same_bits(y[:, i, :, k], expected[0])


def test_jax_vmap_of_second_derivatives(rng):
    x = rng.normal(size=(3, 8, 5)).astype(np.float32)

    def product(x):
        gradient = jax.grad(lambda x: (bnext.jax.batch_norm(x)[0] ** 3).sum())
        return jax.jvp(gradient, (x,), (jnp.ones_like(x) * x,))[1]

    expected = [product(each) for each in x]
    np.testing.assert_allclose(jax.vmap(product)(x), expected, atol=1e-4)


def test_jax_the_batch_along_a_mapped_axis(rng):
    """As Equinox writes it: a function of one example, and an axis with a name."""
    x = rng.normal(size=(12, 5, 7)).astype(np.float32)  # (N, C, L)

    def loss(x, weight):
        def example(x):
            return bnext.jax.batch_norm(x, weight, channel_axis=0, axis_name="batch")

        y, moments = jax.vmap(example, axis_name="batch", out_axes=(0, None))(x)
        return (y**3).sum(), (y, moments)

    weight = rng.uniform(0.5, 1.5, 5).astype(np.float32)
    (_, (y, moments)), (dx, dweight) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weight)
    expected, saved = bnext.batch_norm_forward(x, weight)
    of_x, of_weight, _ = bnext.batch_norm_backward(3 * expected**2, x, saved, weight)
    assert moments.count == 12 * 7
    np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(moments.mean, saved.mean, atol=1e-6)
    np.testing.assert_allclose(dx, of_x, atol=1e-5)
    np.testing.assert_allclose(dweight, of_weight, rtol=1e-5)


def test_jax_scan_carries_running_statistics(rng):
    batches = rng.normal(size=(5, 16, 7)).astype(np.float32)

    def step(running, x):
        y, moments = bnext.jax.batch_norm(x)
        return bnext.jax.move_running(*running, moments), y

    running, y = jax.jit(lambda batches: jax.lax.scan(step, (jnp.zeros(7), jnp.ones(7)), batches))(
        batches
    )
    layer = bnext.BatchNorm1d(7)
    for x, each in zip(batches, y, strict=True):
        assert_same_bits(each, layer(x))
    np.testing.assert_allclose(running[0], layer.running_mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(running[1], layer.running_var, rtol=1e-5)


def test_jax_gradient_of_a_scan_over_layers(rng):
    x = rng.normal(size=(16, 7)).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, (4, 7)).astype(np.float32)

    def through(x, weights, scan):
        if scan:
            step = jax.checkpoint(
                lambda x, w: (bnext.jax.batch_norm(x, w, activation="tanh")[0], ())
            )
            return (jax.lax.scan(step, x, weights)[0] ** 2).sum()
        for weight in weights:
            x = bnext.jax.batch_norm(x, weight, activation="tanh")[0]
        return (x**2).sum()

    actual = jax.jit(jax.grad(through, (0, 1)), static_argnums=2)(x, weights, True)
    for one, other in zip(actual, jax.grad(through, (0, 1))(x, weights, False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_jax_checkpoint(inputs, activation):
    def call(x, weight, bias, residual):
        y, _ = bnext.jax.batch_norm(x, weight, bias, residual=residual, activation=activation)
        return (y * inputs.dy).sum()

    arrays = (inputs.x, *inputs.affine, inputs.residual)
    kept = jax.grad(call, range(4))(*arrays)
    again = jax.jit(jax.grad(jax.checkpoint(call), range(4)))(*arrays)
    for one, other in zip(again, kept, strict=True):
        assert_same_bits(one, other)


def test_jax_donated_buffers(inputs):
    expected = bnext.batch_norm_forward(inputs.x, *inputs.affine, channel_axis=-1)[0]
    x = jnp.array(inputs.x)
    y, _ = jax.jit(bnext.jax.batch_norm, donate_argnums=0)(x, *inputs.affine)
    assert x.is_deleted()
    assert_same_bits(y, expected)
    with pytest.raises(RuntimeError, match="deleted"):
        bnext.jax.batch_norm(x)


def test_jax_many_calls_in_flight(inputs):
    """Calls are asynchronous; they give what calls one by one give."""
    step = jax.jit(bnext.jax.batch_norm)
    batches = [inputs.x + np.float32(k) for k in range(50)]
    results = [step(x, *inputs.affine)[0] for x in batches]
    for x, y in zip(batches, results, strict=True):
        assert_same_bits(y, bnext.batch_norm_forward(x, *inputs.affine, channel_axis=-1)[0])


def test_jax_debug_nans(inputs):
    with jax.debug_nans(True):
        results = jax.jit(gradients)(inputs.x, *inputs.affine, inputs.residual, inputs.dy)
        assert np.isfinite(results[0]).all()
        x = inputs.x.copy()
        x[0, 0, 0, 0] = np.nan
        with pytest.raises(FloatingPointError):
            jax.jit(bnext.jax.batch_norm)(x)


def test_jax_results_of_programs_can_be_kept(inputs):
    """A program with foreign functions is compiled ahead of time."""
    compiled = jax.jit(bnext.jax.batch_norm).lower(inputs.x, *inputs.affine).compile()
    y, _ = compiled(inputs.x, *inputs.affine)
    assert_same_bits(y, bnext.batch_norm_forward(inputs.x, *inputs.affine, channel_axis=-1)[0])
