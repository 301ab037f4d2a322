"""What the tests of the benchmark suite share: tiny cases, and oneDNN where it is installed."""

import pytest

from benchmarks import shared_libraries
from bnext.bench.cases import Case

TINY = (
    Case("planes", (3, 20, 4, 6)),
    Case("planes", (3, 20, 4, 6), channels_last=True),
    Case("rows", (12, 5)),
    Case("volume, misaligned", (2, 3, 2, 3, 4), aligned=False),
)


def require_onednn():
    """Skip the test where oneDNN cannot be had, saying why."""
    try:
        shared_libraries.onednn()
    except shared_libraries.UnavailableError as reason:
        pytest.skip(str(reason))
