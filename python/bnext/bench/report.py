"""The measurements as a table, with rich or in plain text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from bnext.bench.measure import Measurement
from bnext.terminal import TextTable

PEERS = {"torch": "PyTorch", "numpy": "NumPy"}

TEXT_COLUMNS = 2  # at the left of each row; numbers follow

EXPLANATION = (
    "Columns with an x: how many times as fast as that library bnext is, by medians (where others "
    "took processors, by the quickest of many turns); below 1 is a loss. Pages: warm where "
    "the output goes to mapped memory, fresh where the library allocates it. GB/s: bytes that the "
    "operation cannot avoid moving, by bnext's time. Of copy: that as a share of what a copy of x "
    "reached in the same turns."
)


def introduction(environment: dict[str, Any]) -> str:
    """Name the libraries and the machine: two lines."""
    versions = environment["versions"]
    torch = versions["torch"] or "not installed: compared with NumPy only"
    without = environment["without_openmp"]
    return (
        f"bnext {versions['bnext']} ({environment['isa']}), NumPy {versions['numpy']}, "
        f"PyTorch {torch}, Python {versions['python']}\n"
        f"{environment['processor']}, {environment['processors']} processors; "
        f"{_threads(environment['threads'])} for bnext, PyTorch and the copy, 1 for NumPy; float32"
        + (f"\nbnext was {without}" if without else "")
    )


def heading(measurement: Measurement) -> str:
    """Name the case, and the bandwidth of its copy."""
    case = measurement.case
    shape = ", ".join(map(str, case.shape))
    return (
        f"{case.name}: ({shape}), {measurement.nbytes / 1e6:.3g} MB, "
        f"copied at {measurement.copy_bandwidth / 1e9:.1f} GB/s"
    )


def table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Text of the header and the rows: ratios first, then times, then bytes per second."""
    peers = [peer for peer in PEERS if any(peer in m.timings for m in measurements)]
    header = [
        *("operation", "pages"),
        *(f"x {PEERS[peer]}" for peer in peers),
        "bnext ms (p10-p90)",
        *(f"{PEERS[peer]} ms" for peer in peers),
        *("GB/s", "of copy"),
    ]
    return [header, *(_row(measurement, peers) for measurement in measurements)]


def _row(measurement: Measurement, peers: Sequence[str]) -> list[str]:
    timings = measurement.timings
    ours = timings["bnext"]
    return [
        *(measurement.operation, measurement.pages),
        *(f"{measurement.ratio(peer):.2f}" if peer in timings else "-" for peer in peers),
        f"{_milliseconds(ours.median)} ({_milliseconds(ours.p10)}-{_milliseconds(ours.p90)})",
        *(_milliseconds(timings[peer].median) if peer in timings else "-" for peer in peers),
        f"{measurement.bandwidth('bnext') / 1e9:.1f}",
        f"{measurement.share_of_copy('bnext'):.0%}",
    ]


def show(measurements: Sequence[Measurement]) -> None:
    """Print the measurements, a table for each case: with rich where it is installed."""
    for case in dict.fromkeys(measurement.case for measurement in measurements):
        of_case = [measurement for measurement in measurements if measurement.case == case]
        header, *rows = table(of_case)
        text = TextTable(heading(of_case[0]), header, rows, keys=TEXT_COLUMNS, style=_style)
        if importlib.util.find_spec("rich") is None:
            text.show_plain()
        else:
            from rich.console import Console

            text.show(Console())


def _style(column: str, cell: str) -> str:
    """Colour ratios."""
    if not column.startswith("x ") or cell == "-":
        return ""
    return "green" if float(cell) >= 1 else "red"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"
