"""Masks, lengths and weights: the batch compressed is the definition; no masked bit leaks."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import reference, tolerances
from .compare import assert_are_gradients, assert_is_forward, assert_same_bits, assert_within, units
from .masks import (
    CASES,
    both_passes,
    compressed,
    drawn_mask,
    drawn_weights,
    over_channels,
    positions_of,
    shares_of,
    spoiled,
    sums_of_copies,
    weighted,
)

SIXTEEN = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
DTYPES = (np.dtype(np.float32), np.dtype(np.float64), *SIXTEEN)


def param(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def drawn(case, dtype, rng, kind):
    """x and dy, spoiled where nothing counts; weight and bias; weights; the argument."""
    weights = drawn_weights(case, rng, param(dtype)) if kind == "weights" else None
    mask = drawn_mask(case, rng) if weights is None else weights > 0
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    given = {"mask": mask} if weights is None else {"sample_weight": weights}
    return (
        spoiled(case, x, mask, rng), spoiled(case, dy, mask, rng), case.weight(rng, param(dtype)),
        case.bias(rng, param(dtype)), mask.astype(int) if weights is None else weights, given,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["mask", "weights"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_batch_compressed(rng, isa, case, dtype, kind):
    """Forward, moments and backward, with NaN and infinities under the mask."""
    x, dy, weight, bias, weights, given = drawn(case, dtype, rng, kind)
    axis = case.channel_axis
    got = both_passes(x, dy, weight, bias, axis, **given)
    counted = over_channels(case, weights > 0) & np.ones(case.shape, bool)
    rows, grads = compressed(case, x, weights), shares_of(case, dy, weights)
    once = (weights > 0).astype(int)
    y, dx = (compressed(case, got[name], once) for name in ("y", "dx"))

    assert got["count"] == rows.shape[1] == weights.sum()
    assert got["y"].dtype == got["dx"].dtype == dtype
    assert not got["y"][~counted].any()
    assert not got["dx"][~counted].any()
    m = bnext.moments(x, channel_axis=axis, **given)
    assert m.count == weights.sum()
    assert_same_bits(m.mean, got["mean"])
    assert_same_bits(m.m2, got["m2"])

    expected = reference.backward(grads.astype(np.float64), rows, weight, channel_axis=0)
    sums = sums_of_copies(case, expected.dx, weights)
    if dtype in SIXTEEN:
        wide = reference.forward(rows, weight, bias, channel_axis=0)
        wide = wide[:, np.cumsum(weights.reshape(-1)[once.reshape(-1) > 0]).astype(int) - 1]
        for actual, value in ((y, wide), (dx, sums)):
            scale = np.maximum(np.abs(value).max(1, keepdims=True), 0.25)
            assert_within(
                actual, value, 2 * eps_of(dtype) * np.abs(value) + 4e-5 * scale, "16 bits"
            )
        return
    repeated = np.repeat(y, weights.reshape(-1)[once.reshape(-1) > 0].astype(int), axis=1)
    assert_is_forward(repeated, rows, weight, bias, channel_axis=0)
    if kind == "mask":
        assert_are_gradients(
            (dx, got["dweight"], got["dbias"]), grads, rows, weight, channel_axis=0
        )
        return
    # Of a weight of 4, the share is four times as large beside dy.
    allowed = 4 * tolerances.DX[dtype.type] * units(np.abs(sums).max(1, keepdims=True), dtype)
    terms = np.abs(compressed(case, dy, once)).max(1, keepdims=True) * np.abs(
        weight[:, None] * got["rstd"][:, None]
    )
    allowed = allowed + 4 * tolerances.DX[dtype.type] * units(terms, dtype)
    assert_within(dx, sums, np.broadcast_to(allowed, sums.shape), "dx")


def eps_of(dtype):
    return float(ml_dtypes.finfo(dtype).eps)


@pytest.mark.parametrize("case", CASES[3:9:2], ids=str)
def test_weights_of_any_size(rng, case):
    """Against the formulas in long double."""
    x, dy = case.x(rng, np.float64), case.dy(rng, np.float64)
    weights = rng.exponential(size=positions_of(case)) * drawn_mask(case, rng, 0.7)
    weight, bias = case.weight(rng, np.float64), case.bias(rng, np.float64)
    got = both_passes(x, dy, weight, bias, case.channel_axis, sample_weight=weights)
    once = (weights > 0).astype(int)
    w = weights.reshape(-1)[once.reshape(-1) > 0]
    rows = [compressed(case, each, once) for each in (x, dy)]
    expected = weighted(rows[0], w, rows[1], weight, bias)
    assert abs(got["count"] - w.sum()) <= 1e-14 * w.sum()
    for name, value in zip(("y", "dx", "dweight", "dbias"), expected, strict=True):
        actual = got[name] if value.ndim == 1 else compressed(case, got[name], once)
        np.testing.assert_allclose(actual, value.astype(np.float64), rtol=0, atol=2e-13 * w.size)


def test_a_mask_that_is_true_everywhere_is_none(rng):
    for case in CASES:
        x, dy = case.x(rng, np.float32), case.dy(rng, np.float32)
        plain = both_passes(x, dy, None, None, case.channel_axis)
        positions = positions_of(case)
        for given in (
            {"mask": np.ones(positions, bool)}, {"sample_weight": np.ones(positions, np.float32)},
        ):  # fmt: skip
            got = both_passes(x, dy, None, None, case.channel_axis, **given)
            for name, value in plain.items():
                assert_same_bits(got[name], value, name)


def test_1000_drawn_masks(rng):
    """None, one and all True among them."""
    for number in range(1000):
        n, c, length = rng.integers(1, 7, 3)
        axis = (1, -1)[number % 2]
        shape = (n, c, length) if axis == 1 else (n, length, c)
        x, dy = rng.normal(size=(2, *shape))
        mask = rng.random((n, length)) < (0.5, 0.0, 1.0, 0.2)[number % 4]
        if number % 5 == 0:
            mask[...] = False
            mask.flat[rng.integers(mask.size)] = True
        if mask.size == 1:
            continue  # one value, which is refused without a mask as well
        over = np.expand_dims(mask, axis % 3)
        dirty = np.where(over, x, np.nan), np.where(over, dy, np.inf)
        got = both_passes(*dirty, None, None, axis, mask=mask)
        rows, grads = (
            np.moveaxis(each, axis, 0).reshape(c, -1)[:, mask.reshape(-1)] for each in (x, dy)
        )
        y, dx = (np.moveaxis(got[k], axis, 0).reshape(c, -1) for k in ("y", "dx"))
        assert not y[:, ~mask.reshape(-1)].any()
        assert not dx[:, ~mask.reshape(-1)].any()
        assert got["count"] == mask.sum()
        expected = reference.backward(grads, rows, channel_axis=0)
        for actual, value in (
            (y[:, mask.reshape(-1)], reference.forward(rows, channel_axis=0)),
            (dx[:, mask.reshape(-1)], expected.dx),
            (got["dweight"], expected.dweight), (got["dbias"], expected.dbias),
        ):  # fmt: skip
            np.testing.assert_allclose(actual, value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("axis", [1, -1])
def test_lengths_are_a_mask(rng, axis):
    shape = (6, 5, 9) if axis == 1 else (6, 9, 5)
    x, dy = rng.normal(size=(2, *shape)).astype(np.float32)
    lengths = np.array([9, 0, 1, 5, 8, 3])
    mask = np.arange(9) < lengths[:, None]
    one = both_passes(x, dy, None, None, axis, lengths=lengths)
    two = both_passes(x, dy, None, None, axis, mask=np.expand_dims(mask, axis))
    for name, value in one.items():
        assert_same_bits(two[name], value, name)


def test_shapes_of_masks_and_weights(rng):
    """With an axis of 1 for the channels or without; axes of 1 are broadcast."""
    x = rng.normal(size=(4, 3, 5, 6)).astype(np.float32)
    rows = rng.random((5, 1)) < 0.5
    rows[0] = True
    whole = np.broadcast_to(rows, (4, 5, 6))
    y, _ = bnext.batch_norm_forward(x, mask=whole)
    for mask in (rows[None], rows[None, None], np.broadcast_to(rows, (4, 1, 5, 1))):
        assert_same_bits(bnext.batch_norm_forward(x, mask=mask)[0], y)
    examples = np.array([0.5, 0.0, 2.0, 1.0], np.float32)
    y, _ = bnext.batch_norm_forward(x, sample_weight=examples)
    full = np.broadcast_to(examples[:, None, None], (4, 5, 6))
    assert_same_bits(bnext.batch_norm_forward(x, sample_weight=full)[0], y)
    both = bnext.batch_norm_forward(x, sample_weight=examples, mask=whole)[0]
    assert_same_bits(bnext.batch_norm_forward(x, sample_weight=full * whole)[0], both)


def test_layers(rng):
    """Running statistics weigh by what counts; the mask may change after the call."""
    x, dy = rng.normal(size=(2, 8, 3, 10)).astype(np.float32)
    weights = rng.integers(0, 3, (8, 10)).astype(np.float32)
    layer = bnext.BatchNorm1d(3)
    y = layer(x, sample_weight=weights)
    kept = weights.copy()
    weights[...] = 1
    dx = layer.backward(dy)
    again, saved = bnext.batch_norm_forward(x, sample_weight=kept)
    assert_same_bits(y, again)
    assert_same_bits(dx, bnext.batch_norm_backward(dy, x, saved, layer.weight)[0])
    w = kept.sum()
    np.testing.assert_allclose(layer.running_mean, 0.1 * saved.mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * saved.m2 / (w - 1), rtol=1e-5)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("masked", ["zero", "normalized", "unchanged"])
@pytest.mark.parametrize("counted", [0, 1])
def test_fewer_than_two_values(rng, counted, masked):
    """Running statistics stay, the batch is counted, gradients are 0."""
    x = rng.normal(size=(4, 3, 5)).astype(np.float32)
    mask = np.zeros((4, 5), bool)
    mask.flat[:counted] = True
    layer = bnext.BatchNorm1d(3)
    y = layer(x, mask=mask, masked=masked)
    over = np.broadcast_to(mask[:, None], x.shape)
    assert not y[over].any()
    if masked != "normalized":
        assert_same_bits(y[~over], x[~over] if masked == "unchanged" else np.zeros_like(x[~over]))
    assert np.isfinite(y).all()
    dx = layer.backward(np.full_like(x, np.nan) if counted == 0 else np.ones_like(x))
    assert not dx.any()
    assert not layer.running_mean.any()
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked == 1


def test_weights_up_to_one_together(rng):
    """There is no unbiased variance of so few: running statistics stay."""
    x = rng.normal(size=(4, 3)).astype(np.float32)
    layer = bnext.BatchNorm1d(3)
    layer(x, sample_weight=np.full(4, 0.25, np.float32))
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked == 1
    layer(x, sample_weight=np.full(4, 0.5, np.float32))
    m = bnext.moments(x, sample_weight=np.full(4, 0.5, np.float32))
    assert m.count == 2
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * m.m2, rtol=1e-6)


def test_moments_of_parts_merge(rng):
    """Counts are sums of weights."""
    x = rng.normal(size=(9, 4, 6))
    weights = rng.exponential(size=(9, 6))
    whole = bnext.moments(x, sample_weight=weights)
    parts = [bnext.moments(x[a:b], sample_weight=weights[a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    merged = parts[0] + parts[1] + parts[2]
    assert isinstance(whole.count, float)
    np.testing.assert_allclose(merged.count, whole.count, rtol=1e-14)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-12)
    assert pickle.loads(pickle.dumps(whole)) == whole
