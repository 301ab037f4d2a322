"""Batches that are not finite: with skip_nonfinite they leave running statistics alone."""

import copy
import pickle

import numpy as np
import pytest

import bnext

from .groups.support import new_group

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def batch_of(seed=0, shape=(8, 3, 5), dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def spoiled(value, seed=1, **options):
    x = batch_of(seed, **options)
    x[2, 1, 3] = value
    return x


def running_of(layer):
    return [np.array(getattr(layer, name)) for name in RUNNING]


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def estimators():
    return [bnext.Exponential(), bnext.Cumulative(), bnext.DebiasedExponential(),
            bnext.FirstBatchExponential(bessel=False)]  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("estimator", estimators(), ids=lambda e: type(e).__name__)
def test_a_bad_batch_is_as_if_it_had_not_been(value, estimator):
    layer = bnext.BatchNorm1d(3, estimator=estimator, skip_nonfinite=True)
    expected = bnext.BatchNorm1d(3, estimator=estimator)
    for x in (batch_of(0), spoiled(value), batch_of(2), spoiled(value, 3)):
        layer(x)
        if np.abs(x).max() < 1e10:
            expected(x)
    assert_same(running_of(layer), running_of(expected))
    assert layer.num_batches_skipped == 2
    assert layer.num_batches_skipped.dtype == np.int64


def test_float64_statistics_hold_what_float32_does_not():
    layer = bnext.BatchNorm1d(3, dtype=np.float64, skip_nonfinite=True)
    layer(spoiled(1e30, dtype=np.float64))
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 0)
    layer(spoiled(1e200, dtype=np.float64))
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)


def test_without_the_switch_as_pytorch():
    layer = bnext.BatchNorm1d(3)
    assert layer.num_batches_skipped is None
    assert not layer.skip_nonfinite
    layer(spoiled(np.nan))
    np.testing.assert_array_equal(np.isnan(layer.running_mean), [False, True, False])
    assert layer.num_batches_tracked == 1


def test_output_and_gradients_are_the_same():
    x = spoiled(np.nan)
    one, other = bnext.BatchNorm1d(3, skip_nonfinite=True), bnext.BatchNorm1d(3)
    np.testing.assert_array_equal(one(x), other(x))
    np.testing.assert_array_equal(one.backward(batch_of(5)), other.backward(batch_of(5)))
    np.testing.assert_array_equal(one.weight_grad, other.weight_grad)


def test_a_frozen_layer_that_goes_on_moving_skips():
    layer = bnext.BatchNorm1d(3, skip_nonfinite=True)
    layer.use_running_stats = True
    before = running_of(layer)
    layer(spoiled(np.inf))
    assert_same(before, running_of(layer))
    assert layer.num_batches_skipped == 1


def test_small_batches_are_only_counted():
    layer = bnext.BatchNorm1d(3, skip_nonfinite=True)
    layer(np.empty((0, 3), np.float32))
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 0)


def test_the_switch():
    layer = bnext.BatchNorm1d(3, skip_nonfinite=True)
    layer(spoiled(np.nan))
    layer.skip_nonfinite = True  # does not begin anew
    assert layer.num_batches_skipped == 1
    assert "skip_nonfinite=True" in repr(layer)
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.skip_nonfinite
        assert other.num_batches_skipped == 1
    assert list(layer.state_dict()) == list(bnext.BatchNorm1d(3).state_dict())
    layer.reset_running_stats()
    assert layer.num_batches_skipped == 0
    layer.skip_nonfinite = False
    assert layer.num_batches_skipped is None
    layer(spoiled(np.nan))
    assert np.isnan(layer.running_mean[1])


def test_pickles_of_older_versions_load():
    state = bnext.BatchNorm1d(3).__getstate__()
    del state["num_batches_skipped"]
    layer = bnext.BatchNorm1d.__new__(bnext.BatchNorm1d)
    layer.__setstate__(state)
    assert not layer.skip_nonfinite


def test_errors_come_before_anything_is_touched():
    with pytest.raises(ValueError, match=r"^skip_nonfinite: expected False"):
        bnext.BatchNorm1d(3, track_running_stats=False, skip_nonfinite=True)
    layer = bnext.BatchNorm1d(3, skip_nonfinite=True)
    layer.num_batches_skipped = np.zeros((), np.int32)
    before = running_of(layer)
    with pytest.raises(TypeError, match=r"^num_batches_skipped: expected a writeable int64"):
        layer(batch_of())
    layer.use_running_stats = True
    with pytest.raises(TypeError, match=r"^num_batches_skipped: expected a writeable int64"):
        layer(batch_of())
    assert_same(before, running_of(layer))


@pytest.mark.parametrize("shared", [False, True])
def test_members_of_a_group_skip_together(shared):
    group = new_group(3)
    one = bnext.BatchNorm1d(3, skip_nonfinite=True, group=group)
    layers = [one] * 3 if shared else [copy.copy(copy.deepcopy(one)) for _ in range(3)]
    x = spoiled(np.nan)  # in the first shard alone
    before = running_of(one)
    group.run(lambda rank, shard: layers[rank](shard), np.array_split(x, 3))
    for layer in layers:
        assert_same(before, running_of(layer))
        assert layer.num_batches_skipped == 1
    group.run(lambda rank, shard: layers[rank](shard), np.array_split(batch_of(), 3))
    expected = bnext.BatchNorm1d(3)
    expected(batch_of())
    for layer in layers:
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)
        np.testing.assert_allclose(layer.running_var, expected.running_var, rtol=1e-6)


def test_micro_batches_skip_the_whole_batch():
    layer = bnext.BatchNorm1d(3, skip_nonfinite=True)
    before = running_of(layer)
    with bnext.micro_batches([layer]) as union:
        list(union.run(lambda piece: layer.backward(layer(piece)),
                       np.array_split(spoiled(np.inf), 2)))  # fmt: skip
    assert_same(before, running_of(layer))
    assert layer.num_batches_skipped == 1
