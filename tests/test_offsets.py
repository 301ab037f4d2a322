"""Offsets: examples that follow each other along the first axis, and padding at both ends."""

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .masks import both_passes
from .norms import DTYPES

OFFSETS = np.array([3, 3, 8, 9, 17, 17])


def inside(n, offsets=OFFSETS, lengths=None):
    """What counts, by a loop over examples."""
    counts = np.zeros(n, bool)
    for b in range(len(offsets) - 1):
        end = offsets[b + 1] if lengths is None else offsets[b] + lengths[b]
        counts[offsets[b] : end] = True
    return counts


@pytest.mark.parametrize("shape", [(21, 5), (21, 5, 7), (21, 4, 3, 5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_offsets_are_a_mask_of_positions(rng, isa, shape, dtype):
    """NaN in the padding does not leak; a slice has the same results."""
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    counts = inside(21)
    x[~counts] = dy[~counts] = np.nan
    whole = (21, *shape[2:])
    mask = np.broadcast_to(counts.reshape(-1, *(1,) * (len(shape) - 2)), whole)
    one = both_passes(x, dy, None, None, 1, offsets=OFFSETS)
    two = both_passes(x, dy, None, None, 1, mask=mask)
    for name, value in one.items():
        assert_same_bits(two[name], value, name)
    y, saved = bnext.batch_norm_forward(x[3:17])
    bound = 4 * float(np.abs(y.astype(np.float64)).max()) * float(bnext_eps(dtype))
    np.testing.assert_allclose(
        one["y"][3:17].astype(np.float64), y.astype(np.float64), rtol=0, atol=bound
    )
    assert one["count"] == saved.count


def bnext_eps(dtype):
    import ml_dtypes

    return ml_dtypes.finfo(dtype).eps


def test_without_padding_offsets_are_none(rng):
    x, dy = rng.normal(size=(2, 17, 5, 3)).astype(np.float32)
    plain = both_passes(x, dy, None, None, 1)
    got = both_passes(x, dy, None, None, 1, offsets=np.array([0, 4, 4, 17]))
    for name, value in plain.items():
        assert_same_bits(got[name], value, name)


def test_1000_drawn_offsets(rng):
    """With lengths of examples, or a weight for each."""
    for number in range(1000):
        n, c = rng.integers(2, 12, 2)
        offsets = np.sort(rng.integers(0, n + 1, rng.integers(1, 6)))
        x = rng.normal(size=(n, c)).astype(np.float32)
        sizes = np.diff(offsets)
        if number % 3 == 0:
            lengths = rng.integers(0, sizes + 1)
            given, weights = {"lengths": lengths}, inside(n, offsets, lengths).astype(float)
        elif number % 3 == 1 and len(sizes) != n:
            each = rng.integers(0, 3, len(sizes)).astype(np.float32)
            given, weights = {"sample_weight": each}, np.zeros(n)
            for b, weight in enumerate(each):
                weights[offsets[b] : offsets[b + 1]] = weight
        else:
            given, weights = {}, inside(n, offsets).astype(float)
        m = bnext.moments(x, offsets=offsets, **given)
        assert m.count == weights.sum()
        if m.count:
            mean = (weights[:, None] * x).sum(0) / weights.sum()
            np.testing.assert_allclose(m.mean, mean, rtol=0, atol=1e-6)
            m2 = (weights[:, None] * (x - mean) ** 2).sum(0)
            np.testing.assert_allclose(m.m2, m2, rtol=0, atol=1e-4)


def test_layers_and_an_activation(rng):
    x, dy, residual = rng.normal(size=(3, 21, 5)).astype(np.float32)
    counts = inside(21)
    layer, other = (bnext.BatchNorm1d(5, activation="relu") for _ in range(2))
    y = layer(x, residual=residual, offsets=OFFSETS)
    assert_same_bits(y, other(x, residual=residual, mask=counts))
    for one, two in zip(layer.backward(dy), other.backward(dy), strict=True):
        assert_same_bits(one, two)
        assert not one[~counts].any()
    assert_same_bits(layer.running_var, other.running_var)
    assert_same_bits(
        bnext.normalize(x, np.zeros(5, np.float32), np.ones(5, np.float32), offsets=OFFSETS),
        bnext.normalize(x, np.zeros(5, np.float32), np.ones(5, np.float32), mask=counts),
    )
