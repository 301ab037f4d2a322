"""Rows of the GPU suite, with their ratios, and the JSON that holds them."""

import json
from dataclasses import dataclass, field

from bnext.bench.cases import Case
from bnext.bench.timing import Timing
from bnext.bench.traffic import floor_bytes

FORMAT, VERSION = "bnext GPU suite", 1
DIGITS = 4  # more would be noise


@dataclass(frozen=True)
class Row:
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
    def layout(self):
        if len(self.case.shape) == 2:
            return "rows"
        return "channels last" if self.case.channels_last else "planar"

    @property
    def terms(self):
        """What makes rows of different shapes comparable."""
        return self.group, self.case.dtype, self.layout, self.operation

    @property
    def slab_bytes(self):
        """Bytes of one channel that an operation wants to keep: x, and for backward dy as well."""
        slab = self.case.nbytes // self.case.shape[1]
        return 2 * slab if self.operation == "backward" else slab

    def ratio(self, peer):
        """How many times as fast as the peer bnext's kernels are."""
        return self.kernel[peer].median / self.kernel["bnext"].median

    @property
    def copied(self):
        """Seconds that the floor bytes take at the rate of the copy."""
        moved = floor_bytes(self.operation, self.case.nbytes)
        return self.copy.median * moved / floor_bytes("copy", self.case.nbytes)

    @property
    def share_of_copy(self):
        return self.copied / self.kernel["bnext"].median

    def as_dict(self):
        """What JSON holds: times in seconds as [median, p10, p90, turns]."""
        case = self.case
        return {
            "group": self.group,
            "case": case.name,
            "shape": list(case.shape),
            "channels_last": case.channels_last,
            "dtype": case.dtype,
            "operation": self.operation,
            "kernel": {name: _packed(timing) for name, timing in self.kernel.items()},
            "copy": _packed(self.copy),
            "wall": {name: _packed(timing) for name, timing in self.wall.items()},
            "backends": self.backends,
            "errors": self.errors,
            "path": self.path,
            "sets": self.sets,
            "cold": self.cold,
        }

    @classmethod
    def of(cls, values):
        """Read what `as_dict` wrote."""
        names = ("case", "shape", "channels_last", "dtype")
        name, shape, last, dtype = (values[n] for n in names)
        rest = {k: v for k, v in values.items() if k not in names}
        for key in ("kernel", "wall"):
            rest[key] = {peer: Timing(*packed) for peer, packed in values[key].items()}
        rest["copy"] = Timing(*values["copy"])
        return cls(case=Case(name, tuple(shape), last, dtype), **rest)


def _packed(timing):
    times = (float(f"{t:.{DIGITS}g}") for t in (timing.median, timing.p10, timing.p90))
    return [*times, timing.turns]


def document(environment, rows, accuracy, skipped):
    """Everything that one run found."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": environment,
        "rows": [row.as_dict() for row in rows],
        "accuracy": accuracy,
        "skipped": skipped,
    }


def rows_of(found):
    """The rows of a document."""
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"expected results of the GPU suite, version {VERSION}")
    return [Row.of(values) for values in found["rows"]]


class Lines:
    """A file that has the environment in its first line and then a row in each, at once.

    It survives a run that does not; `read` makes a document of it.
    """

    def __init__(self, path, environment):
        self._path = path
        path.unlink(missing_ok=True)
        append(path, document(environment, [], [], []))

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
