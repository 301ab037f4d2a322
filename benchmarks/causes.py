"""Why some rows stay below half of the copy bandwidth, or behind PyTorch: for the report.

A row has the first cause whose condition holds. A row without a cause is reported as unexplained.
"""

from math import prod

SMALL = 256 * 1024
# The caches of one core, and of all, on the machine where the causes were found (Zen 4).
L2, L3 = 1 << 20, 32 << 20
SHORT = 1024  # bytes of a plane
FEW_ROWS = 512  # bytes of a channel in all arrays


def _arrays(row):
    return 3 if row.operation == "backward" else 2


def _slab(row):
    """Bytes of one channel in all arrays of the call."""
    return _arrays(row) * row.nbytes // row.shape[1]


def _plane(row):
    return row.nbytes // prod(row.shape[:2])


def _is_planar(row):
    return row.layout == "planar"


CAUSES = (
    (
        lambda row: row.nbytes < SMALL,
        "small: the call and the caches' latency, not the bytes, take the time",
    ),
    (
        lambda row: not _is_planar(row) and row.operation != "inference" and row.shape[1] < 16,
        "rows narrower than a register: the reduction uses a few of its lanes",
    ),
    (
        lambda row: not _is_planar(row) and row.operation != "inference" and row.nbytes > L3 // 4,
        "both phases read their inputs from memory: a channel's values lie in every row, and "
        "columns narrow enough for a cache to hold all their rows were no quicker "
        "(csrc/cpu/schedule.cpp)",
    ),
    (
        lambda row: not _is_planar(row) and _slab(row) < FEW_ROWS,
        "few rows: statistics in double are as many bytes as the data, and go from core to core",
    ),
    (
        lambda row: _is_planar(row) and _plane(row) < SHORT,
        "short planes: a few packs and a masked rest each, whose sums in double take longer than "
        "their memory",
    ),
    (
        lambda row: _is_planar(row) and row.operation != "inference" and _slab(row) > L2,
        "a channel's values exceed the second-level cache and are read again from further away",
    ),
    (
        lambda row: _arrays(row) * row.nbytes <= 2 * L3,
        "most of it fits the last-level cache, whose copy is bound by nothing else, while sums are "
        "kept in double",
    ),
    (
        lambda row: row.operation != "inference",
        "a block is read and then written, and reading alone runs at two thirds of a copy's rate; "
        "prefetching the next block while one is written makes up for a part",
    ),
)


def cause(row):
    """The cause, in words."""
    return next((words for holds, words in CAUSES if holds(row)), "not explained")
