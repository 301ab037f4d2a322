"""PyTorch Geometric: nn.BatchNorm, on rows alone."""

import torch
from torch_geometric.nn import BatchNorm

from .recording import Layer, record


class Rows(Layer):
    ranks = (2,)

    def __init__(self, given, rank):
        self.layer = BatchNorm(given.weight.size)
        with torch.no_grad():
            self.layer.module.weight.copy_(torch.from_numpy(given.weight))
            self.layer.module.bias.copy_(torch.from_numpy(given.bias))
        self.momentum, self.eps = self.layer.module.momentum, self.layer.module.eps

    def train(self, x):
        self.layer.train()(torch.from_numpy(x))

    def stored(self):
        return {k: v.numpy() for k, v in self.layer.state_dict().items()}

    def infer(self, x):
        with torch.no_grad():
            return self.layer.eval()(torch.from_numpy(x)).numpy()


if __name__ == "__main__":
    record({"default": Rows}, "torch-geometric", "torch")
