"""PyTorch Geometric: nn.BatchNorm, on rows alone."""

from torch_geometric import nn

from .pytorch import BatchNorm
from .recording import record


class Rows(BatchNorm):
    ranks = (2,)
    suffix = ""

    def make(self, channels, rank):
        return nn.BatchNorm(channels)


if __name__ == "__main__":
    record({"default": Rows}, "torch-geometric", "torch")
