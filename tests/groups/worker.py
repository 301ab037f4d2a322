"""What one process of a group does: python -m tests.groups.worker '{"engine": ...}', see `Task`.

It writes what it computed, or the errors that it got, to a folder.
"""

import contextlib
import datetime
import json
import os
import pathlib
import signal
import sys
import threading
import time
import typing

import numpy as np

import bnext
from bnext.arrays.libraries import to_numpy

from ..limits import NEVER, WIDE

CHANNELS = {"narrow": 5, "wide": 1300}  # the second needs more than a block of a sum
STEPS = 3
# Where somebody is waited for in vain, or nearly; all others must know without it.
SHORT, LONG = 2.0, NEVER
WAITS = ("late", "slow", "goes", "raises-and-one-is-late", "freezes")


class Task(typing.NamedTuple):
    engine: str
    program: str
    folder: str
    rounds: int = 1
    culprit: int = -1  # -1: the last
    # For gloo; for MPI, mpiexec says.
    rank: int = -1
    size: int = -1
    store: str = ""  # where members find each other: "tcp://...", or a file


def batch(name, step, size):
    """A whole batch and its gradient: a mean far from zero, shards of unequal size, one empty."""
    rng = np.random.default_rng(step)
    counts = [0 if r == 1 else 2 + 3 * r for r in range(size)]
    x, dy = rng.normal(size=(2, sum(counts), CHANNELS[name]))
    return x + 1e6, dy, np.cumsum(counts)[:-1]


def layers_of(group):
    return {
        name: bnext.BatchNorm1d(c, dtype=np.float64, group=group, parameter_gradients="total")
        for name, c in CHANNELS.items()
    }


def train(layers, rank, size, put=np.asarray):
    """Steps of both layers; arrays by name. Rank -1 has the whole batch.

    `put` brings arrays to where they are to be.
    """
    results = {}
    for layer in layers.values():
        layer.to(put(np.zeros(1)))
    for step in range(STEPS):
        for name, layer in layers.items():
            x, dy, cuts = batch(name, step, size)
            if rank >= 0:
                x, dy = np.split(x, cuts)[rank], np.split(dy, cuts)[rank]
            results[f"y-{name}-{step}"] = layer(put(x))
            results[f"dx-{name}-{step}"] = layer.backward(put(dy))
    for name, layer in layers.items():
        for what in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            results[f"{what}-{name}"] = getattr(layer, what)
    return {name: to_numpy(array) for name, array in results.items()}


def to_the_gpu(array):
    import torch

    return torch.from_numpy(array).cuda()


def with_fault(group, kind, culprit):
    """One process does something wrong in the second step."""
    first, second = (bnext.BatchNorm1d(4, group=group) for _ in range(2))
    x = np.ones((3, 4), np.float32) * group.rank
    for step in range(3):
        if step == 1:
            if group.rank == culprit:
                do_wrong(group, kind, first, second, x)
            elif kind == "interrupted" and group.rank == 0:
                time.sleep(0.4)  # so that the others wait
            elif kind == "raises-and-one-is-late" and group.rank == culprit - 1:
                time.sleep(group.timeout * 1.5)
            if kind in ("leaves", "goes", "closes") and group.rank == culprit:
                return
        first(x)
        first.backward(x)
        second(x)


def do_wrong(group, kind, first, second, x):
    """What the culprit does before its next call."""
    if kind.startswith("raises"):
        raise KeyError("mine")
    if kind == "closes":
        group.close()
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "freezes":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "interrupted":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run without
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    if kind == "late":
        time.sleep(group.timeout * 1.5)
    if kind == "slow":  # the roll is called, and then it comes
        time.sleep(group.timeout * 0.6)
    if kind == "other-layer":
        second(x)
    if kind == "other-direction":
        first(x)
    if kind == "other-channels":
        bnext.batch_norm_forward(x[:, :3], group=group)
    if kind == "other-dtype":
        first.dtype = np.dtype(np.float64)
        first.weight, first.bias = np.ones(4), np.zeros(4)
        first.running_mean, first.running_var = np.zeros(4), np.ones(4)
        first(x.astype(np.float64))


def new_group_of(task, timeout):
    """A function that makes one group after the other; all ranks call it together."""
    if task.engine == "mpi":
        from mpi4py import MPI

        return lambda: bnext.sync.MPIGroup(MPI.COMM_WORLD, timeout=timeout)
    import torch
    import torch.distributed as dist

    if task.engine == "staged":  # as with NCCL, over copies, which gloo adds up
        from bnext.groups import torch_distributed

        torch_distributed.device_of = lambda *_: torch.device("cpu")
    backend = {"staged": "gloo", "nccl-there": "nccl"}.get(task.engine, task.engine)
    if "nccl" in backend:
        torch.cuda.set_device(task.rank)
    dist.init_process_group(
        backend, init_method=task.store or f"file://{task.folder}/store",
        rank=task.rank, world_size=task.size, timeout=datetime.timedelta(seconds=WIDE),
    )  # fmt: skip
    return lambda: bnext.sync.TorchDistributedGroup(dist.new_group(), timeout=timeout)


def outcome_of(group, task):
    """What came of the fault."""
    culprit = task.culprit % group.size
    error = None
    try:
        # Who only goes tells nobody.
        silent = task.program == "goes" and group.rank == culprit
        with contextlib.nullcontext() if silent else group:
            with_fault(group, task.program, culprit)
    except BaseException as caught:
        error = caught
    return {
        "type": type(error).__name__, "text": str(error),
        "rank": getattr(error, "rank", None), "reason": getattr(error, "reason", None),
    }  # fmt: skip


def one_after_the_other(new_group, count):
    """Groups that are closed, or garbage, or both, each after an exchange."""
    layer = bnext.BatchNorm1d(4)
    for number in range(count):
        group = layer.group = new_group()
        layer(np.ones((3, 4), np.float32))
        if number % 3:
            group.close()
        if number % 3 == 2:
            group.close()


def many_in_mpi(task, new_group):
    """More groups than MPICH has communicators; then of ranks that differ; then after MPI's end."""
    from mpi4py import MPI

    from bnext.groups import communicators

    world = MPI.COMM_WORLD
    rank = world.rank
    one_after_the_other(new_group, task.rounds)
    kept = [new_group() for _ in range(3)]
    unfreed = [len(communicators._duplicates)]
    for left_out in range(world.size):
        for _ in range(5):
            some = world.Split(int(rank == left_out))
            with contextlib.closing(bnext.sync.MPIGroup(some)) as group, group:
                bnext.batch_norm_forward(np.ones((2, 3)), group=group)
            some.Free()
    bnext.sync.MPIGroup.free_closed(world)
    unfreed.append(len(communicators._duplicates))
    for _ in range(2):  # one rank keeps its group, and no other is kept waiting
        group = new_group()
        if rank:
            group.close()
        else:
            kept.append(group)
    bnext.sync.MPIGroup.free_closed(world)
    unfreed.append(len(communicators._duplicates))
    bnext.batch_norm_forward(np.ones((2, 3)), group=kept[0])
    MPI.Finalize()
    for group in kept:
        group.close()
    write_whole(pathlib.Path(task.folder) / f"{rank}.json", json.dumps(unfreed))


def many_in_torch(task, new_group):
    """How many keys there are in the store after some groups, and whether the last one is freed."""
    import gc
    import weakref

    import torch.distributed as dist

    from bnext.groups import store_board

    process_group = dist.new_group()
    store = process_group.get_group_store()
    keys = []
    for _ in range(task.rounds):
        for close in (True, False):
            group = bnext.sync.TorchDistributedGroup(process_group, timeout=LONG)
            with group:
                bnext.batch_norm_forward(np.ones((2, 3)), group=group)
            if close:
                group.close()
            del group
        last = bnext.sync.TorchDistributedGroup(process_group, timeout=LONG)
        last.close()  # and with it what was garbage
        store_board.finish_requests()
        dist.barrier()
        keys.append(store.num_keys())
        dist.barrier()
    kept = bnext.sync.TorchDistributedGroup(process_group, timeout=LONG)
    bnext.batch_norm_forward(np.ones((2, 3)), group=kept)
    reference = weakref.ref(process_group)
    dist.destroy_process_group(process_group)
    del process_group, store
    gc.collect()
    try:
        bnext.batch_norm_forward(np.ones((2, 3)), group=kept)
        said = ""
    except bnext.sync.GroupError as error:
        said = str(error)
    kept.close()
    outcome = {"keys": keys, "destroyed": reference() is None, "said": said}
    write_whole(pathlib.Path(task.folder) / f"{task.rank}.json", json.dumps(outcome))
    dist.destroy_process_group()


PROGRAMS = {"many-in-mpi": many_in_mpi, "many-in-torch": many_in_torch}


def write_whole(path, text):
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def in_children(task):
    """Each round in processes of its own, which have what takes long from their parent."""
    import torch.distributed  # noqa: F401

    folder = pathlib.Path(task.folder)
    outcomes = []
    for number in range(task.rounds):
        child = os.fork()
        if child == 0:
            new_group = new_group_of(task._replace(store=f"file://{folder}/store-{number}"), LONG)
            said = outcome_of(new_group(), task)
            write_whole(folder / f"{task.rank}-{number}.json", json.dumps(said))
            os._exit(0)
        os.waitpid(child, 0)
        said = folder / f"{task.rank}-{number}.json"
        outcomes.append(json.loads(said.read_text()) if said.exists() else None)
    write_whole(folder / f"{task.rank}.json", json.dumps(outcomes))


def main():
    task = Task(**json.loads(sys.argv[1]))
    if task.engine == "gloo" and task.program == "dies" and not task.store:
        in_children(task)
        return
    folder = pathlib.Path(task.folder)
    if task.program.startswith("many"):
        PROGRAMS[task.program](task, new_group_of(task, LONG))
        return
    new_group = new_group_of(task, SHORT if task.program in WAITS else LONG)
    group = new_group()
    write_whole(folder / f"{group.rank}.pid", str(os.getpid()))
    if task.program == "train":
        put = to_the_gpu if task.engine == "nccl-there" else np.asarray
        with group:
            arrays = train(layers_of(group), group.rank, group.size, put)
            np.savez(folder / str(group.rank), **arrays)
        if "nccl" in task.engine:  # which warns where that is left to the end of the process
            import torch.distributed as dist

            dist.destroy_process_group()
        return
    outcomes = [outcome_of(new_group(), task) for _ in range(task.rounds)]
    write_whole(folder / f"{group.rank}.json", json.dumps(outcomes))
    # Engines wait in their end for messages that were never answered: it is cut short, once all
    # others are through.
    gone = {task.culprit % group.size} if task.program in ("dies", "freezes") else set()
    others = [folder / f"{rank}.json" for rank in range(group.size) if rank not in gone]
    deadline = time.monotonic() + WIDE
    while not all(map(pathlib.Path.exists, others)) and time.monotonic() < deadline:
        time.sleep(0.01)
    if task.program == "freezes":
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((folder / f"{task.culprit}.pid").read_text()), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
