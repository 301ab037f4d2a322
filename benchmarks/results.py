"""Results: rows with their ratios, and their JSON documents."""

import json
from dataclasses import dataclass

from bnext.bench.cases import Case
from bnext.bench.measure import Measurement
from bnext.bench.timing import Timing

VERSION = 1
DIGITS = 4  # more would be noise
LISTS = ("rows", "skipped", "layouts", "accuracy", "groups")


@dataclass(frozen=True)
class Row:
    """One operation of one case, with its group and the number of threads.

    `handover_ns` is the distance of two threads right after it (`handover_nanoseconds`).
    """

    group: str
    threads: int
    measurement: Measurement
    handover_ns: float | None = None

    def __getattr__(self, name):
        """Attributes of the measurement, and of its case."""
        if name.startswith("__"):
            raise AttributeError(name)
        measurement = object.__getattribute__(self, "measurement")
        return getattr(measurement if hasattr(measurement, name) else measurement.case, name)

    @property
    def layout(self):
        if len(self.shape) == 2:
            return "rows"
        return "channels last" if self.channels_last else "planar"

    @property
    def peers(self):
        return [name for name in self.timings if name != "bnext"]

    @property
    def label(self):
        return f"{self.name}, {self.layout}" if self.layout != "rows" else self.name

    def as_dict(self):
        """In types of JSON: times as [median, p10, p90, turns]; the rest follows from them."""
        case = self.case
        return {
            "group": self.group,
            "case": case.name,
            "shape": list(case.shape),
            "channels_last": case.channels_last,
            "dtype": case.dtype,
            "aligned": case.aligned,
            "operation": self.operation,
            "pages": self.pages,
            "threads": self.threads,
            "seconds": {name: _packed(timing) for name, timing in self.timings.items()},
            "copy_seconds": _packed(self.copy),
            "handover_ns": self.handover_ns,
        }

    @classmethod
    def of(cls, values):
        """Read the output of `as_dict`."""
        case = Case(
            values["case"],
            tuple(values["shape"]),
            values["channels_last"],
            values["dtype"],
            values["aligned"],
        )
        timings = {name: Timing(*packed) for name, packed in values["seconds"].items()}
        copy = Timing(*values["copy_seconds"])
        measurement = Measurement(case, values["operation"], values["pages"], timings, copy)
        return cls(values["group"], values["threads"], measurement, values["handover_ns"])


def _packed(timing):
    times = (float(f"{t:.{DIGITS}g}") for t in (timing.median, timing.p10, timing.p90))
    return [*times, timing.turns]


def document(environment, **lists):
    """A results document: the version, the environment, and lists of dictionaries."""
    return {
        "format": "bnext suite",
        "version": VERSION,
        "environment": environment,
        **{name: lists.get(name, []) for name in LISTS},
    }


def merge(documents):
    """One document of several, with the environment of the first, and its dates as a span."""
    documents = list(documents)
    if not documents:
        raise ValueError("no results to merge")
    about = [d["environment"] for d in documents]
    begun = min(e["date"] for e in about)
    finished = max(e.get("finished", e["date"]) for e in about)
    environment = {**about[0], "date": begun, "finished": finished}
    for other in documents[1:]:
        for key in ("processor", "versions", "build"):
            if other["environment"].get(key) != environment.get(key):
                raise ValueError(f"{key}: results of different runs cannot be merged")
    return document(
        environment, **{name: [item for d in documents for item in d[name]] for name in LISTS}
    )


def rows_of(document):
    return [Row.of(values) for values in document["rows"]]


def write(document, path):
    """Write each dictionary of a list as a line, so that files can be read and compared."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            items = ",\n".join(f"  {json.dumps(item)}" for item in value)
            lines.append(f"{json.dumps(key)}: [\n{items}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path):
    """Read a document, or report its fault."""
    found = json.loads(path.read_text())
    if found.get("format") != "bnext suite" or found.get("version") != VERSION:
        raise ValueError(f"{path}: expected results of the suite, version {VERSION}")
    return found
