"""Why some rows stay below half of the copy bandwidth, or behind PyTorch: for the report.

The first pattern that matches "group/case/layout/dtype/operation" gives the cause. One that is not
listed is reported as unexplained, so that nobody has to look for what is missing.
"""

from fnmatch import fnmatchcase

SMALL = 256 * 1024

CAUSES = ()


def cause(row):
    """The cause, in words."""
    key = f"{row.group}/{row.name}/{row.layout}/{row.dtype}/{row.operation}"
    for pattern, words in CAUSES:
        if fnmatchcase(key, pattern):
            return words
    if row.nbytes < SMALL:
        return "small: the call and the caches' latency, not the bytes, take the time"
    return "not explained"
