"""What is measured and what is promised, as data."""

from dataclasses import dataclass, replace

from benchmarks import cases
from benchmarks.environment import caches

OPERATIONS = ("forward", "backward")
DTYPES = ("float32", "bfloat16")
LAYOUTS = {False: "planar", True: "channels last"}


@dataclass(frozen=True)
class Epilogue:
    """What follows normalization."""

    activation: str | None = None
    residual: bool = False

    @property
    def name(self):
        words = (["add"] if self.residual else []) + ([self.activation] if self.activation else [])
        return " + ".join(words) or "none"

    def arguments(self, data):
        """Of a forward call. `data.dy` stands for the residual too: no call here reads both."""
        return {"activation": self.activation, "residual": data.dy if self.residual else None}


NONE, RELU, ADD_RELU = Epilogue(), Epilogue("relu"), Epilogue("relu", residual=True)
SILU, GELU = Epilogue("silu"), Epilogue("gelu")
OTHERS = ("relu6", "leaky_relu", "hardswish", "gelu_tanh", "sigmoid", "tanh")

# What is measured beside the plain operation, and how many times as long it may take, in float32
# and beyond the last-level cache.
COSTS = {
    "forward": {RELU: 1.05, ADD_RELU: 1.5, SILU: 1.25, GELU: 1.25}
    | {Epilogue(name): None for name in OTHERS},
    "backward": {RELU: 1.08, ADD_RELU: 1.4, SILU: None, GELU: None},
}

# How many times as fast as PyTorch's operators: all layers of ResNet-50, by dtype and layout.
SUMS = {
    ("float32", "planar"): {"forward": 4.5, "backward": 2.2},
    ("float32", "channels last"): {"forward": 2.2, "backward": 1.9},
    ("bfloat16", "planar"): {"forward": 2.5, "backward": 2.5},
    ("bfloat16", "channels last"): {"forward": 2.5, "backward": 2.5},
}

# How many times as fast as others' fused code: planar, in float32, beyond the last-level cache.
FUSED = {
    "compile": {"forward": 1.5, "backward": 1.2},
    "onednn_best": {"forward": 1.1, "backward": 1.1},
}

PLANAR = {case.name: case for case in cases.resnet50(32) if not case.channels_last}
LARGE = tuple(PLANAR[name] for name in ("64x56x56", "256x56x56", "1024x14x14"))


def is_beyond_caches(case):
    """Whether x alone is larger than the last-level cache."""
    return case.nbytes > max(caches().values(), default=0)


def large():
    """LARGE; where all of it fits this machine's caches, also the largest, at a larger batch."""
    largest = max(LARGE, key=lambda case: case.nbytes)
    batch, *rest = largest.shape
    while not is_beyond_caches(largest):
        batch *= 2
        largest = replace(largest, shape=(batch, *rest))
    if largest in LARGE:
        return LARGE
    return (*LARGE, replace(largest, name=f"{largest.name} at batch {batch}"))


# Layers that end a block, after which the shortcut is added. The others of these shapes are on a
# shortcut, where nothing follows.
ENDS = {"256x56x56": 3, "512x28x28": 4, "1024x14x14": 6, "2048x7x7": 3}


def layers():
    """The layers of ResNet-50: a case, what follows it, and how many of them there are."""
    for name, count in cases.LAYERS.items():
        if name in ENDS:
            yield PLANAR[name], ADD_RELU, ENDS[name]
            yield PLANAR[name], NONE, count - ENDS[name]
        else:
            yield PLANAR[name], RELU, count


def variants(case, dtypes):
    """The case in each dtype and layout."""
    return [replace(case, dtype=d, channels_last=last) for d in dtypes for last in LAYOUTS]
