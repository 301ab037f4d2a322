"""The table of the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import bnext
from benchmarks.conventions.batches import BATCHES, SIZES
from benchmarks.conventions.checks import CONVERTED, EXACT, ULPS, Found
from benchmarks.environment import now
from benchmarks.kit.tables import plain


class Row(NamedTuple):
    """One variant on input of one rank: what was found for all its batches and steps."""

    release: str
    variant: str
    rank: int
    found: Sequence[Found]
    failures: Sequence[str]
    note: str


COLUMNS = (
    *("own", "bnext", "float32", "to, 1", "to, 5", "to, 300", "back", "on", "y, ulp", "trip"),
    *("derived", "file"),
)


def introduction(commit: str) -> str:
    """Say what is compared, and on what."""
    sizes = ", ".join(name for name in SIZES)
    return f"""\
Conventions: {now()}, commit {commit}, bnext {bnext.__version__}

Libraries that train have trained a layer on the same {BATCHES} batches (rows per batch: {sizes})
and kept what they stored after 1, 5 and 300. Errors are relative, the largest over channels, arrays
and sizes. bnext computes in float64, unless a column says float32.

own     what the library stored, from its own rule in float64, written out in NumPy: the rounding
        of the library (float32, unless the variant says float64)
bnext   bnext's float32 layer with the library's estimator, from the same rule: the rounding of
        bnext
float32 the same of bnext's float32 layer with PyTorch's estimator, converted, where that is exact:
        at most {CONVERTED:g}, or, for averages without initial values, the rounding of the 1 - d^k
        that it keeps of k batches beside them
to      to_convention of bnext's float64 layer with PyTorch's estimator after 1, 5 and 300 steps: at
        most {CONVERTED:g}, or own and two roundings more; for batches of unequal sizes only where
        both variances have Bessel's correction or neither has. From the library's rule the
        conversion is exact: at most {EXACT:g}
back    from_convention of what the library stored, against bnext's layer with PyTorch's estimator
on      trained on with bnext from what the library stored after 1 and 5, until 5 and 300
y       inference of from_convention's layer beside the library's, in units in the last place of the
        terms that y is a sum of: at most {ULPS}
trip    what the library stored, to bnext and back: the same bits where 0
derived the same for arrays that differ by a division from those that inference uses (Haiku's and
        Sonnet's hidden averages, Equinox's mean and variance): rounded once more
file    a file that the library wrote after 300 steps: load_statistics gives the same bits
"""


def table(rows: Iterable[Row]) -> str:
    """Format the rows."""
    lines = [("library", "variant", "rank", *COLUMNS, "")]
    lines += [(row.release, row.variant, str(row.rank), *_numbers(row), _word(row)) for row in rows]
    return plain(lines, left=(0, 1, len(lines[0]) - 1))


def _word(row: Row) -> str:
    if row.failures:
        first = {text.partition(":")[0]: text for text in reversed(row.failures)}
        return "WRONG: " + "; ".join(first.values())
    notes = [f"own rounding beyond {CONVERTED:g}"] if _is_far(row) else []
    return "; ".join(["ok", *notes, *([row.note] if row.note else [])])


def _is_far(row: Row) -> bool:
    return any(found.is_far() for found in row.found)


def far(rows: Sequence[Row]) -> str:
    """Say how many conversions are far from what was stored, and whose rounding that is."""
    rows = [row for row in rows if any(found.own is not None for found in row.found)]
    distant = [found for row in rows for found in row.found if found.is_far()]
    count = sum(map(_is_far, rows))
    text = (
        f"Conversions are within {CONVERTED:g} of what the library stored in "
        f"{len(rows) - count} of {len(rows)} rows of training."
    )
    if distant and all(found.single is None or found.single < found.own for found in distant):
        text += (
            f"\nIn the other {count} they are not, since what the library stored is itself that far"
            "\nfrom its own rule in float64, by its rounding: farther than bnext's float32 layer,"
            "\nfor every size and number of steps. A difference that this rounding does not explain"
            "\nis WRONG."
        )
    return text


def formats(rows: Iterable[Row]) -> str:
    """List the files that libraries wrote and bnext read, by their suffixes."""
    writers: dict[str, dict[str, None]] = {}
    for row in rows:
        for found in row.found:
            wrong = any(note.startswith("file: ") for note in found.notes)
            if found.file and not wrong:
                writers.setdefault(found.file, {})[row.release] = None
    lines = [f"{suffix}: {', '.join(names)}" for suffix, names in sorted(writers.items())]
    return "\n".join(
        [f"Files that the libraries wrote, and bnext read ({len(lines)} formats):", *lines]
    )


def _numbers(row: Row) -> list[str]:
    def worst(name: str, step: int | None = None) -> str:
        values = [getattr(f, name) for f in row.found if step is None or f.step == step]
        known = [value for value in values if value is not None]
        if not known:
            return "-"
        return f"{max(known):.1f}" if name == "y" else f"{max(known):.1e}" if max(known) else "0"

    to = [worst("to", step) for step in (1, 5, 300)]
    others = [worst(name) for name in ("back", "on", "y", "trip", "derived")]
    file = next((found.file for found in row.found if found.file), "-")
    return [worst("own"), worst("single"), worst("float32"), *to, *others, file]


def versions(found: dict[str, dict[str, str]]) -> str:
    """Format the versions of every library's environment."""
    return "\n".join(
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in packages.items())
        for name, packages in found.items()
    )
