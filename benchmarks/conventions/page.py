"""docs/conventions.md: the records of the conventions, and the last output of the comparison.

python -m benchmarks.conventions.page > docs/conventions.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.conventions.checks import CONVERTED
from benchmarks.conventions.environments import ROOT
from bnext.inference.conventions import table

RESULTS = ROOT / "benchmarks" / "results"
CONVERSIONS = ("to, 1", "to, 5", "to, 300", "back", "on")
KNOWN_TO_DIFFER = 1000  # ulp of inference, from which on the note of the row is the reason


class Line(NamedTuple):
    """One row of the output's table."""

    library: str
    cells: dict[str, str]
    note: str

    def worst(self, *columns: str) -> float | None:
        """Give the largest number of some columns, if there is one."""
        found = [float(self.cells[name]) for name in columns if self.cells[name] != "-"]
        return max(found, default=None)


def newest() -> Path:
    """Give the last output that is committed."""
    return sorted(RESULTS.glob("*-conventions.txt"))[-1]


def lines_of(text: str) -> Iterator[Line]:
    """Read the table in an output."""
    rows = text[text.index("\nlibrary  ") + 1 :].partition("\n\n")[0].splitlines()
    header = re.split(r"\s{2,}", rows[0].strip())
    for row in rows[1:]:
        cells = re.split(r"\s{2,}", row.strip())
        named = dict(zip(header, cells, strict=False))
        yield Line(named["library"], named, cells[len(header)])


def measured(text: str) -> str:
    """Give the section of the page that an output makes."""
    groups: dict[str, list[Line]] = {}
    for line in lines_of(text):
        groups.setdefault(line.library, []).append(line)
    rows = []
    for library, lines in groups.items():
        own = any("own rounding" in each.note for each in lines)
        rows.append([
            library, _largest(lines, "own"), _largest(lines, "bnext"),
            _largest(lines, *CONVERSIONS) + (", its rounding" if own else ""), _ulps(lines),
            _files(lines),
        ])  # fmt: skip
    titles = ("library", "its rounding", "bnext's", "conversions", "inference, ulp", "file")
    date = text.partition(" UTC")[0].rpartition(": ")[2]
    place = newest().relative_to(ROOT)
    failed = text.partition("\nNot compared:\n")[2].partition("\n\n")[0]
    not_compared = "".join(f"- {line}\n" for line in failed.splitlines())
    return (
        HEAD.format(date=date, place=place, except_for=_except_for(groups))
        + table.markdown(titles, rows)
        + (f"\nNot compared:\n\n{not_compared}" if not_compared else "")
    )


def page() -> str:
    """Give the text of the page."""
    return table.page(measured(newest().read_text(encoding="utf-8")))


def _except_for(groups: dict[str, list[Line]]) -> str:
    """Name the libraries whose averages a float32 layer with initial values cannot give as well."""
    largest = {name: max(each.worst("float32") or 0.0 for each in groups[name]) for name in groups}
    far = [f"{name} ({error:.1e})" for name, error in largest.items() if error > CONVERTED]
    if not far:
        return ""
    return (
        f", but for {' and '.join(far)}, whose\n"
        "  averages have no initial values: of k batches such a layer keeps the part 1 - d^k\n"
        "  beside its initial 1, which is small after the first"
    )


def _largest(lines: list[Line], *columns: str) -> str:
    found = [each.worst(*columns) for each in lines]
    known = [number for number in found if number is not None]
    return f"{max(known):.1e}" if known else "-"


def _ulps(lines: list[Line]) -> str:
    found = [each.worst("y, ulp") for each in lines]
    known = [number for number in found if number is not None]
    near = [number for number in known if number < KNOWN_TO_DIFFER]
    if not known:
        return "-"
    notes = [each.note.partition("; ")[2] for each in lines]
    differs = [note for note, y in zip(notes, found, strict=True) if y not in (None, *near)]
    return f"{max(near):.1f}" + (f"; {differs[0]}" if differs else "")


def _files(lines: list[Line]) -> str:
    found = dict.fromkeys(each.cells["file"] for each in lines if each.cells["file"] != "-")
    return ", ".join(f"`{suffix}`" for suffix in found) or "-"


HEAD = """
## Measured

`python -m benchmarks.conventions` trains layers of these releases on 1, 5 and 300 batches of 4, 32
and unequal numbers of rows, and compares what they store ({date} UTC, `{place}`).

- Conversions, both ways and trained on, are within 10^-6 of what a library stores, except where its
  own float32 rounding is beyond that: what it stores is there as far from its own rule in float64,
  written out in NumPy, and farther than bnext's float32 layer is. A difference that this rounding
  does not explain fails the comparison.
- In float64, conversions differ from each library's rule by less than 10^-12.
- Of float32 layers by PyTorch's rule they are within 10^-6 of it, too{except_for}.
- Round trips give the bits that the library stored.

The rounding of the library and of bnext's float32 layer are from that rule. All errors are
relative, the largest over channels, arrays, sizes and steps. Inference is in units in the last
place of the terms that y is a sum of. A file was written by the library, and `load_statistics` made
the same layer of it.

"""


if __name__ == "__main__":
    sys.stdout.write(page())
