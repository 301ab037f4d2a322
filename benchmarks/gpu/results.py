"""Rows of the GPU suite, with their ratios, and the JSON that holds them."""

import json
from dataclasses import dataclass, field

from benchmarks.kit.documents import (
    Format,
    OfCase,
    all_packed,
    all_unpacked,
    case_of,
    fields_of,
    packed,
)
from bnext.bench.cases import Case
from bnext.bench.timing import Timing

FORMAT = Format("bnext GPU suite", "the GPU suite", ("rows", "accuracy", "skipped"))


@dataclass(frozen=True)
class Row(OfCase):
    """One operation of one case.

    `kernel` has the times of replayed graphs, `wall` those of calls as users make them, results
    allocated. `copy` is that of an array of the same size, in the same turns as `kernel`.
    `backends` says for each peer whose kernels ran, `errors` how far each library's results are
    from float64 (the norm of the difference over the norm), `path` how bnext did it.
    """

    group: str
    case: Case
    operation: str
    kernel: dict
    copy: Timing
    wall: dict = field(default_factory=dict)
    backends: dict = field(default_factory=dict)
    errors: dict = field(default_factory=dict)
    path: str = ""
    sets: int = 1  # that calls take turns on
    cold: bool = True  # the sets are several times what the L2 cache holds

    @property
    def times(self):
        return self.kernel

    @property
    def terms(self):
        """The terms that rows of different shapes share."""
        names = {"group": self.group, "dtype": self.case.dtype, "layout": self.layout}
        return {**names, "operation": self.operation}

    @property
    def slab_bytes(self):
        """Bytes of one channel that an operation wants to keep: x, and for backward dy as well."""
        slab = self.case.nbytes // self.case.shape[1]
        return 2 * slab if self.operation == "backward" else slab

    def ratio(self, peer):
        """How many times as fast as the peer bnext's kernels are."""
        return self.kernel[peer].median / self.kernel["bnext"].median

    @property
    def share_of_copy(self):
        return self.copied / self.kernel["bnext"].median

    def as_dict(self):
        """What JSON holds: times in seconds as [median, p10, p90, turns]."""
        return {
            "group": self.group,
            **fields_of(self.case),
            "operation": self.operation,
            "kernel": all_packed(self.kernel),
            "copy": packed(self.copy),
            "wall": all_packed(self.wall),
            "backends": self.backends,
            "errors": self.errors,
            "path": self.path,
            "sets": self.sets,
            "cold": self.cold,
        }

    @classmethod
    def of(cls, values):
        """Read what `as_dict` wrote."""
        case = case_of(values)
        rest = {k: v for k, v in values.items() if k not in fields_of(case)}
        times = {key: all_unpacked(values[key]) for key in ("kernel", "wall")}
        return cls(**{**rest, **times, "case": case, "copy": Timing(*values["copy"])})


def rows_of(found):
    """The rows of a document."""
    return [Row.of(values) for values in FORMAT.check(found)["rows"]]


def document(environment, rows, accuracy, skipped):
    """Everything that one run found."""
    rows = [row.as_dict() for row in rows]
    return FORMAT.document(environment, rows=rows, accuracy=accuracy, skipped=skipped)


class Lines:
    """A file that has the environment in its first line and then a row in each, at once.

    It survives a run that does not; `read` makes a document of it.
    """

    def __init__(self, path, environment):
        self._path = path
        path.unlink(missing_ok=True)
        append(path, FORMAT.document(environment))

    def keep(self, row):
        append(self._path, row.as_dict())


def append(path, values):
    """Write a line of JSON, which whatever happens next does not take back."""
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def read(path):
    """The document in a file: whole, or by lines, of which the last may be torn."""
    text = path.read_text()
    if path.suffix != ".jsonl":
        return json.loads(text)
    first, *lines = text.split("\n")[:-1]
    return json.loads(first) | {"rows": [json.loads(line) for line in lines]}
