"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bnext
from bnext.bench import report
from bnext.bench.cases import CASES, QUICK_CASES
from bnext.bench.environment import environment
from bnext.bench.libraries import Pages, installed
from bnext.bench.measure import OPERATIONS, Measurement, measure

JSON_VERSION = 1
# "fresh" before "warm": see bnext.bench.measure.measure.
ORDER: tuple[Pages, ...] = ("fresh", "warm")


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and return the exit status.

    Parameters
    ----------
    arguments : sequence of str
        The words after ``python -m bnext bench``.

    Returns
    -------
    int
        0; a wrong option ends the program with status 2, as argparse does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    path: Path | None = options.json
    if path is not None and not path.absolute().parent.is_dir():
        parser.error(f"--json: expected an existing folder, got {path.absolute().parent}")

    about = environment(options.threads)
    print(report.introduction(about))
    measurements = _measure_all(options.threads, quick=options.quick)
    report.show(measurements)
    print(f"\n{textwrap.fill(report.EXPLANATION, 100)}")
    if path is not None:
        path.write_text(json.dumps(_document(about, measurements), indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bnext bench",
        description="Measure forward, backward and inference beside NumPy's own expression, "
        "PyTorch if it is installed, and a plain copy. Takes less than a minute.",
    )
    parser.add_argument(
        "--threads",
        type=_at_least_one,
        default=bnext.get_num_threads(),
        metavar="N",
        help="for bnext, PyTorch and the copy (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller shapes, a few seconds, rougher numbers"
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="also write the results to this file"
    )
    return parser


def _at_least_one(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def _measure_all(threads: int, *, quick: bool) -> list[Measurement]:
    """Measure everything, then sort by case and operation, in place of by pages."""
    cases = QUICK_CASES if quick else CASES
    found: list[Measurement] = []
    for pages in ORDER:
        for measurement in measure(
            cases,
            pages=pages,
            libraries=installed(),
            threads=threads,
            seconds=0.05 if quick else 0.3,
        ):
            found.append(measurement)
            _progress(f"{len(found)} of {len(cases) * len(OPERATIONS) * len(ORDER)} measured")
    _progress("")
    return sorted(
        found,
        key=lambda m: (cases.index(m.case), OPERATIONS.index(m.operation), m.pages == "fresh"),
    )


def _progress(text: str) -> None:
    """Show a line that the next one overwrites, where somebody is looking."""
    if sys.stderr.isatty():
        print(f"\r{text:30}", end="" if text else "\r", file=sys.stderr, flush=True)


def _document(about: dict[str, Any], measurements: Sequence[Measurement]) -> dict[str, Any]:
    return {
        "version": JSON_VERSION,
        "environment": about,
        "measurements": [measurement.as_dict() for measurement in measurements],
    }
