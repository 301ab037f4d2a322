"""PyTorch: the reference. torch.nn.BatchNorm1d and 2d."""

from types import MappingProxyType

import torch

from .recording import Layer, record


class BatchNorm(Layer):
    suffix = ".pt"
    options = MappingProxyType({})

    def __init__(self, given, rank):
        self.layer = self.make(given.weight.size, rank)
        own = getattr(self.layer, "module", self.layer)
        with torch.no_grad():
            own.weight.copy_(torch.from_numpy(given.weight))
            own.bias.copy_(torch.from_numpy(given.bias))
        self.momentum, self.eps = own.momentum, own.eps

    def make(self, channels, rank):
        return (torch.nn.BatchNorm2d if rank == 4 else torch.nn.BatchNorm1d)(
            channels, **self.options
        )

    def train(self, x):
        self.layer.train()(torch.from_numpy(x))

    def save(self, path):
        torch.save(self.layer.state_dict(), path)

    def infer(self, x):
        with torch.no_grad():
            return self.layer.eval()(torch.from_numpy(x)).numpy()


class WithMomentum(BatchNorm):
    options = MappingProxyType({"momentum": 0.3})


class Cumulative(BatchNorm):
    options = MappingProxyType({"momentum": None})


class Double(BatchNorm):
    dtype = "float64"

    def make(self, channels, rank):
        return super().make(channels, rank).double()


if __name__ == "__main__":
    record(
        {
            "default": BatchNorm, "momentum=0.3": WithMomentum, "momentum=None": Cumulative,
            "float64": Double,
        },
        "torch",
    )  # fmt: skip
