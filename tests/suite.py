"""What the tests of the benchmark suite share: tiny cases."""

from benchmarks import plots
from bnext.bench.cases import Case

TINY = (
    Case("planes", (3, 20, 4, 6)),
    Case("planes", (3, 20, 4, 6), channels_last=True),
    Case("rows", (12, 5)),
    Case("volume, misaligned", (2, 3, 2, 3, 4), aligned=False),
)


def no_picture(figure, path):
    """In place of `plots.save`, which takes longer than all else."""
    plots.pyplot().close(figure)
