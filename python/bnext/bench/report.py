"""The measurements as a table, with rich or in plain text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from bnext.bench.measure import Measurement
from bnext.terminal import TextTable, column_groups, table_width

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


def show(measurements: Sequence[Measurement], *, plain: bool = False) -> None:
    """Print the measurements, a table for each case: with rich where it is installed."""
    use_rich = not plain and importlib.util.find_spec("rich") is not None
    for case in dict.fromkeys(measurement.case for measurement in measurements):
        of_case = [measurement for measurement in measurements if measurement.case == case]
        title, lines = heading(of_case[0]), table(of_case)
        (_show_rich if use_rich else _show_plain)(title, lines)


def _show_plain(title: str, lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    limit = table_width()

    def fits(columns: Sequence[int]) -> bool:
        return sum(widths[column] + 2 for column in columns) - 2 <= limit

    print(f"\n{title}")
    for place, columns in enumerate(column_groups(len(widths), TEXT_COLUMNS, fits)):
        if place:
            print()
        for line in lines:
            cells = [
                line[column].ljust(widths[column])
                if column < TEXT_COLUMNS
                else line[column].rjust(widths[column])
                for column in columns
            ]
            print("  ".join(cells).rstrip())


def _show_rich(title: str, lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console

    header, *rows = lines
    colored = [
        [
            _colored(cell) if name.startswith("x ") else cell
            for name, cell in zip(header, row, strict=True)
        ]
        for row in rows
    ]
    TextTable(title, header, colored, keys=TEXT_COLUMNS).show(Console())


def _colored(ratio: str) -> str:
    if ratio == "-":
        return ratio
    return f"[{'green' if float(ratio) >= 1 else 'red'}]{ratio}[/]"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"
