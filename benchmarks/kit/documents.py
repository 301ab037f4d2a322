"""Documents of results: JSON with a format, an environment and lists of rows."""

import json
from dataclasses import dataclass

from bnext.bench.cases import Case
from bnext.bench.timing import Timing
from bnext.bench.traffic import floor_bytes

DIGITS = 4  # more would be noise


@dataclass(frozen=True)
class Format:
    """The format of a suite's documents."""

    name: str
    title: str  # of the suite, in messages
    lists: tuple
    version: int = 1

    def document(self, environment, **found):
        """A document of what was found; lists that are not given are empty."""
        others = {name: value for name, value in found.items() if name not in self.lists}
        return {
            "format": self.name,
            "version": self.version,
            "environment": environment,
            **others,
            **{name: found.get(name, []) for name in self.lists},
        }

    def check(self, found, path=None):
        """Return the document that was found, or report its fault."""
        if found.get("format") != self.name or found.get("version") != self.version:
            place = "" if path is None else f"{path}: "
            raise ValueError(f"{place}expected results of {self.title}, version {self.version}")
        return found

    def read(self, path):
        """Read a document, or report its fault."""
        return self.check(json.loads(path.read_text()), path)


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


def rounded(value):
    return float(f"{value:.{DIGITS}g}")


def packed(timing):
    """A timing as JSON has it: [median, p10, p90, turns]."""
    return [*map(rounded, (timing.median, timing.p10, timing.p90)), timing.turns]


def all_packed(timings):
    return {name: packed(timing) for name, timing in timings.items()}


def all_unpacked(found):
    return {name: Timing(*values) for name, values in found.items()}


def fields_of(case):
    """A case in types of JSON."""
    return {
        "case": case.name,
        "shape": list(case.shape),
        "channels_last": case.channels_last,
        "dtype": case.dtype,
    }


def case_of(values):
    """Read the output of `fields_of`."""
    name, shape, last, dtype = (values[n] for n in ("case", "shape", "channels_last", "dtype"))
    return Case(name, tuple(shape), last, dtype, values.get("aligned", True))


def layout_of(case):
    if len(case.shape) == 2:
        return "rows"
    return "channels last" if case.channels_last else "planar"


def label_of(case):
    """A case in a line of text."""
    return f"{case.name}{', channels last' if case.channels_last else ''}, {case.dtype}"


class OfCase:
    """A row with a case, an operation, and the time of a copy of its size."""

    @property
    def layout(self):
        return layout_of(self.case)

    @property
    def floor(self):
        """Bytes that the operation cannot avoid moving."""
        return floor_bytes(self.operation, self.case.nbytes)

    @property
    def copied(self):
        """Seconds that the floor takes at the rate of the copy."""
        return self.copy.median * self.floor / floor_bytes("copy", self.case.nbytes)
