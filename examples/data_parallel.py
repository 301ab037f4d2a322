"""Data-parallel training of a batch-normalized network on the digits: the batch in pieces.

    python examples/data_parallel.py                         one process, the whole batch
    python examples/data_parallel.py threads                 four threads
    mpiexec -n 2 python examples/data_parallel.py mpi        processes under MPI
    torchrun --nproc-per-node 2 examples/data_parallel.py gloo

Each member has a quarter (or half) of every batch and a replica of the network. What they exchange
is the statistics, inside the layer, and the gradients, in `total`. All of these end with the same
weights within rounding; --save writes them.
"""

import argparse
import os
import pathlib
import sys
import threading

import numpy as np

import bnext

EPOCHS, BATCH, RATE, HIDDEN = 3, 96, 0.5, 32


class Network:
    """Two linear layers with batch normalization and a rectifier between them, in float64."""

    def __init__(self, group=None):
        rng = np.random.default_rng(0)  # the same weights in every replica
        self.first = rng.normal(0, 0.1, (64, HIDDEN))
        self.second = rng.normal(0, 0.1, (HIDDEN, 10))
        self.norm = bnext.BatchNorm1d(HIDDEN, dtype=np.float64, group=group)

    def parameters(self):
        return [self.first, self.second, self.norm.weight, self.norm.bias]

    def gradients(self, x, digit, count):
        """Those of the shard's part of the mean cross-entropy of `count` examples."""
        y = self.norm(x @ self.first)
        active = np.maximum(y, 0)
        scores = active @ self.second
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        d_scores = (odds / odds.sum(axis=1, keepdims=True) - np.eye(10)[digit]) / count
        dx = self.norm.backward((d_scores @ self.second.T) * (y > 0))
        return [x.T @ dx, active.T @ d_scores, self.norm.weight_grad, self.norm.bias_grad]

    def accuracy(self, x, digit):
        self.norm.eval()
        scores = np.maximum(self.norm(x @ self.first), 0) @ self.second
        return np.mean(scores.argmax(axis=1) == digit)


def train(rank, size, total, group=None):
    """Train a replica on its shards; `total` adds gradients up over the members."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, digit = digits.data / 16, digits.target
    network = Network(group)
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(x))
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            mine = np.array_split(batch, size)[rank]
            gradients = network.gradients(x[mine], digit[mine], len(batch))
            for parameter, gradient in zip(network.parameters(), total(gradients), strict=True):
                parameter -= RATE * gradient
    return network, network.accuracy(x, digit)


def in_threads(size=4):
    group = bnext.sync.ThreadGroup(size)
    barrier, brought = threading.Barrier(size), [None] * size

    def member(rank, _):
        def total(gradients):
            brought[rank] = gradients
            barrier.wait()
            result = [sum(each) for each in zip(*brought, strict=True)]
            barrier.wait()
            return result

        try:
            return train(rank, size, total, group)
        except BaseException:
            barrier.abort()  # so that nobody waits in `total` for this thread
            raise

    return 0, group.run(member, range(size))[0]


def under_mpi():
    from mpi4py import MPI

    comm = MPI.COMM_WORLD

    def total(gradients):
        return [comm.allreduce(gradient) for gradient in gradients]

    with bnext.sync.MPIGroup(comm) as group:
        return comm.rank, train(comm.rank, comm.size, total, group)


def with_gloo():
    import torch
    import torch.distributed as dist

    if "RANK" not in os.environ:
        raise OSError("gloo: expected to be started by torchrun")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    def total(gradients):
        tensors = [torch.from_numpy(np.ascontiguousarray(gradient)) for gradient in gradients]
        for tensor in tensors:
            dist.all_reduce(tensor)
        return [tensor.numpy() for tensor in tensors]

    with bnext.sync.TorchDistributedGroup() as group:
        result = train(rank, size, total, group)
    dist.destroy_process_group()
    return rank, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = {
        "alone": lambda: (0, train(0, 1, lambda gradients: gradients)),
        "threads": in_threads, "mpi": under_mpi, "gloo": with_gloo,
    }  # fmt: skip
    parser.add_argument("way", nargs="?", default="alone", choices=ways)
    parser.add_argument("--save", metavar="FILE", help="write the weights, as .npz")
    options = parser.parse_args()
    if options.save and not pathlib.Path(options.save).absolute().parent.is_dir():
        parser.error(f"--save: expected a file in an existing folder, got {options.save}")
    rank, (network, accuracy) = ways[options.way]()
    if rank == 0:
        print(f"{options.way}: {accuracy:.1%} of the digits")
        if options.save:
            np.savez(options.save, *network.parameters(), network.norm.running_var)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (ImportError, OSError, bnext.sync.GroupError) as error:
        sys.exit(f"data_parallel.py: {error}")
