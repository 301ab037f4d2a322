"""Jittor: nn.BatchNorm, on the CPU."""

import os

os.environ.setdefault("use_mkl", "0")
os.environ.setdefault("nvcc_path", "")

import jittor_utils

# Its first import compiles it, by a compiler for every 3 GiB: here for every processor.
jittor_utils.get_total_mem = lambda: (os.cpu_count() or 1) * 3 * 2**30

import jittor  # noqa: E402

from .recording import Layer, record  # noqa: E402


class BatchNorm(Layer):
    def __init__(self, given, rank):
        self.layer = jittor.nn.BatchNorm(given.weight.size)
        self.layer.weight.assign(jittor.array(given.weight))
        self.layer.bias.assign(jittor.array(given.bias))

    def train(self, x):
        self.layer.train()
        self.layer(jittor.array(x)).sync()

    def infer(self, x):
        self.layer.eval()
        return self.layer(jittor.array(x)).numpy()


if __name__ == "__main__":
    record({"default": BatchNorm}, "jittor")
