"""What one process of a group does with layers of `bnext.torch`; see tests/groups/worker.py.

    python -m tests.torch.worker '{"engine": "gloo", "program": ..., "rank": ..., ...}'

It writes what it has computed, or the errors that it got, to a folder.
"""

import json
import pathlib
import sys

import torch
import torch.distributed as dist

import bnext.torch
from bnext.sync import GroupError, TorchDistributedGroup

from ..groups.worker import Task, new_group_of, write_whole
from ..limits import NEVER
from .penalties import differentiate_twice

CHANNELS = 5
STEPS = 3
TWICE = (None, "relu", "silu")  # activations of layers that are differentiated twice
EACH = 4  # examples of a process where all have equally many


def batch(step, size):
    """A whole batch and its gradient, and where it is cut: shards of unequal size, one empty."""
    torch.manual_seed(step)
    counts = [0 if rank == 1 else 2 + 3 * rank for rank in range(size)]
    x, dy = torch.randn(2, sum(counts), CHANNELS, 3, dtype=torch.float64)
    return x * 2 + 100, dy, counts


def train(layer, rank, size):
    """Steps of a layer, as tensors by name. Rank -1 has the whole batch."""
    results = {}
    for step in range(STEPS):
        x, dy, counts = batch(step, size)
        if rank >= 0:
            x, dy = x.split(counts)[rank], dy.split(counts)[rank]
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results |= {f"y-{step}": y.detach(), f"dx-{step}": leaf.grad}
    gradients = {f"{name} gradient": p.grad for name, p in layer.named_parameters()}
    return results | gradients | dict(layer.named_buffers())


def new_layer(library=torch.nn, **options):
    torch.manual_seed(11)
    kind = library.SyncBatchNorm if library is bnext.torch else library.BatchNorm1d
    return kind(CHANNELS, dtype=torch.float64, **options)


def new_model():
    torch.manual_seed(12)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(4 * 4 * 4, 3),
    ).double()  # fmt: skip


def fit(model, rank, size, steps=10):
    """Steps of SGD on the mean of the loss over the whole batch; weights and buffers after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(13)
    for _ in range(steps):
        x, target = torch.randn(size * EACH, 2, 8, 8), torch.randint(3, (size * EACH,))
        if rank >= 0:
            x, target = x.split(EACH)[rank], target.split(EACH)[rank]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.double()), target).backward()
        optimizer.step()
    return model.state_dict()


def twice_data(size):
    """x, a residual, and where a batch is cut."""
    x, residual, counts = batch(17, size)
    return x, residual, counts


def twice(task):
    """Gradients of gradients of a shard, by layers with each activation."""
    x, residual, counts = twice_data(task.size)
    x, residual = (each.split(counts)[task.rank] for each in (x, residual))
    results = {}
    for activation in TWICE:
        layer = new_layer(bnext.torch, activation=activation)
        results[str(activation)] = differentiate_twice(layer, x, residual, activation)
    return results


def fail_twice(task, group):
    """The last process raises between the first and the second gradients; what came of it."""
    layer, error = new_layer(bnext.torch, process_group=group), None
    try:
        with group:
            x = torch.randn(4, CHANNELS, dtype=torch.float64, requires_grad=True)
            (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
            if task.rank == task.size - 1:
                raise KeyError("mine")
            dx.square().sum().backward()
    except (GroupError, KeyError) as caught:
        error = caught
    return {"type": type(error).__name__, "text": str(error)}


def refusal_of_torch():
    """What PyTorch's layer says of tensors on the CPU."""
    try:
        torch.nn.SyncBatchNorm(CHANNELS)(torch.ones(4, CHANNELS))
    except ValueError as error:
        return str(error)
    return "none"


def learn(task):
    layer = new_layer(bnext.torch)  # in PyTorch's default group
    results = {"layer": train(layer, task.rank, task.size), "refusal": refusal_of_torch()}
    if task.size == 2:
        model = bnext.torch.convert(new_model(), sync=True)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        fit(parallel, task.rank, task.size)
        results["model"] = model.state_dict()
    # Some of the processes are one group, and a process that is in none of it is by itself.
    pair = dist.new_group([0, 1])
    layer = bnext.torch.convert(new_layer(), sync=pair)
    if task.rank < 2:
        results["pair"] = train(layer, task.rank, 2)
    else:
        results["alone"] = train(layer, -1, 2)
    return results


def fail(task, group):
    """The last process does something wrong in the second step; what came of it."""
    torch_s = task.program == "wrong-shape"
    layer = new_layer(bnext.torch, process_group=None if torch_s else group)
    error = None
    try:
        with group:
            for step in range(3):
                wrong = step == 1 and task.rank == task.size - 1
                if wrong and task.program == "raises":
                    raise KeyError("mine")
                shape = (4, 1) if wrong and task.program == "wrong-shape" else (4, CHANNELS)
                layer(torch.randn(shape, dtype=torch.float64)[:, : shape[1]].squeeze(-1))
    except (GroupError, KeyError, ValueError) as caught:
        error = caught
    return {"type": type(error).__name__, "text": str(error)}


def main():
    task = Task(**json.loads(sys.argv[1]))
    folder = pathlib.Path(task.folder)
    new_group_of(task, NEVER)
    if task.program == "learn":
        torch.save(learn(task), folder / f"{task.rank}.pt")
    elif task.program == "twice":
        torch.save(twice(task), folder / f"{task.rank}.pt")
    else:
        group = TorchDistributedGroup(timeout=NEVER)
        outcome = (fail_twice if task.program == "twice-raises" else fail)(task, group)
        write_whole(folder / f"{task.rank}.json", json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
