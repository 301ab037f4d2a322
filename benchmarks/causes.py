"""Why some rows stay below half of the copy bandwidth, or behind PyTorch: for the report.

The first pattern that matches "group/case/layout/dtype/operation" gives the cause. One that is not
listed is reported as unexplained, so that nobody has to look for what is missing.
"""

from fnmatch import fnmatchcase

SMALL = 256 * 1024
LAST_LEVEL = 16 << 20  # of the machine that the causes were looked for on

TWICE = (
    "both phases read their inputs from memory: a channel's values lie in every row, and columns "
    "narrow enough for a cache to hold all their rows were no quicker (csrc/core/plan.cpp)"
)
SHORT_PLANES = (
    "planes of a few hundred bytes: each begins and ends within a line, which two packs share, and "
    "whole lines cannot be streamed"
)
LONG_SLABS = "a channel's values exceed the second-level cache and are read again from further away"
CACHED = (
    "all of it fits the last-level cache, whose copy is bound by nothing else, while sums are kept "
    "in double"
)

CAUSES = (
    ("*/*/channels last/*/forward", TWICE),
    ("*/*/channels last/*/backward", TWICE),
    ("*/*/rows/*/forward", TWICE),
    ("*/*/rows/*/backward", TWICE),
    ("*/*x14x14/planar/*", SHORT_PLANES),
    ("*/*x7x7*/planar/*", SHORT_PLANES),
    ("*/tiny planes/planar/*", SHORT_PLANES),
    ("*/few channels/planar/*", LONG_SLABS),
    ("*/large planes/planar/*", LONG_SLABS),
)


def cause(row):
    """The cause, in words."""
    if row.nbytes < SMALL:
        return "small: the call and the caches' latency, not the bytes, take the time"
    key = f"{row.group}/{row.name}/{row.layout}/{row.dtype}/{row.operation}"
    for pattern, words in CAUSES:
        if fnmatchcase(key, pattern):
            return words
    if row.nbytes < LAST_LEVEL:
        return CACHED
    return "not explained"
