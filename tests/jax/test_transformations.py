"""`bnext.jax` under jit, vmap, scan, checkpoint, with donated buffers and under JAX's checks."""

import functools
import itertools

import numpy as np
import pytest

import bnext

from .norms import ADDED, SUBJECTS, Inputs
from .support import assert_same_bits, close, jax, jnp

FEW = ["batch", "layer", "rms of two axes", "group, channels last", "instance, channels first"]


@pytest.fixture
def inputs(rng):
    return Inputs(rng, "batch", adds=True, shape=(6, 3, 5, 19), activation="relu")


# --- jit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", FEW)
def test_jit_traces_once(rng, subject):
    inputs = Inputs(rng, subject, eps=1e-3)
    traced = []

    @jax.jit
    def step(*arrays):
        traced.append(1)
        return jax.grad(lambda x: inputs.by_jax(x, *arrays[1:]).sum())(arrays[0])

    for shift in range(4):
        step(inputs.x + np.float32(shift), *inputs.affine)
    assert len(traced) == 1
    y, *moments = jax.eval_shape(inputs.results, *inputs.arrays)
    assert (y.shape, y.dtype) == (inputs.x.shape, inputs.x.dtype)
    assert all(each.shape == inputs.affine[0].shape for each in moments)


def test_eager_calls_compile_once(inputs, capfd):
    """Outside of jit the numbers of a call are the same constants each time."""
    bnext.jax.batch_norm(inputs.x, *inputs.affine)
    with jax.log_compiles():
        bnext.jax.batch_norm(inputs.x + 1, *inputs.affine)
    assert "Compiling" not in capfd.readouterr().err


@pytest.mark.parametrize("subject", FEW)
def test_donated_buffers(rng, subject):
    inputs = Inputs(rng, subject)
    expected = inputs.by_numpy()[0]
    x = jnp.array(inputs.x)
    y = jax.jit(inputs.by_jax, donate_argnums=0)(x, *inputs.affine)
    assert x.is_deleted()
    assert_same_bits(y, expected)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        inputs.by_jax(x, *inputs.affine)


@pytest.mark.parametrize(("subject", "calls"), [("batch", 50), ("group, channels last", 30)])
def test_many_calls_in_flight(rng, subject, calls):
    """Calls are asynchronous; they give what calls one by one give."""
    inputs = Inputs(rng, subject)
    step = jax.jit(inputs.by_jax)
    batches = [inputs.x * np.float32(k) for k in range(calls)]
    results = [step(x, *inputs.affine) for x in batches]
    for x, y in zip(batches, results, strict=True):
        assert_same_bits(y, inputs.norm.by_numpy(x, *inputs.affine)[0])


def test_debug_nans(inputs):
    with jax.debug_nans(True):
        results = jax.jit(inputs.gradients)(inputs.dy, *inputs.arrays)
        assert np.isfinite(results[0]).all()
        x = inputs.x.copy()
        x[0, 0, 0, 0] = np.nan
        with pytest.raises(FloatingPointError):
            jax.jit(bnext.jax.batch_norm)(x)


def test_results_of_programs_can_be_kept(inputs):
    """A program with foreign functions is compiled ahead of time."""
    compiled = jax.jit(bnext.jax.batch_norm).lower(inputs.x, *inputs.affine).compile()
    y, _ = compiled(inputs.x, *inputs.affine)
    assert_same_bits(y, bnext.batch_norm_forward(inputs.x, *inputs.affine, channel_axis=-1)[0])


# --- vmap -----------------------------------------------------------------------------------------

# A subject, an activation (or its own), whether there is a residual, and what is mapped of dy and
# the arrays: over models, over data, over gradients, over several; with what is not as it is.
KEEP = {}
MAPPED = [
    *(("batch", {"activation": name}, True, axes) for name in (None, "relu", "silu")
      for axes in [axes for axes in itertools.product((0, None), repeat=5) if 0 in axes][::5]),
    *((subject, KEEP, False, axes) for subject in SUBJECTS for axes in (
        (0, 0, None), (0, 0, 0), (None, None, 0), (0, None, None), (None, 0, None))),
    *((subject, {"activation": name}, True, axes) for subject in ADDED
      for name in ("silu", "leaky_relu", None)
      for axes in ((0, 0, None, 0), (0, 0, None, None), (0, None, None, 0), (0, 0, 0, 0))),
]  # fmt: skip


def mapped_axes(axes, count):
    """The third of `axes` is of all parameters."""
    return (*axes[:2], *axes[2:3] * (count - len(axes) + 1), *axes[3:])


@pytest.mark.parametrize(("subject", "changed", "adds", "axes"), MAPPED, ids=str)
def test_vmap_is_a_loop(rng, subject, changed, adds, axes):
    many = [Inputs(rng, subject, adds=adds, **changed) for _ in range(3)]
    columns = [np.stack(c) for c in zip(*((m.dy, *m.arrays) for m in many), strict=True)]
    axes = mapped_axes(axes, len(columns))
    given = [c if axis == 0 else c[0] for c, axis in zip(columns, axes, strict=True)]
    actual = jax.jit(jax.vmap(many[0].gradients, in_axes=axes))(*given)
    for k in range(3):
        one = [c[k] if axis == 0 else c for c, axis in zip(given, axes, strict=True)]
        for mine, expected in zip(actual, many[0].gradients(*one), strict=True):
            assert_same_bits(mine[k], expected)


def test_vmap_twice_and_along_other_axes(rng):
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


def test_vmap_of_groups_along_other_axes(rng):
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
def test_vmap_of_second_derivatives(rng, subject):
    many = [Inputs(rng, subject) for _ in range(3)]
    x = np.stack([each.x for each in many])

    def product(x):
        gradient = jax.grad(lambda x: (many[0].by_jax(x, *many[0].affine) ** 3).sum())
        return jax.jvp(gradient, (x,), (x,))[1]

    expected = [product(each) for each in x]
    np.testing.assert_allclose(jax.vmap(product)(x), expected, atol=1e-3, rtol=1e-4)


def test_vmap_over_x_is_one_call(rng):
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
def test_vmap_over_x_is_one_call_of_both_passes(rng, subject):
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


@pytest.mark.parametrize("subject", ADDED)
def test_vmap_of_data_with_a_residual_is_one_call(rng, subject):
    inputs = Inputs(rng, subject, adds=True, activation="silu")
    x, *affine, residual = inputs.arrays
    axes = (0, *(None,) * len(affine), 0)

    def loss(x, *others):
        return (jax.vmap(inputs.by_jax, axes)(x, *others) ** 2).sum()

    many = [np.stack([each] * 3) for each in (x, residual)]
    gradient = jax.jit(jax.grad(loss, argnums=range(len(axes))))
    given = many[0], *affine, many[1]
    text = gradient.lower(*given).as_text()
    kernel = inputs.norm.kernel
    assert text.count(f"@{kernel}_forward") == text.count(f"@{kernel}_backward") == 1
    alone = jax.grad(lambda *given: (inputs.by_jax(*given) ** 2).sum(), range(len(axes)))
    found, expected = gradient(*given), alone(*inputs.arrays)
    for k in (0, -1):
        assert_same_bits(found[k][2], expected[k])
    for k in range(1, len(affine) + 1):
        close(found[k], 3 * np.asarray(expected[k]), 1e-5)


def test_vmap_of_models_over_examples(rng):
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


def test_vmap_over_nothing():
    weight = jnp.ones(5)
    for norm in (
        lambda x: bnext.jax.layer_norm(x, 5, weight), lambda x: bnext.jax.rms_norm(x, 5),
        lambda x: bnext.jax.group_norm(x, 5, weight), lambda x: bnext.jax.instance_norm(x),
    ):  # fmt: skip
        x = jnp.zeros((0, 4, 3, 5))
        assert jax.jit(jax.vmap(norm))(x).shape == x.shape
        assert jax.jit(jax.vmap(jax.grad(lambda x, norm=norm: norm(x).sum())))(x).shape == x.shape


def test_the_batch_along_a_mapped_axis(rng):
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


# --- loops ----------------------------------------------------------------------------------------


def test_scan_carries_running_statistics(rng):
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


def test_gradient_of_a_scan_over_layers(rng):
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


@pytest.mark.parametrize("subject", FEW[1:])
def test_scan_and_checkpoint(rng, subject):
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


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_checkpoint(rng, activation):
    inputs = Inputs(rng, "batch", adds=True, shape=(6, 3, 5, 19), activation=activation)

    def call(*arrays):
        return (inputs.by_jax(*arrays) * inputs.dy).sum()

    kept = jax.grad(call, range(4))(*inputs.arrays)
    again = jax.jit(jax.grad(jax.checkpoint(call), range(4)))(*inputs.arrays)
    for one, other in zip(again, kept, strict=True):
        assert_same_bits(one, other)
