"""moments, and Moments as a value that can be merged."""

import dataclasses
import pickle

import numpy as np
import pytest

import bnext

from . import reference
from .compare import assert_are_moments, assert_same_bits, assert_within, units
from .tolerances import FEW_ROUNDINGS


def assert_merged(actual, x):
    """`actual` are the moments of the rows of `x`, up to the roundings of a few merges."""
    expected = reference.moments(x)
    assert actual.count == expected.count
    largest = np.abs(x).max(axis=0)
    of_mean = FEW_ROUNDINGS * units(largest, np.float64)
    assert_within(actual.mean, expected.mean, of_mean, "mean")
    of_m2 = FEW_ROUNDINGS * units(len(x) * largest**2, np.float64)
    assert_within(actual.m2, expected.m2, of_m2, "m2")


@pytest.mark.usefixtures("runtime")
def test_agrees_with_the_definition(rng, case, dtype):
    x = case.x(rng, dtype)
    m = bnext.moments(x, channel_axis=case.channel_axis)
    assert type(m) is bnext.Moments
    assert type(m.count) is int
    assert_are_moments(m, x, channel_axis=case.channel_axis)


@pytest.mark.usefixtures("runtime")
def test_empty_batch(empty_case, dtype):
    case = empty_case
    m = bnext.moments(np.empty(case.shape, dtype), channel_axis=case.channel_axis)
    assert m.count == case.count
    assert m.mean.tolist() == m.m2.tolist() == [0.0] * case.channels


def test_variances():
    m = bnext.Moments(4, np.array([1.0, 2.0]), np.array([8.0, 0.0]))
    assert m.var.tolist() == [2.0, 0.0]
    assert m.unbiased_var.tolist() == [8.0 / 3, 0.0]


@pytest.mark.parametrize("count", [0, 1])
def test_variance_is_not_a_number_where_undefined(count):
    m = bnext.Moments(count, np.zeros(3), np.zeros(3))
    assert np.isnan(m.unbiased_var).all()
    if count == 0:
        assert np.isnan(m.var).all()
    else:
        assert m.var.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("split", [0, 1, 2, 50, 98, 99, 100])
def test_merging_parts_gives_the_whole(rng, split):
    x = rng.normal(3, 2, size=(100, 7))
    one, other = bnext.moments(x[:split]), bnext.moments(x[split:])
    assert_merged(one + other, x)
    assert_merged(other + one, x)
    assert one.merge(other) == one + other


def test_sum_of_many_parts(rng):
    x = rng.normal(3, 2, size=(100, 7))
    parts = [bnext.moments(x[i : i + 9]) for i in range(0, 100, 9)]
    assert_merged(sum(parts, start=bnext.Moments.empty(7)), x)


def test_parts_of_different_means_and_sizes(rng):
    """Where merging is more than adding up: between-part variance dominates."""
    parts = [rng.normal(mean, 1e-3, size=(n, 3)) for mean, n in ((-100, 3), (5, 1000), (70, 41))]
    merged = sum(map(bnext.moments, parts), start=bnext.Moments.empty(3))
    assert_merged(merged, np.concatenate(parts))


def test_empty_is_neutral(rng):
    m = bnext.moments(rng.normal(size=(10, 4)))
    empty = bnext.Moments.empty(4)
    assert empty.count == 0
    assert m + empty == m
    assert empty + m == m
    assert empty + empty == empty


def test_equality_is_of_values(rng):
    x = rng.normal(size=(10, 4))
    m = bnext.moments(x)
    assert m == bnext.moments(x)
    assert m != bnext.moments(x + 1)
    assert m != bnext.Moments(m.count + 1, m.mean, m.m2)
    assert m != bnext.Moments(m.count, m.mean, m.m2 + 1)
    assert m != bnext.moments(x[:, :3])
    assert (m == "moments") is False


def test_merging_changes_neither(rng):
    x = rng.normal(size=(2, 10, 4))
    one, other = bnext.moments(x[0]), bnext.moments(x[1])
    before = [value.copy() for m in (one, other) for value in (m.mean, m.m2)]
    _ = one + other
    after = [value for m in (one, other) for value in (m.mean, m.m2)]
    for now, then in zip(after, before, strict=True):
        assert_same_bits(now, then)
    assert one.count == other.count == 10


@pytest.mark.parametrize("name", ["count", "mean", "m2"])
def test_is_frozen(name):
    m = bnext.Moments.empty(2)
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        setattr(m, name, getattr(m, name))


def test_does_not_follow_the_arrays_it_was_made_from():
    mean, m2 = np.zeros(3), np.ones(3)
    m = bnext.Moments(5, mean, m2)
    mean[0], m2[0] = 7.0, 7.0
    assert (m.mean[0], m.m2[0]) == (0.0, 1.0)


def test_other_channels_cannot_be_merged():
    with pytest.raises(ValueError, match=r"^other: expected 64 channels, got 32$"):
        bnext.Moments.empty(64).merge(bnext.Moments.empty(32))
    with pytest.raises(ValueError, match=r"^other: expected 64 channels, got 32$"):
        bnext.Moments.empty(64) + bnext.Moments.empty(32)


def test_only_moments_can_be_added():
    with pytest.raises(TypeError):
        bnext.Moments.empty(3) + 1


def test_a_low_part_of_the_mean_is_merged(rng):
    """So that parts of data at mean/std = 1e8 give the whole's mean to the deviations' own ulp."""
    parts = np.split(rng.normal(1e8, 1, (40, 3)), [3, 17])
    lows = []
    for part in parts:
        from_pilot = part - 1e8
        mean = 1e8 + from_pilot.mean(0)
        lows.append(bnext.Moments(len(part), mean, part.var(0), from_pilot.mean(0) - (mean - 1e8)))
    whole = lows[0] + lows[1] + lows[2]
    expected = (np.concatenate(parts) - 1e8).mean(0)
    assert np.abs((whole.mean - 1e8) + whole.mean_low - expected).max() < 1e-15
    assert pickle.loads(pickle.dumps(whole)) == whole
    without = bnext.Moments(whole.count, whole.mean, whole.m2)
    assert whole != without
    assert (whole + without).mean_low is None
    with pytest.raises(ValueError, match=r"^mean_low: expected shape \(3,\), got \(2,\)$"):
        bnext.Moments(1, np.zeros(3), np.zeros(3), np.zeros(2))
