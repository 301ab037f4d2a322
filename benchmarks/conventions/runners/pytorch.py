"""PyTorch: the reference. torch.nn.BatchNorm1d and 2d."""

import torch

from .recording import Layer, record


class BatchNorm(Layer):
    suffix = ".pt"

    def __init__(self, given, rank):
        self.layer = self.make(given.weight.size, rank)
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(given.weight))
            self.layer.bias.copy_(torch.from_numpy(given.bias))
        self.momentum, self.eps = self.layer.momentum, self.layer.eps

    def make(self, channels, rank):
        return (torch.nn.BatchNorm2d if rank == 4 else torch.nn.BatchNorm1d)(channels)

    def train(self, x):
        self.layer.train()(torch.from_numpy(x))

    def stored(self):
        return {k: v.numpy() for k, v in self.layer.state_dict().items()}

    def save(self, path):
        torch.save(self.layer.state_dict(), path)

    def infer(self, x):
        with torch.no_grad():
            return self.layer.eval()(torch.from_numpy(x)).numpy()


class WithMomentum(BatchNorm):
    def make(self, channels, rank):
        return (torch.nn.BatchNorm2d if rank == 4 else torch.nn.BatchNorm1d)(channels, momentum=0.3)


class Double(BatchNorm):
    dtype = "float64"

    def make(self, channels, rank):
        return super().make(channels, rank).double()


class Cumulative(BatchNorm):
    def make(self, channels, rank):
        return (torch.nn.BatchNorm2d if rank == 4 else torch.nn.BatchNorm1d)(
            channels, momentum=None
        )


if __name__ == "__main__":
    record(
        {
            "default": BatchNorm, "momentum=0.3": WithMomentum, "momentum=None": Cumulative,
            "float64": Double,
        },
        "torch",
    )  # fmt: skip
