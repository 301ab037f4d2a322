"""What is trained, as data."""

from dataclasses import dataclass

NETWORKS = ("resnet18", "resnet50", "mlp")
TITLES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "mlp": "MLP"}
DTYPES = ("float32", "bfloat16")  # the second by autocast
PIXELS = 28  # of the MLP's images, which are what it is defined for


@dataclass(frozen=True)
class Case:
    """A network, its batch and the extent of its images."""

    network: str
    batch: int
    size: int
    dtype: str = "float32"
    channels_last: bool = False
    device: str = "cpu"

    def __post_init__(self):
        if self.network == "mlp":
            object.__setattr__(self, "size", PIXELS)
            object.__setattr__(self, "channels_last", False)

    @property
    def shape(self):
        """Of the input."""
        if self.network == "mlp":
            return (self.batch, self.size**2)
        return (self.batch, 3, self.size, self.size)

    @property
    def title(self):
        words = [TITLES[self.network], f"{self.batch} images of {self.size} x {self.size}"]
        if self.channels_last:
            words.append("channels last")
        return ", ".join([*words, self.dtype])


FULL = (
    Case("resnet18", 16, 64),
    Case("resnet18", 16, 64, channels_last=True),
    Case("resnet18", 16, 64, dtype="bfloat16"),
    Case("resnet18", 16, 224),
    Case("resnet50", 16, 64),
    Case("resnet50", 8, 224),
    Case("mlp", 60, PIXELS),
)
QUICK = (Case("resnet18", 4, 64), Case("mlp", 60, PIXELS))
# Small: they are trained six times, and in float64 as well.
LOSSES = (
    Case("resnet18", 8, 64),
    Case("resnet18", 8, 64, dtype="bfloat16"),
    Case("resnet50", 8, 64),
    Case("mlp", 60, PIXELS),
)
