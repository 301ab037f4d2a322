"""What is measured, as data: how many members, how many channels, which shards, for how long."""

from dataclasses import dataclass

from benchmarks.cases import RESNET50

KINDS = ("moments", "sums")  # what is exchanged in the forward and in the backward pass
ENGINES = ("mpi", "gloo")

# Batch-norm layers of ResNet-50 by channels: all that an exchange depends on.
LAYERS = {c: sum(n for d, _, n in RESNET50 if d == c) for c in sorted({c for c, _, _ in RESNET50})}


@dataclass(frozen=True)
class Scale:
    """One size of a run. `seconds` are for each comparison, shared by what is compared."""

    threads: tuple
    channels: tuple
    shards: tuple  # of one example each, for threads and for processes
    processes: tuple
    larger_shards: tuple  # for processes alone
    nbytes: tuple  # of the collectives of the engine alone
    seconds: float
    jitter_seconds: float

    def processes_on(self, processors):
        """Numbers of processes: also powers of two for as long as each has a processor."""
        more = [2**k for k in range(3, 7) if 2**k <= processors]
        return (*self.processes, *more)


def rows(channels):
    """Shards that are one row, of one value per channel."""
    return tuple((1, c) for c in channels)


CHANNELS = (16, 64, 256, 1024, 4096)
PLANE = (1, 256, 14, 14)

FULL = Scale(
    threads=(2, 4, 8, 16, 32, 64),
    channels=CHANNELS,
    shards=(*rows(CHANNELS), PLANE),
    processes=(1, 2, 3, 4),
    larger_shards=((8, 256, 14, 14),),
    nbytes=tuple(8 * 4**k for k in range(11)),  # to 8 MiB
    seconds=0.5,
    jitter_seconds=8.0,
)

# What a developer looks at while working.
QUICK = Scale(
    threads=(2, 4, 8),
    channels=(16, 256, 4096),
    shards=(*rows((16, 1024)), PLANE),
    processes=(1, 2),
    larger_shards=(),
    nbytes=tuple(8 * 8**k for k in range(7)),  # to 2 MiB
    seconds=0.1,
    jitter_seconds=1.0,
)

# What the tests run: every kind of measurement once.
TINY = Scale(
    threads=(2,),
    channels=(4, 600),
    shards=rows((4,)),
    processes=(1, 2),
    larger_shards=(),
    nbytes=(8, 1 << 10, 1 << 18),
    seconds=0.005,
    jitter_seconds=0.1,
)
