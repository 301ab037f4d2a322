"""Sums over ResNet-50's layers, and lists of slow rows."""

from dataclasses import dataclass

from benchmarks.cases import LAYERS
from bnext.bench.traffic import floor_bytes


@dataclass(frozen=True)
class Sum:
    """Times of the 53 layers, each shape as often as the network has it, under one set of terms."""

    group: str
    dtype: str
    layout: str
    operation: str
    pages: str
    threads: int
    seconds: dict  # of each library with measurements of all shapes
    copy: float  # seconds of the floor bytes at the rate of the copy
    bytes: int  # the floor bytes

    def ratio(self, peer):
        """The ratio of the sums: the time of `peer` over bnext's."""
        return self.seconds[peer] / self.seconds["bnext"]

    @property
    def bandwidth(self):
        return self.bytes / self.seconds["bnext"]

    @property
    def share_of_copy(self):
        """The share of the rate at which arrays of the same sizes were copied."""
        return self.copy / self.seconds["bnext"]


def terms(row):
    """The terms that comparable rows share."""
    return row.group, row.dtype, row.layout, row.operation, row.pages, row.threads


def resnet50_sums(rows):
    """The sums of every group with all twelve shapes, in the order of the rows."""
    by_terms = {}
    for row in rows:
        if row.group.startswith("resnet50") and row.name in LAYERS:
            by_terms.setdefault(terms(row), {})[row.name] = row
    return [_sum(key, found) for key, found in by_terms.items() if set(found) == set(LAYERS)]


def _sum(key, found):
    libraries = set.intersection(*(set(row.timings) for row in found.values()))
    one = next(iter(found.values()))
    seconds = {
        name: sum(LAYERS[shape] * row.timings[name].median for shape, row in found.items())
        for name in one.timings
        if name in libraries
    }
    arrays = floor_bytes(one.operation, 1) / floor_bytes("copy", 1)
    return Sum(
        *key,
        seconds=seconds,
        copy=sum(LAYERS[shape] * row.copy.median * arrays for shape, row in found.items()),
        bytes=sum(LAYERS[s] * floor_bytes(r.operation, r.nbytes) for s, r in found.items()),
    )


def slower_than(rows, peer, ratio):
    """Rows whose ratio to the peer is below `ratio`, the worst first."""
    slow = [row for row in rows if peer in row.timings and row.ratio(peer) < ratio]
    return sorted(slow, key=lambda row: row.ratio(peer))


def below_share(rows, share):
    """Rows with warm pages below this share of the copy bandwidth, the worst first."""
    low = [row for row in rows if row.pages == "warm" and row.share_of_copy("bnext") < share]
    return sorted(low, key=lambda row: row.share_of_copy("bnext"))
