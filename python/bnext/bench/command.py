"""The command line of the benchmark."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import bnext
from bnext.bench import report
from bnext.bench.cases import CASES, QUICK_CASES
from bnext.bench.environment import environment
from bnext.bench.libraries import Pages, installed
from bnext.bench.load import LoadMeter
from bnext.bench.measure import OPERATIONS, Measurement, measure
from bnext.command_line import MOST_THREADS, Parser, at_least, check_output, ends_well, write_output
from bnext.terminal import text_width

PROGRAM = "python -m bnext bench"

JSON_VERSION = 1
# "fresh" before "warm": see bnext.bench.measure.measure.
ORDER: tuple[Pages, ...] = ("fresh", "warm")


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and return the exit status, as ``python -m bnext bench``."""
    return ends_well(PROGRAM)(measure_and_report)(arguments)


def measure_and_report(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Do what `main` does, and leave errors to the caller."""
    parser = Parser(
        prog=program,
        description="Measure forward, backward and inference beside NumPy's own expression, "
        "PyTorch if it is installed, and a plain copy. Takes less than a minute.",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1, MOST_THREADS),
        default=bnext.get_num_threads(),
        metavar="N",
        help="for bnext, PyTorch and the copy (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller shapes, rougher numbers, a few seconds (a minute on a busy machine)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="also write the results to this file"
    )
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_output(parser, "--json", options.json)

    about = environment(options.threads)
    for line in report.introduction(about).splitlines():
        print(textwrap.fill(line, text_width()))
    found: list[Measurement] = []
    meter = LoadMeter()
    try:
        _measure_all(found, options.threads, quick=options.quick)
    finally:
        load = meter.read()
        _progress("")
        if found:
            report.show(_in_order(found))
            print(f"\n{textwrap.fill(report.EXPLANATION, text_width())}")
        if load.is_busy:
            print(f"\n{textwrap.fill(str(load), text_width())}")
    if options.json is not None:
        document = {
            "version": JSON_VERSION,
            "environment": about | {"load": vars(load)},
            "measurements": [measurement.as_dict() for measurement in _in_order(found)],
        }
        write_output(options.json, (json.dumps(document, indent=2) + "\n").encode())
    return 0


def _measure_all(found: list[Measurement], threads: int, *, quick: bool) -> None:
    """Measure everything; add each measurement to `found` at once."""
    cases = QUICK_CASES if quick else CASES
    seconds = 0.05 if quick else 0.3
    for pages in ORDER:
        for measurement in measure(
            cases,
            pages=pages,
            libraries=installed(),
            threads=threads,
            seconds=seconds,
            busy_seconds=4 * seconds,
        ):
            found.append(measurement)
            _progress(f"{len(found)} of {len(cases) * len(OPERATIONS) * len(ORDER)} measured")


def _in_order(found: Sequence[Measurement]) -> list[Measurement]:
    """Sort by case and operation; the measurements came by pages."""
    cases = list(dict.fromkeys(measurement.case for measurement in found))
    return sorted(
        found,
        key=lambda m: (cases.index(m.case), OPERATIONS.index(m.operation), m.pages == "fresh"),
    )


def _progress(text: str) -> None:
    """Show a line that the next one overwrites, on a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"\r{text:30}", end="" if text else "\r", file=sys.stderr, flush=True)
