"""Groups that are closed: what they held is given back, nobody waits, and later calls say so."""

import contextlib
import copy
import gc
import json
import socket
import threading
import weakref

import numpy as np
import pytest

import bnext
from bnext.groups import processes
from bnext.sync import GroupError

from ..limits import WIDE
from ..subprocesses import output_of
from .support import layer_step, members, new_group
from .test_processes import outcomes_of, run
from .test_sums import Simulated, World

X = np.ones((4, 3), np.float32)
CLOSED = (
    r"expected an open group, got <bnext\.sync\..*closed>; make another one, and give it to the"
)


def test_a_layer_says_that_its_group_was_closed_and_goes_on_with_another():
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    kept = []

    def member(rank):
        kept.append(bnext.batch_norm_forward(X, group=group)[1])
        return layer_step(layer, X, X)

    group.run(lambda rank, _: member(rank), range(2))
    group.close()
    group.close()
    assert group.closed
    assert group.size == 2
    assert repr(group) == "<bnext.sync.ThreadGroup of 2, closed>"
    assert "closed" in repr(layer)
    for call in (
        lambda: layer(X),
        lambda: layer.backward(X),
        lambda: bnext.batch_norm_forward(X, group=group),
        lambda: bnext.batch_norm_backward(X, X, kept[0]),
        lambda: group.run(lambda rank, _: None, range(2)),
        lambda: group.member(0).__enter__(),
        lambda: group.__enter__(),
        group.reset,
        lambda: group.begin(layer),
        lambda: copy.deepcopy(layer)(X),
        lambda: bnext.update_statistics(layer, [X], [layer]),
    ):
        with pytest.raises(GroupError, match=CLOSED) as caught:
            call()
        assert caught.value.reason == "the group was closed"
    layer.eval()
    assert layer(X).shape == X.shape  # which needs no group
    layer.train()
    layer.group = new_group(2)
    assert members(layer.group, lambda rank: layer(X).shape) == [X.shape] * 2


@pytest.mark.parametrize("waits_for", ["run", "member"])
def test_who_waits_is_told_that_the_group_was_closed(waits_for):
    group = new_group(2)
    comes = threading.Event()
    told = []

    def wait(rank, _=None):
        if rank == 1:
            comes.wait(WIDE)
            group.close()
            return
        comes.set()
        try:
            bnext.batch_norm_forward(X, group=group)
        except GroupError as error:
            told.append(error.reason)
            raise

    if waits_for == "run":
        with pytest.raises(GroupError, match="the group was closed"):
            group.run(wait, range(2))
    else:
        members(group, wait)
    # It waits already, or comes later.
    assert told == ["the group was closed"]
    assert group.broken == "the group was closed"


def test_the_end_of_a_block_closes_a_group_of_threads():
    with bnext.sync.ThreadGroup(2) as group:
        assert group.run(lambda rank, shard: shard, "ab") == ["a", "b"]
    assert group.closed
    with pytest.raises(KeyError), contextlib.closing(new_group(2)) as group:
        group.run(lambda rank, shard: {}[shard], "ab")
    assert group.closed


def test_a_broken_group_can_be_closed():
    group = new_group(2)
    with pytest.raises(KeyError):
        group.run(lambda rank, shard: {}[shard], "ab")
    group.close()
    with pytest.raises(GroupError, match=CLOSED):
        group.reset()


def test_a_group_of_processes_that_was_closed():
    group = Simulated(World(1), 0)
    layer = bnext.BatchNorm1d(3, group=group)
    layer_step(layer, X, X)
    layer(X)
    with group:
        group.close()
        with pytest.raises(GroupError, match=CLOSED):
            layer.backward(X)
    header = bnext.sync.Header(0, 1, "forward", 3, "float32")
    rows = np.zeros(3)
    with pytest.raises(GroupError, match=r"^layer 0, step 1, forward: the group was closed$"):
        group.merge_moments(header, 1, rows, rows)
    with pytest.raises(GroupError, match=CLOSED), group:
        pass
    group.fail("raised KeyError")
    assert group.broken == ""
    assert repr(group) == "<bnext.sync.Simulated: rank 0 of 1, closed>"


def test_groups_are_no_part_of_a_cycle():
    """They go with the last that holds them, and not when a collector comes by."""
    gc.disable()
    try:
        for group in (new_group(2), Simulated(World(1), 0)):
            reference = weakref.ref(group)
            group.close()
            del group
        assert reference() is None
    finally:
        gc.enable()


def test_layers_that_died_leave_no_shifts_behind():
    group = Simulated(World(1), 0)
    kept = bnext.BatchNorm1d(3, group=group)
    kept(X)
    for _ in range(10 * processes.ROOM):
        bnext.BatchNorm1d(3, group=group)(X)
    assert len(group._shifts) <= 2 * processes.ROOM
    assert (0, 3) in group._shifts


def test_arrays_of_an_abandoned_exchange_are_kept_until_it_has_ended(monkeypatch):
    monkeypatch.setattr(processes, "_abandoned", [])
    ended = threading.Event()

    class Stuck(Simulated):
        def _is_done(self, request):
            raise KeyboardInterrupt

        def _end_of(self, request):
            return ended.is_set

    group = Stuck(World(1), 0)
    with pytest.raises(KeyboardInterrupt):
        bnext.batch_norm_forward(X, group=group)
    group.close()
    assert len(processes._abandoned) == 1
    ended.set()
    Simulated(World(1), 0)
    assert processes._abandoned == []


FORKED = """
    import os, threading, time
    import numpy as np, bnext
    bnext.set_num_threads(1)
    group = bnext.sync.ThreadGroup(2, timeout=600)
    x, told = np.ones((2, 3), np.float32), []
    def member(rank):
        with group.member(rank):
            told.append(bnext.batch_norm_forward(x, group=group)[1].count)
    waits = threading.Thread(target=member, args=(0,))
    waits.start()
    time.sleep(0.2)  # it is on its way, or sleeps
    child = os.fork()
    if child == 0:
        group.close()
        group.close()
        try:
            group.run(print, "ab")
        except bnext.sync.GroupError:
            del group
            os._exit(7)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    member(1)
    waits.join()
    print(status, told, group.closed)
"""


def test_a_forked_child_closes_only_its_copy():
    assert output_of(FORKED) == "7 [4, 4] False"


ENDING = """
    import bnext
    group = bnext.sync.ThreadGroup(2)
    class AtTheEnd:
        def __del__(self, group=group):
            group.close()
            print(group.closed)
    import sys
    sys.modules["held"] = AtTheEnd()
"""


def test_the_end_of_the_interpreter_may_close_a_group():
    assert output_of(ENDING) == "True"


@pytest.mark.mpi
def test_more_mpi_groups_than_mpi_has_communicators(tmp_path):
    said, statuses = run("mpi", "many-in-mpi", 3, tmp_path, 2100)
    assert statuses == [0], said
    for rank in range(3):
        # In use, and the latest that was given up.
        assert outcomes_of(tmp_path, rank, said) == [3, 3, 5], said


@pytest.mark.gloo
def test_torch_keys_leave_the_store_and_process_groups_can_be_destroyed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    said, statuses = run("gloo", "many-in-torch", 2, tmp_path, 8, store=store)
    assert statuses == [0, 0], said
    for rank in range(2):
        outcome = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(set(outcome["keys"])) == 1, outcome
        assert outcome["destroyed"], outcome
        assert "one that was destroyed" in outcome["said"]
