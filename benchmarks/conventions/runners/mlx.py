"""MLX: nn.BatchNorm, on the CPU."""

import mlx.core as mx
import numpy as np
from mlx import nn

from .recording import Layer, record


class BatchNorm(Layer):
    channels_last = True
    suffix = ".safetensors"

    def __init__(self, given, rank):
        self.layer = nn.BatchNorm(given.weight.size)
        self.layer.weight, self.layer.bias = mx.array(given.weight), mx.array(given.bias)

    def train(self, x):
        self.layer.train()
        mx.eval(self.layer(mx.array(x)), self.layer.parameters())

    def stored(self):
        return {k: np.array(v) for k, v in self.layer.parameters().items()}

    def save(self, path):
        self.layer.save_weights(path)

    def infer(self, x):
        self.layer.eval()
        return np.array(self.layer(mx.array(x)))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    record({"default": BatchNorm}, "mlx")
