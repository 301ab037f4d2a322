"""ThreadGroup: members, run, executors, reset, interrupts; and the literal case of the issue."""

import copy
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from .. import reference
from ..compare import assert_are_gradients, assert_is_forward, assert_same_bits
from ..limits import TEST, WIDE
from ..subprocesses import run_python
from .support import layer_step, members, new_group

STEPS = int(os.environ.get("BNEXT_BARRIER_STEPS", "20"))


@pytest.mark.timeout(TEST + STEPS)
def test_64_threads_with_one_example_each(rng):
    """20 neurons, forward and backward, the same bits at every step and in every run."""
    x, dy = (rng.normal(size=(64, 20)).astype(np.float32) for _ in range(2))
    weight, bias = rng.normal(size=(2, 20)).astype(np.float32)
    group = new_group(64)
    runs = []
    for _ in range(2):
        layer = bnext.BatchNorm1d(20, group=group)
        layer.weight[...], layer.bias[...] = weight, bias

        def member(rank, example, layer=layer):
            first = layer_step(layer, example, dy[rank : rank + 1])
            for _ in range(STEPS - 1):
                y, dx = layer_step(layer, example, dy[rank : rank + 1])
                assert y.tobytes() == first[0].tobytes()
                assert dx.tobytes() == first[1].tobytes()
            return *first, layer.weight_grad, layer.bias_grad

        results = group.run(member, np.split(x, 64))
        assert layer.num_batches_tracked == STEPS
        ys, dxs, dweights, dbiases = zip(*results, strict=True)
        y, dx = np.concatenate(ys), np.concatenate(dxs)
        assert_is_forward(y, x, weight, bias)
        assert_are_gradients((dx, dweights[0], dbiases[0]), dy, x, weight)
        assert len({a.tobytes() for a in dweights}) == len({a.tobytes() for a in dbiases}) == 1
        runs.append((y.tobytes(), dx.tobytes(), layer.running_var.tobytes()))
    assert runs[0] == runs[1]


def test_results_are_in_the_order_of_ranks():
    group = new_group(3)

    def fn(rank, shard):
        time.sleep(0.01 * (3 - rank))
        assert group.rank == rank
        return rank, shard

    assert group.run(fn, "abc") == [(0, "a"), (1, "b"), (2, "c")]
    assert group.rank_or_none is None


def test_the_first_error_comes_back_with_its_rank():
    group = new_group(4)
    layer = bnext.BatchNorm1d(2, group=group)

    def fn(rank, x):
        if rank == 2:
            raise KeyError("mine")
        layer(x)

    with pytest.raises(KeyError, match="mine") as caught:
        group.run(fn, [np.ones((2, 2), np.float32)] * 4)
    assert caught.value.rank == 2
    assert caught.value.__notes__ == ["This was rank 2 of 4."]
    assert group.broken == "rank 2 raised KeyError: 'mine'"
    with pytest.raises(GroupError, match="rank 2 raised KeyError") as again:
        group.run(fn, range(4))
    assert again.value.rank == 2
    group.reset()
    assert group.broken == ""
    assert group.run(lambda rank, x: layer(x).shape, [np.ones((2, 2), np.float32)] * 4)


def test_a_member_that_never_ends_is_left_behind():
    group = new_group(2, 0.1)
    forever, ended = threading.Event(), []

    def fn(rank, _):
        if rank == 0:
            forever.wait(WIDE)
            ended.append(rank)
        else:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        group.run(fn, range(2))
    assert not ended
    group.reset()
    assert group.run(lambda rank, _: rank, range(2)) == [0, 1]
    forever.set()


def test_as_many_shards_as_members():
    with pytest.raises(ValueError, match=r"^shards: expected 3, one a member, got 2$"):
        new_group(3).run(lambda rank, shard: None, range(2))


@pytest.mark.parametrize("workers", [4, 6])
def test_tasks_of_an_executor(rng, workers):
    """Tasks of several steps are under way at once; each step is a membership of its own."""
    group = new_group(4)
    layer = bnext.BatchNorm1d(3, group=group)
    alone = bnext.BatchNorm1d(3)
    batches = rng.normal(size=(25, 8, 3)).astype(np.float32)

    def task(rank, x):
        with group.member(rank):
            return layer(x)

    def in_turn(rank):
        return [task(rank, np.split(batch, 4)[rank]) for batch in batches]

    with ThreadPoolExecutor(workers) as executor:
        results = list(executor.map(in_turn, range(4)))
    for step, batch in enumerate(batches):
        y = np.concatenate([result[step] for result in results])
        np.testing.assert_allclose(y, alone(batch), atol=1e-5)
    with ThreadPoolExecutor(workers) as executor:  # and one step after the other
        for batch in batches:
            y = np.concatenate(list(executor.map(task, range(4), np.split(batch, 4))))
            np.testing.assert_allclose(y, alone(batch), atol=1e-5)
    assert layer.num_batches_tracked == 50


def test_several_groups_at_once(rng):
    """Sub-groups: ranks 0 and 1, 2 and 3; a thread is a member of one and of the whole."""
    everybody, halves = new_group(4), [new_group(2), new_group(2)]
    x = rng.normal(size=(8, 3)).astype(np.float32)

    def fn(rank, shard):
        half = halves[rank // 2]
        with half.member(rank % 2):
            a = bnext.batch_norm_forward(shard, group=half)[0]
        return a, bnext.batch_norm_forward(shard, group=everybody)[0]

    results = everybody.run(fn, np.split(x, 4))
    assert_is_forward(np.concatenate([a for a, _ in results[:2]]), x[:4])
    assert_is_forward(np.concatenate([a for a, _ in results[2:]]), x[4:])
    assert_is_forward(np.concatenate([b for _, b in results]), x)


def test_copies_of_a_layer_are_replicas_in_the_same_group(rng):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    replicas = [layer, copy.deepcopy(layer)]
    assert replicas[1].group is group
    x = rng.normal(size=(6, 3)).astype(np.float32)
    group.run(lambda rank, shard: layer_step(replicas[rank], shard, shard), np.split(x, 2))
    assert_same_bits(replicas[0].running_var, replicas[1].running_var)
    assert not np.array_equal(replicas[0].weight_grad, replicas[1].weight_grad)


def test_a_reset_frees_who_waits():
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    x = np.ones((2, 3), np.float32)
    told = []
    begins = threading.Event()

    def waits():
        with group.member(0):
            for _ in range(2):
                begins.set()
                try:
                    layer(x)
                except GroupError as error:
                    told.append(error.reason)

    thread = threading.Thread(target=waits)
    thread.start()
    begins.wait(WIDE)
    time.sleep(0.5)  # it is on its way to the barrier, and waits there for the other one
    group.reset()
    thread.join(WIDE)
    assert not thread.is_alive()
    # The second call comes while the others are being told, or after it.
    assert told[0] == "the group was reset"
    assert told[1:] in (["the group was reset"], ["rank 0 is no member since a reset"])
    assert members(group, lambda rank: layer(x).shape) == [(2, 3)] * 2


def test_backward_is_each_members_own(rng):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)

    def fn(rank, shard):
        layer_step(layer, shard, shard)
        layer.backward(shard)

    with pytest.raises(RuntimeError, match="expected a forward call before it"):
        group.run(fn, np.split(rng.normal(size=(6, 3)).astype(np.float32), 2))


def test_who_is_no_member_is_told_so():
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    text = r"^group: expected a call from a member, got one from a thread that is none"
    for call in (layer, lambda x: bnext.batch_norm_forward(x, group=group)):
        with pytest.raises(GroupError, match=text):
            call(np.ones((2, 3), np.float32))
    assert group.broken == ""


def test_wrong_arguments():
    group = new_group(2)
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"^size: expected an integer >= 1, got 0$"):
        bnext.sync.ThreadGroup(0)
    with pytest.raises(TypeError, match=r"^size: expected an integer, got float$"):
        bnext.sync.ThreadGroup(2.0)
    for bad in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^timeout: expected seconds above 0"):
            bnext.sync.ThreadGroup(2, timeout=bad)
    with pytest.raises(TypeError, match=r"^timeout: expected seconds, got NoneType$"):
        bnext.sync.ThreadGroup(2, timeout=None)
    for rank in (-1, 2):
        text = rf"^rank: expected an integer from 0 to 1, got {rank}$"
        with pytest.raises(ValueError, match=text), group.member(rank):
            pass
    with group.member(1):
        text = r"^rank: expected a thread that is no member, got rank 0 for one that is rank 1$"
        with pytest.raises(ValueError, match=text), group.member(0):
            pass
        with ThreadPoolExecutor(1) as executor:
            future = executor.submit(lambda: group.member(1).__enter__())
            with pytest.raises(ValueError, match=r"^rank: expected one that is free, got 1"):
                future.result()
    with pytest.raises(TypeError, match=r"^group: expected a bnext\.sync group, got int$"):
        bnext.BatchNorm1d(3, group=4)
    with pytest.raises(TypeError, match=r"^group: expected a bnext\.sync group, got int$"):
        bnext.batch_norm_forward(x, group=4)
    text = r"^parameter_gradients: expected 'local' or 'total', got 'mean'$"
    with pytest.raises(ValueError, match=text):
        bnext.BatchNorm1d(3, parameter_gradients="mean")
    _, saved = bnext.batch_norm_forward(x)
    with pytest.raises(ValueError, match=r"^group: expected None"):
        bnext.batch_norm_backward(x, x, saved, group=group)


def test_group_of_one(rng):
    group = new_group(1)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    with group.member(0):
        y, saved = bnext.batch_norm_forward(x, group=group)
    expected, _ = bnext.batch_norm_forward(x)
    assert_same_bits(y, expected)
    assert saved.count == reference.moments(x).count == 5


INTERRUPTED_IN_RUN = """
    import signal, threading, time
    import numpy as np, bnext
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the tests may run without
    group = bnext.sync.ThreadGroup(3, timeout=1200)
    x, told = np.ones((2, 3), np.float32), []
    def fn(rank, shard):
        if rank == 2:
            time.sleep(1200)
        try:
            bnext.batch_norm_forward(shard, group=group)
        except bnext.sync.GroupError as error:
            told.append(str(error))
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        group.run(fn, [x] * 3)
    except KeyboardInterrupt:
        print(len(told), set(told))
"""

INTERRUPTED_MEMBER = """
    import signal, threading, time
    import numpy as np, bnext
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the tests may run without
    group = bnext.sync.ThreadGroup(3, timeout=1200)
    x, told = np.ones((2, 3), np.float32), []
    def other():
        try:
            with group.member(1):
                bnext.batch_norm_forward(x, group=group)
        except bnext.sync.GroupError as error:
            told.append(str(error))
    thread = threading.Thread(target=other)
    thread.start()
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with group.member(0):
            bnext.batch_norm_forward(x, group=group)
    except KeyboardInterrupt:
        thread.join()
        print(len(told), set(told))
"""


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (INTERRUPTED_IN_RUN, "2 {'a call without a layer, step 0, forward: run raised "),
        (INTERRUPTED_MEMBER, "1 {'a call without a layer, step 0, forward: rank 0 was "),
    ],
    ids=["run", "member"],
)
def test_keyboard_interrupt_while_waiting(program, expected):
    result = run_python(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(expected), result.stdout


def test_a_layer_that_died_leaves_its_number_to_nobody():
    group = new_group(2)
    x = np.ones((3, 4), np.float32)
    kept = [bnext.BatchNorm1d(4, group=group) for _ in range(2)]

    def member(rank):
        passing = bnext.BatchNorm1d(4, group=group)
        passing(x)
        kept[rank](x)
        del passing
        gc.collect()
        new = bnext.BatchNorm1d(4, group=group)
        return [group.begin(layer)[0] for layer in (kept[rank], new)]

    assert members(group, member) == [[1, 2]] * 2
