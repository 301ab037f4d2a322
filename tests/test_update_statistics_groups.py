"""update_statistics in groups: members bring parts of the data."""

import copy

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .limits import NEVER
from .statistics_networks import assert_close, dense, in_batches

METHODS = ("exact", "pooled", "average")


@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("method", METHODS)
def test_members_of_a_group_bring_parts_of_the_data(rng, method, keep):
    whole = dense(3, rng, np.float64)
    x = whole.data(rng, 66)
    group = bnext.sync.ThreadGroup(3, timeout=NEVER)
    # The union of the members' first batches is the batch of the whole, and so on.
    shards = [
        np.concatenate(parts)
        for parts in zip(*[np.split(b, 3) for b in np.split(x, 2)], strict=True)
    ]
    replicas = [whole.copy(group) for _ in range(3)]
    bnext.update_statistics(whole, np.split(x, 2), whole.layers, method=method)

    def member(rank, shard):
        network = replicas[rank]
        batches = np.split(shard, 2 if method != "exact" else [1, 5 + rank])
        return bnext.update_statistics(network, batches, network.layers, method=method, keep=keep)

    group.run(member, shards)
    for network in replicas:
        assert_close(network.layers, [(b.running_mean, b.running_var) for b in whole.layers], 1e-11)
        for bn, first in zip(network.layers, replicas[0].layers, strict=True):
            assert_same_bits(bn.running_mean, first.running_mean)
            assert_same_bits(bn.running_var, first.running_var)
            assert bn.group is group


@pytest.mark.parametrize("method", METHODS)
def test_members_may_share_the_layers(rng, method):
    whole = dense(3, rng, np.float64)
    x = whole.data(rng, 60)
    group = bnext.sync.ThreadGroup(2, timeout=NEVER)
    shared = whole.copy(group)
    bnext.update_statistics(whole, np.split(x, 2), whole.layers, method=method)
    halves = [np.split(batch, 2) for batch in np.split(x, 2)]
    shards = [np.concatenate(parts) for parts in zip(*halves, strict=True)]

    def member(rank, shard):
        network = copy.copy(shared)
        return bnext.update_statistics(network, np.split(shard, 2), shared.layers, method=method)

    group.run(member, shards)
    assert_close(shared.layers, [(b.running_mean, b.running_var) for b in whole.layers], 1e-11)


def test_an_error_of_one_member_reaches_the_others(rng):
    group = bnext.sync.ThreadGroup(2, timeout=NEVER)
    replicas = [dense(2, rng, np.float64).copy(group) for _ in range(2)]
    batches = in_batches(replicas[0].data(rng, 20), 5)

    def member(rank, _):
        network = replicas[rank]
        if rank == 1:
            network.hooks[1] = lambda h: 1 / 0
        bnext.update_statistics(network, batches, network.layers)

    with pytest.raises(ZeroDivisionError):
        group.run(member, range(2))
    assert "rank 1 raised ZeroDivisionError" in group.broken
