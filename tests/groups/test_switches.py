"""The switches of layers in groups: frozen ones meet nobody; to use and to move are two things."""

import copy

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from .support import layer_step, new_group

CHANNELS = 4


def layer_of(rng, **options):
    bn = bnext.BatchNorm1d(CHANNELS, dtype=np.float64, **options)
    bn.running_mean[...] = rng.normal(size=CHANNELS)
    bn.running_var[...] = rng.uniform(0.5, 2, CHANNELS)
    return bn


def shards(rng):
    return np.split(rng.normal(2, 3, (20, CHANNELS)), [3, 11])


def test_frozen_layers_exchange_nothing(rng):
    group = new_group(3)
    bn = layer_of(rng, group=group).freeze()
    alone = copy.deepcopy(bn)
    alone.group = None
    parts = shards(rng)
    results = group.run(lambda rank, x: layer_step(bn, x, x) if rank != 1 else None, parts)
    for rank in (0, 2):  # one member does not even come
        for actual, expected in zip(
            results[rank], layer_step(alone, parts[rank], parts[rank]), strict=True
        ):
            assert_same_bits(actual, expected)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bessel", [True, False])
def test_used_and_moved(rng, shared, bessel):
    """Normalized by what they were; moved once, by the whole batch."""
    group = new_group(3)
    first = layer_of(rng, group=group, estimator=bnext.Exponential(0.25, bessel=bessel))
    first.use_running_stats = True
    layers = [first if shared else copy.deepcopy(first) for _ in range(3)]
    alone = copy.deepcopy(first)
    alone.group = None
    parts = shards(rng)
    ys = group.run(lambda rank, x: layers[rank](x), parts)
    np.testing.assert_array_equal(np.concatenate(ys), alone(np.concatenate(parts)))
    for bn in layers:
        np.testing.assert_allclose(bn.running_mean, alone.running_mean, rtol=1e-13)
        np.testing.assert_allclose(bn.running_var, alone.running_var, rtol=1e-13)
        assert_same_bits(bn.running_var, layers[0].running_var)
        assert bn.num_batches_tracked == 1


@pytest.mark.parametrize(
    "estimator", [bnext.Cumulative(), bnext.DebiasedExponential(0.3, bessel=False)]
)
def test_estimators_see_the_whole_batch(rng, estimator):
    group = new_group(3)
    bn = layer_of(rng, group=group, estimator=estimator)
    alone = copy.deepcopy(bn)
    alone.group = None
    for _ in range(3):
        parts = shards(rng)
        group.run(lambda rank, x: bn(x), parts)
        alone(np.concatenate(parts))
        np.testing.assert_allclose(bn.running_mean, alone.running_mean, rtol=1e-13)
        np.testing.assert_allclose(bn.running_var, alone.running_var, rtol=1e-13)
    assert bn.num_batches_tracked == 3


def test_not_moved(rng):
    group = new_group(3)
    bn = layer_of(rng, group=group)
    bn.update_running_stats = False
    before = bn.state_dict()
    parts = shards(rng)
    ys = group.run(lambda rank, x: bn(x), parts)
    expected, _ = bnext.batch_norm_forward(np.concatenate(parts), bn.weight, bn.bias)
    np.testing.assert_allclose(np.concatenate(ys), expected, rtol=1e-12, atol=1e-13)
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)


def test_parameters_that_do_not_train(rng):
    group = new_group(3)
    bn = layer_of(rng, group=group)
    bn.train_affine = False
    group.run(lambda rank, x: layer_step(bn, x, x), shards(rng))
    assert bn.weight_grad is None
    assert bn.bias_grad is None


def test_errors_reach_the_others_where_running_statistics_are_used_and_moved(rng):
    group = new_group(2)
    bn = layer_of(rng, group=group)
    bn.use_running_stats = True
    before = bn.running_mean.copy()
    wide, narrow = rng.normal(size=(6, CHANNELS)), rng.normal(size=(6, CHANNELS - 1))
    seen = []

    def member(rank, x):
        try:
            bn(x)
        except bnext.sync.GroupError as error:
            seen.append(error.reason)
            raise

    with pytest.raises(ValueError, match=r"^x: expected 4 channels at axis 1, got 3"):
        group.run(member, [wide, narrow])
    assert seen == ["rank 1 raised ValueError: x: expected 4 channels at axis 1, got 3"]
    assert_same_bits(bn.running_mean, before)
