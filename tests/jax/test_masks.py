"""Masks, lengths and weights of `bnext.jax`: NumPy's bits, and the batch compressed."""

import numpy as np
import pytest

import bnext

from ..masks import weighted
from .support import Inputs, assert_same_bits, close, jax, jnp

SHAPES = [((37, 19), -1), ((6, 5, 19), -1), ((3, 4, 5, 33), -1), ((6, 19, 8), 1), ((11, 40), 0)]
OUTSIDES = ("zero", "normalized", "unchanged")


def positions_of(inputs):
    axis = inputs.channel_axis % inputs.x.ndim
    return inputs.x.shape[:axis] + inputs.x.shape[axis + 1 :]


def given(rng, inputs, kind):
    """The arguments of a call that says what counts."""
    positions = positions_of(inputs)
    mask = rng.random(positions) < 0.6
    mask.flat[:2] = True
    weights = rng.choice([0, 1, 0.5, 2.25], positions)
    weights.flat[:2] = 1
    return {
        "mask": {"mask": mask},
        "mask beside channels": {"mask": np.expand_dims(mask, inputs.channel_axis)},
        "a mask of examples": {"mask": mask[..., :1]},
        "sample_weight": {"sample_weight": weights},
        "weights of examples": {"sample_weight": rng.choice([0, 1, 3], positions[:1]) + 0.5},
        "both": {"mask": mask, "sample_weight": weights},
        "integers": {"sample_weight": rng.integers(1, 4, positions)},
        "all": {"mask": np.ones(positions, bool)},
        "ones": {"sample_weight": np.ones(positions)},
        "lengths": {"lengths": rng.integers(0, positions[-1] + 1, positions[:1])},
        "none": {"mask": np.zeros(positions, bool)},
        "one": {"mask": np.arange(mask.size).reshape(positions) == 3},
    }[kind]


KINDS = [
    "mask", "mask beside channels", "a mask of examples", "sample_weight", "weights of examples",
    "both", "integers", "all", "ones", "none", "one",
]  # fmt: skip


def spoil(inputs, counts):
    """NaN and infinities where positions do not count."""
    outside = np.expand_dims(~np.broadcast_to(counts, positions_of(inputs)), inputs.channel_axis)
    outside = np.broadcast_to(outside, inputs.x.shape)
    inputs.x[outside] = np.nan
    inputs.dy[outside] = np.inf
    if inputs.residual is not None:
        inputs.residual[outside] = -np.inf


def assert_agrees(inputs, options, activation=None):
    """Both passes have the bits of the functions for NumPy."""
    applied = inputs.options(activation)
    y, saved = bnext.batch_norm_forward(inputs.x, *inputs.affine, **applied, **options)
    read = inputs.residual if saved.reads_residual else None
    expected = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight, residual=read)
    arrays = {name: each for name, each in options.items() if name != "masked"}
    residual = () if applied.pop("residual") is None else (inputs.residual,)

    @jax.jit
    def both(dy, arrays, *inputs):
        def call(x, weight, bias, residual=None):
            return bnext.jax.batch_norm(
                x, weight, bias, residual=residual, masked=options.get("masked", "zero"),
                **applied, **arrays,
            )  # fmt: skip

        y, pull_back, moments = jax.vjp(call, *inputs, has_aux=True)
        return y, pull_back(dy), moments

    inputs_of_call = (inputs.x, *inputs.affine, *residual)
    actual, gradients, moments = both(inputs.dy, arrays, *inputs_of_call)
    assert_same_bits(actual, y, "y")
    names = ("dx", "dweight", "dbias") + ("dresidual",) * len(residual)
    for name, one, other in zip(names, gradients, expected, strict=True):
        assert_same_bits(one, other, name)
    dtype = inputs.weight.dtype
    assert_same_bits(moments.count, np.asarray(saved.count, dtype))
    assert_same_bits(moments.mean, saved.mean.astype(dtype))
    assert_same_bits(moments.m2, saved.m2.astype(dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_masks_bits(rng, shape, axis, kind):
    inputs = Inputs(rng, shape, channel_axis=axis)
    assert_agrees(inputs, given(rng, inputs, kind))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
def test_masks_bits_of_float64(rng, kind):
    inputs = Inputs(rng, (6, 5, 19), np.float64)
    inputs.x += 1e8
    assert_agrees(inputs, given(rng, inputs, kind))


def test_masks_lengths(rng):
    for shape, axis in (((6, 5, 19), -1), ((6, 19, 8), 1)):
        inputs = Inputs(rng, shape, channel_axis=axis)
        assert_agrees(inputs, given(rng, inputs, "lengths"))
    x = inputs.x
    clipped = bnext.jax.batch_norm(x, lengths=np.array([-3, 99, 8, 0, 1, 2]), channel_axis=1)[0]
    exact = bnext.jax.batch_norm(x, lengths=np.array([0, 8, 8, 0, 1, 2]), channel_axis=1)[0]
    assert_same_bits(clipped, exact)


@pytest.mark.parametrize("kind", ["mask", "sample_weight", "both"])
def test_masks_moments(rng, kind):
    inputs = Inputs(rng, (6, 5, 19))
    options = given(rng, inputs, kind)
    expected = bnext.moments(inputs.x, channel_axis=-1, **options)
    actual = jax.jit(bnext.jax.moments)(inputs.x, **options)
    assert_same_bits(actual.mean, expected.mean.astype(np.float32))
    np.testing.assert_allclose(actual.count, expected.count, rtol=1e-7)
    np.testing.assert_allclose(actual.var, expected.var, rtol=1e-6)
    halves = [
        bnext.jax.moments(inputs.x[part], **{k: v[part] for k, v in options.items()})
        for part in (slice(0, 2), slice(2, None))
    ]
    merged = halves[0].merge(halves[1])
    np.testing.assert_allclose(merged.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(merged.m2, expected.m2, rtol=1e-5)
    nothing = bnext.jax.moments(inputs.x, mask=np.zeros((6, 5), bool))
    np.testing.assert_allclose(nothing.merge(halves[0]).m2, halves[0].m2)
    assert nothing.count == 0
    assert (nothing.var == 0).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_masks_running_statistics(rng, count):
    """Where no more than one value counts, they stay, as a layer's do."""
    x = rng.normal(size=(12, 5)).astype(np.float32)
    mask = np.arange(12) < count
    layer = bnext.BatchNorm1d(5)
    layer(x, mask=mask)
    moments = bnext.jax.batch_norm(x, mask=mask)[1]
    running = jax.jit(bnext.jax.move_running)(jnp.zeros(5), jnp.ones(5), moments)
    np.testing.assert_allclose(running[0], layer.running_mean, rtol=1e-6)
    np.testing.assert_allclose(running[1], layer.running_var, rtol=1e-6)


def test_masks_wrong_weights_are_nan(rng):
    inputs = Inputs(rng, (12, 5))
    for wrong in (-1.0, np.inf, np.nan):
        weights = np.ones(12)
        weights[3] = wrong
        y, moments = bnext.jax.batch_norm(inputs.x, sample_weight=weights)
        assert np.isnan(y).all()
        assert np.isnan(moments.mean).all()


# --- derivatives ----------------------------------------------------------------------------------


def plain(x, weight, bias, weights, eps=1e-5):
    """The definition, channels last; 0 where nothing counts."""
    w = weights[..., None]
    axes = tuple(range(x.ndim - 1))
    total = w.sum()
    mean = (w * x).sum(axes) / total
    var = (w * (x - mean) ** 2).sum(axes) / total
    y = (x - mean) / jnp.sqrt(var + eps) * weight + bias
    return jnp.where(w > 0, y, 0), mean, var


def test_masks_first_gradients_by_definition(rng):
    """As the tests of NumPy's functions have it, in long double."""
    inputs = Inputs(rng, (40, 7))
    weights = rng.choice([0, 0.5, 1, 3], 40).astype(np.float32)
    y, pull_back, _ = jax.vjp(
        lambda *a: bnext.jax.batch_norm(*a, sample_weight=weights), inputs.x, *inputs.affine,
        has_aux=True,
    )  # fmt: skip
    keep = weights > 0
    rows = (inputs.x[keep].T, weights[keep], inputs.dy[keep].T)
    expected, dx, dweight, dbias = weighted(*rows, inputs.weight, inputs.bias)
    gradients = pull_back(inputs.dy)
    close(y[keep].T, expected, 1e-6)
    close(gradients[0][keep].T, dx, 1e-6)
    close(gradients[1:], (dweight, dbias), 1e-6)
    assert not np.asarray(y)[~keep].any()
    assert not np.asarray(gradients[0])[~keep].any()


def test_masks_no_gradient_goes_through_weights(rng):
    inputs = Inputs(rng, (12, 5))
    gradient = jax.grad(
        lambda weights: (bnext.jax.batch_norm(inputs.x, sample_weight=weights)[0] ** 3).sum()
    )(jnp.ones(12))
    assert not gradient.any()


# --- transformations ------------------------------------------------------------------------------


def test_masks_are_traced_once_and_scanned(rng):
    batches = rng.normal(size=(4, 16, 7)).astype(np.float32)
    masks = rng.random((4, 16)) < 0.7
    traced = []

    @jax.jit
    def step(running, both):
        traced.append(1)
        x, mask = both
        y, moments = jax.checkpoint(bnext.jax.batch_norm)(x, mask=mask)
        return bnext.jax.move_running(*running, moments), y

    layer = bnext.BatchNorm1d(7)
    running = jnp.zeros(7), jnp.ones(7)
    scanned, _ = jax.lax.scan(step, running, (batches, masks))
    for x, mask in zip(batches, masks, strict=True):
        running, y = step(running, (x, mask))
        assert_same_bits(y, layer(x, mask=mask))
    assert len(traced) == 1
    np.testing.assert_allclose(running[1], layer.running_var, rtol=1e-5)
    close(scanned, running, 1e-6)
