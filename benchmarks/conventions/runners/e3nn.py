"""e3nn: nn.BatchNorm on scalars, an irrep for each channel."""

from e3nn import nn, o3

from .pytorch import BatchNorm
from .recording import record


class Scalars(BatchNorm):
    """Channels are last, and samples everything before them."""

    channels_last = True
    suffix = ""

    def make(self, channels, rank):
        return nn.BatchNorm(o3.Irreps(f"{channels}x0e"))


if __name__ == "__main__":
    record({"scalars": Scalars}, "e3nn", "torch")
