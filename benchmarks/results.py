"""Rows of the suite with their ratios, and its documents."""

from dataclasses import dataclass

from benchmarks.kit import documents
from benchmarks.kit.documents import Format, OfCase, all_packed, all_unpacked, packed
from bnext.bench.measure import Measurement
from bnext.bench.timing import Timing

FORMAT = Format("bnext suite", "the suite", ("rows", "skipped", "layouts", "accuracy", "groups"))


@dataclass(frozen=True)
class Row(OfCase):
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
    def times(self):
        return self.measurement.timings

    @property
    def terms(self):
        """The terms that comparable rows share."""
        names = ("group", "dtype", "layout", "operation", "pages", "threads")
        return {name: getattr(self, name) for name in names}

    @property
    def peers(self):
        return [name for name in self.timings if name != "bnext"]

    @property
    def label(self):
        return f"{self.name}, {self.layout}" if self.layout != "rows" else self.name

    def as_dict(self):
        """In types of JSON: times as [median, p10, p90, turns]; the rest follows from them."""
        return {
            "group": self.group,
            **documents.fields_of(self.case),
            "aligned": self.case.aligned,
            "operation": self.operation,
            "pages": self.pages,
            "threads": self.threads,
            "seconds": all_packed(self.timings),
            "copy_seconds": packed(self.copy),
            "handover_ns": self.handover_ns,
        }

    @classmethod
    def of(cls, values):
        """Read the output of `as_dict`."""
        timings, copy = all_unpacked(values["seconds"]), Timing(*values["copy_seconds"])
        names = values["operation"], values["pages"]
        measurement = Measurement(documents.case_of(values), *names, timings, copy)
        return cls(values["group"], values["threads"], measurement, values["handover_ns"])


def merge(found):
    """One document of several, with the environment of the first, and its dates as a span."""
    found = list(found)
    if not found:
        raise ValueError("no results to merge")
    about = [d["environment"] for d in found]
    begun = min(e["date"] for e in about)
    finished = max(e.get("finished", e["date"]) for e in about)
    environment = {**about[0], "date": begun, "finished": finished}
    for other in found[1:]:
        for key in ("processor", "versions", "build"):
            if other["environment"].get(key) != environment.get(key):
                raise ValueError(f"{key}: results of different runs cannot be merged")
    lists = {name: [item for d in found for item in d[name]] for name in FORMAT.lists}
    return FORMAT.document(environment, **lists)


def rows_of(document):
    return [Row.of(values) for values in document["rows"]]
