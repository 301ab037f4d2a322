"""Moments by one plain sum over ranks: what processes exchange, with ranks simulated by threads."""

import threading

import numpy as np
import pytest

import bnext
from bnext.groups.processes import ProcessGroup
from bnext.sync import GroupError

from .. import reference
from ..compare import assert_same_bits
from ..limits import NEVER, WIDE
from .support import in_threads

SIZE = 8


class World:
    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=WIDE)
        self.brought = [None] * size

    def collect(self, rank, array):
        self.brought[rank] = array.copy()
        self.barrier.wait()
        result = list(self.brought)
        self.barrier.wait()
        return result


class Simulated(ProcessGroup):
    """A rank whose engine is memory; it counts sums and the numbers in them."""

    def __init__(self, world, rank):
        super().__init__(rank, len(world.brought), NEVER, block=16)
        self._world = world
        self.sums = []

    def _start_sum(self, buffer):
        self.sums.append(buffer.size)
        buffer[...] = sum(self._world.collect(self._rank, buffer))

    def _is_done(self, request):
        return True


def on_all_ranks(body, size=SIZE):
    world = World(size)
    ranks = [Simulated(world, rank) for rank in range(size)]
    return in_threads(lambda rank: body(ranks[rank]), size), ranks


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4, 1e8])
def test_variance_is_stable_and_takes_one_sum(rng, mean):
    """Only a layer's first step, far from zero, needs a second sum; its mean is then the shift."""
    batches = [rng.normal(mean + 0.1 * step, 1, size=(61, 5)) for step in range(4)]

    def body(group):
        layer = bnext.BatchNorm1d(5, dtype=np.float64, group=group, momentum=1.0)
        variances, sums = [], []
        for batch in batches:
            before = len(group.sums)
            layer(np.array_split(batch, SIZE)[group.rank])
            sums.append(len(group.sums) - before)
            variances.append(layer.running_var.copy())
        return variances, sums

    results, _ = on_all_ranks(body)
    for variances, sums in results:
        assert sums == [1 if mean < 10 else 2, 1, 1, 1]
        for batch, variance, same in zip(batches, variances, results[0][0], strict=True):
            expected = reference.moments(batch).m2 / 60
            # The means of the shards are rounded at their own magnitude.
            bound = 1e-12 + 8 * np.spacing(mean)
            np.testing.assert_allclose(variance, expected, rtol=bound)
            assert_same_bits(variance, same)


def test_a_shift_that_is_far_off_is_noticed(rng):
    def body(group):
        layer = bnext.BatchNorm1d(3, dtype=np.float64, group=group, momentum=1.0)
        for mean in (0.0, 1e6):
            shard = np.random.default_rng(group.rank).normal(mean, 1, (4, 3))
            layer(shard)
        return shard, layer.running_var

    results, ranks = on_all_ranks(body)
    expected = reference.moments(np.concatenate([shard for shard, _ in results])).m2 / 31
    np.testing.assert_allclose(results[0][1], expected, rtol=1e-8)
    assert len(ranks[0].sums) == 3


def test_numbers_per_rank_do_not_depend_on_ranks(rng):
    def body(group):
        shard = np.random.default_rng(group.rank).normal(size=(3, 40))
        bnext.batch_norm_forward(shard, group=group)

    sizes = {size: on_all_ranks(body, size)[1][0].sums for size in (2, 9)}
    assert sizes[2] == sizes[9] == [12 + 2 * 16, 2 * (40 - 16)]


def test_nan_and_infinity_stay_in_their_channels(rng):
    def body(group):
        layer = bnext.BatchNorm1d(3, dtype=np.float64, group=group)
        for bad in (np.nan, np.inf, 0.0):
            shard = np.random.default_rng(group.rank).normal(size=(4, 3))
            shard[0, 2] += bad if group.rank == 1 else 0.0
            y = layer(shard)
            assert np.isfinite(y[:, :2]).all()
            assert np.isfinite(y[:, 2]).all() == (bad == 0.0)

    results, _ = on_all_ranks(body)
    assert results == [None] * SIZE


def test_headers_that_differ_are_told_apart():
    def body(group):
        x = np.ones((2, 3 + (group.rank == 5)), np.float32)
        bnext.batch_norm_forward(x, group=group)

    results, ranks = on_all_ranks(body)
    assert all(isinstance(error, GroupError) for error in results)
    reason = "rank 5 differs from rank 0: 4 channels instead of 3 channels"
    assert {error.reason for error in results} == {reason}
    assert {error.rank for error in results} == {5}
    assert {group.broken for group in ranks} == {reason}
