"""All measurements, as CSV: a row for each run, method and layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from bnext.command_line import write_output
from bnext.demo.statistics.experiment import Outcome

COLUMNS = (
    "network", "batch_size", "rate", "epochs", "seed", "method", "decay", "bessel", "accuracy",
    "loss", "layer", "distance", "of_mean", "of_var",
)  # fmt: skip


def write(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write the file at `path`."""
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerow(COLUMNS)
    for outcome in outcomes:
        case, method = outcome.case, outcome.method
        for layer, distance in enumerate(outcome.distances, start=1):
            rows.writerow(
                (
                    case.kind,
                    case.batch_size,
                    f"{case.rate:.6g}",
                    case.epochs,
                    case.seed,
                    method.family,
                    "" if method.decay is None else f"{method.decay:g}",
                    "yes" if method.bessel else "no",
                    *(f"{x:.6g}" for x in (outcome.accuracy, outcome.loss)),
                    layer,
                    *(f"{x:.6g}" for x in (distance.total, *distance)),
                )
            )
    write_output(path, file.getvalue().encode())
