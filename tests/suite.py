"""What the tests of the benchmark suite share: tiny cases, and oneDNN where it is installed."""

from benchmarks import plots, shared_libraries
from bnext.bench.cases import Case

from .optional import NotHere

TINY = (
    Case("planes", (3, 20, 4, 6)),
    Case("planes", (3, 20, 4, 6), channels_last=True),
    Case("rows", (12, 5)),
    Case("volume, misaligned", (2, 3, 2, 3, 4), aligned=False),
)


def no_picture(figure, path):
    """In place of `plots.save`, which takes longer than all else."""
    plots.pyplot().close(figure)


def require_onednn():
    """A test that is not run where oneDNN cannot be had, and why."""
    try:
        shared_libraries.onednn()
    except shared_libraries.UnavailableError as reason:
        raise NotHere("oneDNN", str(reason)) from None
