"""What one process of a group does: python -m tests.sync.worker ENGINE PROGRAM FOLDER ROUNDS
[RANK SIZE]

It writes what it computed, or the error that it got, to FOLDER.
"""

import datetime
import json
import os
import pathlib
import sys
import time

import numpy as np

import bnext
from bnext.devices.libraries import to_numpy

CHANNELS = {"narrow": 5, "wide": 1300}  # the second needs more than a block of a sum
STEPS = 3


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


def folder_of_this():
    return pathlib.Path(sys.argv[3])


def with_fault(group, kind, culprit):
    """One process does something wrong in the second step."""
    first, second = (bnext.BatchNorm1d(4, group=group) for _ in range(2))
    x = np.ones((3, 4), np.float32) * group.rank
    for step in range(3):
        if step == 1 and group.rank == culprit:
            if kind == "raises":
                raise KeyError("mine")
            if kind == "dies":
                (folder_of_this() / f"{group.rank}.json").write_text("[]")
                os._exit(0)
            if kind == "leaves":
                return
            if kind == "late":
                time.sleep(group.timeout * 2)
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
        first(x)
        first.backward(x)
        second(x)


def new_group_of(engine, folder, where, timeout):
    """A function that makes one group after the other; all ranks call it together."""
    if engine == "mpi":
        from mpi4py import MPI

        return lambda: bnext.sync.MPIGroup(MPI.COMM_WORLD, timeout=timeout)
    import torch
    import torch.distributed as dist

    if engine == "staged":  # as with NCCL, over copies, which gloo adds up
        bnext.sync.torch_distributed.device_of = lambda *_: torch.device("cpu")
    rank, size = map(int, where)
    backend = {"staged": "gloo", "nccl-there": "nccl"}.get(engine, engine)
    if "nccl" in backend:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    return lambda: bnext.sync.TorchDistributedGroup(dist.new_group(), timeout=timeout)


def outcome_of(group, kind):
    """What came of a fault that the last rank makes."""
    began = time.monotonic()
    error = None
    try:
        with group:
            with_fault(group, kind, group.size - 1)
    except Exception as caught:
        error = caught
    return {
        "type": type(error).__name__, "text": str(error), "rank": getattr(error, "rank", None),
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def main():
    engine, program, folder, rounds, *where = sys.argv[1:]
    folder = pathlib.Path(folder)
    timeout = 1.0 if program in ("late", "leaves") else 30.0
    new_group = new_group_of(engine, folder, where, timeout)
    group = new_group()
    out = folder / str(group.rank)
    if program == "train":
        put = to_the_gpu if engine == "nccl-there" else np.asarray
        np.savez(out, **train(layers_of(group), group.rank, group.size, put))
        if "nccl" in engine:  # which warns where that is left to the end of the process
            import torch.distributed as dist

            dist.destroy_process_group()
        return
    outcomes = [outcome_of(new_group(), program) for _ in range(int(rounds))]
    out.with_suffix(".part").write_text(json.dumps(outcomes))
    out.with_suffix(".part").rename(out.with_suffix(".json"))
    # Engines wait in their end for messages that were never answered: it is cut short, once all
    # others are through.
    deadline = time.monotonic() + 20
    while len(list(folder.glob("*.json"))) < group.size and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)


if __name__ == "__main__":
    main()
