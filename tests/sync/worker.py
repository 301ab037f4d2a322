"""What one process of a group does: python -m tests.sync.worker ENGINE PROGRAM FOLDER [RANK SIZE]

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


def train(layers, rank, size):
    """Steps of both layers; arrays by name. Rank -1 has the whole batch."""
    results = {}
    for step in range(STEPS):
        for name, layer in layers.items():
            x, dy, cuts = batch(name, step, size)
            if rank >= 0:
                x, dy = np.split(x, cuts)[rank], np.split(dy, cuts)[rank]
            results[f"y-{name}-{step}"] = layer(x)
            results[f"dx-{name}-{step}"] = layer.backward(dy)
    for name, layer in layers.items():
        for what in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            results[f"{what}-{name}"] = getattr(layer, what)
    return results


def with_fault(group, kind, culprit):
    """One process does something wrong in the second step."""
    first, second = (bnext.BatchNorm1d(4, group=group) for _ in range(2))
    x = np.ones((3, 4), np.float32) * group.rank
    for step in range(3):
        if step == 1 and group.rank == culprit:
            if kind == "raises":
                raise KeyError("mine")
            if kind == "dies":
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
                first(x.astype(np.float64))
        first(x)
        first.backward(x)
        second(x)


def main():
    engine, program, folder, *where = sys.argv[1:]
    folder = pathlib.Path(folder)
    timeout = 2.0 if program in ("late", "leaves", "dies") else 30.0
    if engine == "mpi":
        from mpi4py import MPI

        group = bnext.sync.MPIGroup(MPI.COMM_WORLD, timeout=timeout)
    else:
        import torch.distributed as dist

        rank, size = map(int, where)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size,
            timeout=datetime.timedelta(seconds=60),
        )  # fmt: skip
        group = bnext.sync.TorchDistributedGroup(timeout=timeout)
    out = folder / str(group.rank)
    if program == "train":
        np.savez(out, **train(layers_of(group), group.rank, group.size))
    else:
        began = time.monotonic()
        try:
            with group:
                with_fault(group, program, group.size - 1)
            error = None
        except Exception as caught:
            error = caught
        result = {
            "type": type(error).__name__, "text": str(error), "rank": getattr(error, "rank", None),
            "seconds": time.monotonic() - began,
        }  # fmt: skip
        out.with_suffix(".json").write_text(json.dumps(result))
        # Engines wait in their end for messages that were never answered.
        deadline = time.monotonic() + 20
        while len(list(folder.glob("*.json"))) < group.size - (program == "dies"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        os._exit(0)


if __name__ == "__main__":
    main()
