"""The promises of speed, as data, and whether results keep them.

Promises are for two threads and, unless they say otherwise, for the kernels alone: warm pages. A
ratio is the peer's time over bnext's.
"""

from dataclasses import dataclass

from benchmarks.kit.promises import Verdict, resnet50_sums

THREADS = 2
LARGE = 50e6  # bytes of a tensor whose pages cost more than any kernel
TOLERATED = 0.95  # the least ratio to PyTorch that counts as equal
LOW_SHARE = 0.5  # of the copy bandwidth; below, the report says why


@dataclass(frozen=True)
class OfSum:
    """The ratio of the sums over ResNet-50's 53 layers at batch 32."""

    dtype: str
    layout: str
    operation: str
    peer: str
    least: float
    pages: str = "warm"

    @property
    def text(self):
        return (
            f"{self.dtype}, {self.layout}, ResNet-50 at batch 32: {self.operation}, "
            f"{self.pages} pages, against {NAMES[self.peer]}"
        )

    def verdict(self, results):
        wanted = "resnet50-b32", self.dtype, self.layout, self.operation, self.pages, THREADS
        found = results.sums.get(wanted)
        return Verdict(self.text, self.least, found and found.ratio(self.peer))


@dataclass(frozen=True)
class OfEach:
    """The lowest ratio to PyTorch of the rows that `chosen` accepts.

    All of `shapes`, if given, must have been measured. `figure` may replace the ratio.
    """

    text: str
    least: float
    chosen: object
    shapes: tuple = ()
    figure: object = staticmethod(
        lambda row: row.ratio("torch") if "torch" in row.timings else None
    )

    def verdict(self, results):
        rows = [row for row in results.rows if row.threads == THREADS and self.chosen(row)]
        if self.shapes:
            rows = [row for row in rows if row.shape in self.shapes]
        figures = [(self.figure(row), row) for row in rows if self.figure(row) is not None]
        missing = set(self.shapes) - {row.shape for _, row in figures}
        if missing or not figures:
            return Verdict(self.text, self.least, None)
        worst, row = min(figures, key=lambda pair: pair[0])
        where = f"{row.label}, {row.dtype}, {row.operation}, {row.pages}"
        if row.handover_ns:
            where += f", hand-over {row.handover_ns:.0f} ns"
        return Verdict(self.text, self.least, worst, where)


# Names for sentences; peers.TITLES has names for tables.
NAMES = {"torch": "PyTorch", "onednn": "oneDNN", "onednn_best": "oneDNN's best layout"}


def _float32(row):
    return row.dtype == "float32" and row.aligned


def _kernels(*operations):
    return lambda row: _float32(row) and row.pages == "warm" and row.operation in operations


def _both(row):
    return _kernels("forward", "backward")(row)


WIDE_ROWS = (8192, 4096), (140_000, 256)
OTHER_ROWS = (100_000, 32), (1024, 1024), (64, 512), (256, 1000)
CLIFFS = (7, 20_000), (256, 3, 224, 224), (2, 64, 1024, 1024)
F32, BF16 = "float32", "bfloat16"

PROMISES = (
    OfSum(F32, "planar", "forward", "torch", 3.5),
    OfSum(F32, "planar", "forward", "onednn_best", 1.0),
    OfSum(F32, "planar", "forward", "torch", 6.0, "fresh"),
    OfSum(F32, "planar", "backward", "torch", 1.25),
    OfSum(F32, "planar", "backward", "torch", 4.0, "fresh"),
    *(
        OfSum(F32, "channels last", operation, peer, least)
        for operation in ("forward", "backward")
        for peer, least in (("torch", 1.4), ("onednn", 1.2))
    ),
    OfEach(
        "float32 rows (8192, 4096), (140000, 256): forward and backward, against PyTorch",
        1.5,
        _both,
        WIDE_ROWS,
    ),
    OfEach(
        "float32 rows (100000, 32), (1024, 1024), (64, 512), (256, 1000): the same",
        1.15,
        _both,
        OTHER_ROWS,
    ),
    OfEach(
        "float32 (7, 20000), (256, 3, 224, 224), (2, 64, 1024, 1024), planar: forward, the same",
        3.0,
        lambda row: _kernels("forward")(row) and not row.channels_last,
        CLIFFS,
    ),
    *(
        OfSum(BF16, layout, operation, "torch", least)
        for layout in ("planar", "channels last")
        for operation, least in (("forward", 2.0), ("backward", 1.8))
    ),
    OfEach(
        "inference, every shape and dtype: warm pages, against PyTorch",
        TOLERATED,
        lambda row: row.operation == "inference" and row.pages == "warm",
    ),
    OfEach(
        "inference, tensors of 50 MB and more: fresh pages, against PyTorch",
        3.0,
        lambda row: row.operation == "inference" and row.pages == "fresh" and row.nbytes >= LARGE,
    ),
    OfEach(
        "(64, 20): the function with out=, against PyTorch's operator with out=",
        1.0,
        lambda row: _kernels("forward")(row) and row.group == "rows",
        ((64, 20),),
    ),
    OfEach(
        "(64, 20): the layer in training, against PyTorch's",
        1.0,
        lambda row: row.operation == "layer",
        ((64, 20),),
    ),
)


class Results:
    """Rows with their sums, as promises need them."""

    def __init__(self, rows, caches):
        self.rows, self.caches = rows, caches
        self.sums = {
            (s.group, s.dtype, s.layout, s.operation, s.pages, s.threads): s
            for s in resnet50_sums(rows)
        }


def share_promise(caches):
    """The share of the copy bandwidth where a slab fits L2 and a tensor exceeds the last level."""

    def chosen(row):
        slab = row.nbytes / row.shape[1]
        return (
            row.layout == "planar"
            and row.pages == "warm"
            and row.operation in ("forward", "backward")
            and slab <= caches["l2"]
            and row.nbytes > max(caches.values())
        )

    return OfEach(
        "share of the copy bandwidth, planar, the slab in L2, the tensor beyond the last cache",
        0.75,
        chosen,
        figure=lambda row: row.share_of_copy("bnext"),
    )


def verdicts(rows, caches, accuracy=()):
    """Every promise with its figure."""
    results = Results(rows, caches)
    promises = PROMISES
    if "l2" in caches:
        promises = (*promises, share_promise(caches))
    found = [promise.verdict(results) for promise in promises]
    no_loss = OfEach("no shape slower than PyTorch by more than 5 %", TOLERATED, lambda row: True)
    return [*found, no_loss.verdict(results), *_of_accuracy(accuracy)]


def _of_accuracy(accuracy):
    compared = [row for row in accuracy if "torch" in row["errors"]]
    if not compared:
        return [Verdict("accuracy: no error above PyTorch's by more than half a unit", 0, None)]
    losses = [row for row in compared if row["worse"]]
    where = f"{len(compared)} rows" if not losses else ", ".join(_name(row) for row in losses[:5])
    text = "accuracy: no error above PyTorch's by more than half a unit (losses, negative)"
    return [Verdict(text, 0, -len(losses), where)]


def _name(row):
    return f"{row['kind']} {row['dtype']} {row['case']}"


def losses(rows):
    """Rows, with two threads, that PyTorch wins by more than 5 %; the worst first."""
    found = [row for row in rows if row.threads == THREADS and "torch" in row.timings]
    slow = [row for row in found if row.ratio("torch") < TOLERATED]
    return sorted(slow, key=lambda row: row.ratio("torch"))


def low_shares(rows):
    """Rows, with two threads and warm pages, below half of the copy bandwidth; the worst first."""
    found = [row for row in rows if row.threads == THREADS and row.pages == "warm"]
    low = [row for row in found if row.share_of_copy("bnext") < LOW_SHARE]
    return sorted(low, key=lambda row: row.share_of_copy("bnext"))
