"""Sums over ResNet-50's layers, and what is asked of them, as data."""

from dataclasses import dataclass

from benchmarks.cases import LAYERS
from benchmarks.promises import Verdict
from bnext.bench.traffic import floor_bytes

# Norms of errors over norms. A result that is rounded once is half a unit off at most, which for
# evenly spread significands is about a quarter of the unit in the root of the mean square.
LARGEST_ERROR = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 4e-3}
FORWARD_AND_BACKWARD = ("forward", "backward")


@dataclass(frozen=True)
class Sum:
    """Kernel times of layers under the same terms, each shape as often as the network has it."""

    group: str
    dtype: str
    layout: str
    operation: str
    layers: int
    seconds: dict  # of each library that was measured in all of them
    copied: float  # what the floor bytes take at the rate of the copy
    bytes: int  # the floor

    def ratio(self, peer):
        return self.seconds[peer] / self.seconds["bnext"]

    @property
    def share_of_copy(self):
        return self.copied / self.seconds["bnext"]


def sums(rows, chosen=lambda row: True, complete=True):
    """A sum for each set of terms, in the order of the rows.

    With `complete`, sums that lack one of the twelve shapes are left out; `chosen` picks rows after
    that has been looked at.
    """
    by_terms = {}
    for row in rows:
        if row.group.startswith("resnet50") and row.case.name in LAYERS:
            by_terms.setdefault(row.terms, {})[row.case.name] = row
    found = []
    for terms, of_terms in by_terms.items():
        if complete and set(of_terms) != set(LAYERS):
            continue
        picked = [row for row in of_terms.values() if chosen(row)]
        if picked:
            found.append(_sum(terms, picked))
    return found


def _sum(terms, rows):
    weights = [LAYERS[row.case.name] for row in rows]
    libraries = [n for n in rows[0].kernel if all(n in row.kernel for row in rows)]

    def total(values):
        return sum(w * v for w, v in zip(weights, values, strict=True))

    return Sum(
        *terms,
        layers=sum(weights),
        seconds={n: total(row.kernel[n].median for row in rows) for n in libraries},
        copied=total(row.copied for row in rows),
        bytes=total(floor_bytes(row.operation, row.case.nbytes) for row in rows),
    )


def on_chip_bytes(device):
    """The most of a slab that blocks which wait for each other can keep in shared memory.

    From compute capability 9.0 on they are a cluster of 16 at most; before, a block is alone.
    """
    blocks = 16 if device["compute_capability"][0] >= 9 else 1
    return blocks * device["shared_per_block"]


def verdicts(rows, device):
    """What is asked of the speed, beside what was measured."""
    limit = on_chip_bytes(device)
    by_terms = {(s.group, s.dtype, s.layout, s.operation): s for s in sums(rows)}
    fitting = sums(rows, lambda row: row.slab_bytes <= limit)
    fits = {(s.group, s.dtype, s.layout, s.operation): s for s in fitting}
    found = []

    def ask(text, least, terms, sums_of, figure, where=lambda s: ""):
        s = sums_of.get(terms)
        value = None if s is None else figure(s)
        found.append(Verdict(text, least, value, where(s) if value is not None else ""))

    def against(peer):
        return lambda s: s.ratio(peer) if peer in s.seconds else None

    for batch in (64, 256):
        for dtype in ("float32", "bfloat16"):
            for operation in FORWARD_AND_BACKWARD:
                group = f"resnet50-b{batch}"
                about = f"{dtype}, batch {batch}, {operation}"
                planar = group, dtype, "planar", operation
                ask(f"{about}, planar: x PyTorch", 1.3, planar, by_terms, against("torch"))
                ask(
                    f"{about}, planar: of copy, where the slab fits on chip",
                    0.8,
                    planar,
                    fits,
                    lambda s: s.share_of_copy,
                    lambda s: f"{s.layers} of 53 layers",
                )
                ask(
                    f"{about}, channels last: x cuDNN",
                    1.0,
                    (group, dtype, "channels last", operation),
                    by_terms,
                    against("cudnn"),
                )
    return found


def wrong(rows):
    """Rows whose results are further from float64 than rounding explains."""
    return [
        (row, name, error)
        for row in rows
        for name, error in row.errors.get("bnext", {}).items()
        if not error <= LARGEST_ERROR[row.case.dtype]  # a NaN is wrong as well
    ]
