"""Layers are the caller's but for the time that a step runs, however micro_batches is left."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bnext

from .compare import assert_same_bits
from .snapshots import assert_unchanged, layer_state, snapshot

X = np.random.default_rng(0).normal(1, 3, (20, 4))
PIECES = [X[:7], X[7:]]
LENT_IN_A_STEP = r"layers\[0\]: expected a layer at rest, got one in the middle of"


def new(**options):
    return bnext.BatchNorm1d(4, dtype=np.float64, **options)


def assert_is_the_caller_s(bn):
    """It normalizes by its own batch, and moves by it, as a layer that was never lent."""
    expected = new()
    expected.load_state_dict(bn.state_dict())
    for _ in range(2):
        assert_same_bits(bn(X), expected(X))
        assert_same_bits(bn.backward(X), expected.backward(X))
    assert_same_bits(bn.running_var, expected.running_var)
    assert bn.num_batches_tracked == expected.num_batches_tracked
    assert bn.group is None


def by_an_error(bn):
    with bnext.micro_batches([bn]) as union:
        for _ in union.run(bn, PIECES):
            raise KeyError("mine")


def by_an_error_with_the_results_kept(bn):
    with bnext.micro_batches([bn]) as union:
        results = union.run(bn, PIECES)
        next(results)
        raise KeyError("mine")


def by_an_error_of_the_step(bn):
    def step(x):
        bn(x)
        raise KeyError("mine")

    with bnext.micro_batches([bn]) as union:
        list(union.run(step, PIECES))


@pytest.mark.parametrize(
    "leave", [by_an_error, by_an_error_with_the_results_kept, by_an_error_of_the_step]
)
def test_left_by_an_error_that_is_kept(leave):
    bn = new()
    with pytest.raises(KeyError, match="mine") as kept:
        leave(bn)
    assert bn.num_batches_tracked == 0
    assert_is_the_caller_s(bn)
    del kept


def test_left_with_results_that_nobody_took():
    bn = new()
    with bnext.micro_batches([bn]) as union:
        results = union.run(bn, PIECES)
        next(results)
    assert_is_the_caller_s(bn)
    state = snapshot(layer_state(bn))
    with pytest.raises(RuntimeError, match=r"^run: expected its results to be taken inside of"):
        next(results)
    assert_unchanged(layer_state(bn), state)
    assert_is_the_caller_s(bn)


@pytest.mark.parametrize("ends", ["closed", "collected"])
def test_what_ends_later_changes_nothing(ends):
    bn = new()
    with bnext.micro_batches([bn]) as union:
        results = union.run(bn, PIECES)
        next(results)
    bn.eval()
    y = bn(X)
    state = snapshot(layer_state(bn))
    if ends == "closed":
        results.close()
    del results
    gc.collect()
    assert_unchanged(layer_state(bn), state)
    np.testing.assert_allclose(bn.backward(X), X / np.sqrt(bn.running_var + bn.eps), rtol=1e-14)
    assert_same_bits(bn(X), y)
    assert_is_the_caller_s(bn.train())


def test_layers_work_in_the_body_of_the_loop():
    """Validation between results, and another union."""
    bn, expected = new(), new()
    whole = expected(X)
    got = []
    with bnext.micro_batches([bn]) as union:
        for y in union.run(bn, PIECES):
            got.append(y)
            bn.eval()
            # Its statistics have not moved yet.
            np.testing.assert_allclose(bn(X), X / np.sqrt(1 + bn.eps), rtol=1e-14)
            bn.train()
    np.testing.assert_allclose(np.concatenate(got), whole, rtol=1e-12)
    np.testing.assert_allclose(bn.running_var, expected.running_var, rtol=1e-12)


def test_two_unions_that_take_turns():
    bn, expected = new(), new()
    whole = expected(X)
    with bnext.micro_batches([bn]) as union:
        one, other = union.run(bn, PIECES), union.run(bn, [X[:3], X[3:]])
        got = [[], []]
        for number, y in enumerate([next(one), next(other), next(one), next(other)]):
            got[number % 2].append(y)
        assert next(one, None) is next(other, None) is None
    for parts in got:
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12)
    assert bn.num_batches_tracked == 2


def test_a_step_cannot_begin_another_union():
    bn = new()

    def by_the_same(x):
        return list(union.run(bn, [x]))

    def by_another(x):
        with bnext.micro_batches([bn]) as inner:
            return list(inner.run(bn, [x]))

    def by_statistics(x):
        return bnext.update_statistics(bn, [x], [bn])

    for step in (by_the_same, by_another, by_statistics):
        with bnext.micro_batches([bn]) as union:
            with pytest.raises(RuntimeError, match=LENT_IN_A_STEP):
                list(union.run(step, PIECES))
            assert_is_the_caller_s(bn)


def test_update_statistics_cannot_be_nested():
    bn = new()
    before = snapshot(layer_state(bn))

    def network(x):
        with bnext.micro_batches([bn]) as union:
            return list(union.run(bn, [x]))

    for method in ("exact", "pooled", "average"):
        with pytest.raises(RuntimeError, match=LENT_IN_A_STEP):
            bnext.update_statistics(network, PIECES, [bn], method)
        assert_unchanged(layer_state(bn), before)


def test_a_context_is_opened_once():
    bn = new()
    union = bnext.micro_batches([bn])
    with union:
        with pytest.raises(RuntimeError, match="expected a context that is not open"), union:
            raise AssertionError
        assert len(list(union.run(bn, PIECES))) == 2
    with union:  # and again, after it was left
        assert len(list(union.run(bn, PIECES))) == 2
    assert bn.num_batches_tracked == 2


def test_errors_name_layers_by_their_places_in_the_list():
    frozen, bn = new().freeze(), new()
    bn.running_mean.flags.writeable = False
    with (
        bnext.micro_batches([frozen, bn]) as union,
        pytest.raises(ValueError, match=r"^layers\[1\]\.running_mean: expected a writeable array"),
    ):
        list(union.run(bn, PIECES))


def test_members_of_a_group_learn_of_one_that_leaves():
    """And nothing breaks the group later, when the results die that the member has kept."""
    group = bnext.sync.ThreadGroup(2, timeout=30)
    replicas = [new(group=group) for _ in range(2)]
    kept = []

    def member(rank, x):
        with bnext.micro_batches([replicas[rank]]) as union:
            results = union.run(replicas[rank], [x[:4], x[4:]])
            if rank == 1:
                kept.append(results)
                next(results)
                return None
            return list(results)

    group.run(member, [X[:10], X[10:]])
    assert "left micro_batches before the last result" in group.broken
    group.reset()
    kept.clear()
    gc.collect()
    assert group.broken == ""
    group.run(lambda rank, x: replicas[rank](x), [X[:10], X[10:]])


def test_other_threads_do_not_see_a_step():
    """A layer that another thread calls meanwhile normalizes by itself there."""
    bn = new()
    bn.update_running_stats = False
    others = []

    def step(x):
        with ThreadPoolExecutor(1) as executor:
            others.append(executor.submit(bn, X).result())
        return bn(x)

    with bnext.micro_batches([bn]) as union:
        ys = list(union.run(step, PIECES))
    alone = new()(X)
    np.testing.assert_allclose(np.concatenate(ys), alone, rtol=1e-12)
    assert len(others) == 4  # two pieces in two rounds
    for y in others:
        assert_same_bits(y, alone)


def test_members_that_share_a_layer_are_told_to_have_replicas():
    group = bnext.sync.ThreadGroup(2, timeout=30)
    bn = new(group=group)

    def member(rank, x):
        with bnext.micro_batches([bn]) as union:
            return list(union.run(bn, [x[:4], x[4:]]))

    text = r"^layers\[0\]: expected a replica for each member of the group, got a layer that"
    with pytest.raises(RuntimeError, match=text):
        group.run(member, [X[:10], X[10:]])
    assert bn.num_batches_tracked == 0
