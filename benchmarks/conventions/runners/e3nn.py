"""e3nn: nn.BatchNorm on scalars, an irrep for each channel."""

import numpy as np
import torch
from e3nn import nn, o3

from .recording import Layer, record


class Scalars(Layer):
    """Channels are last, and samples everything before them."""

    channels_last = True

    def __init__(self, given, rank):
        self.layer = nn.BatchNorm(o3.Irreps(f"{given.weight.size}x0e"))
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(given.weight))
            self.layer.bias.copy_(torch.from_numpy(given.bias))
        self.momentum, self.eps = self.layer.momentum, self.layer.eps

    def train(self, x):
        self.layer.train()(torch.from_numpy(x))

    def stored(self):
        return {k: v.numpy() for k, v in self.layer.state_dict().items()}

    def infer(self, x):
        with torch.no_grad():
            return np.array(self.layer.eval()(torch.from_numpy(x)))


if __name__ == "__main__":
    record({"scalars": Scalars}, "e3nn", "torch")
