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
        of_case = case.kind, case.batch_size, _text(case.rate), case.epochs, case.seed
        decay = "" if method.decay is None else f"{method.decay:g}"
        of_method = method.family, decay, "yes" if method.bessel else "no"
        of_run = *of_case, *of_method, _text(outcome.accuracy), _text(outcome.loss)
        for layer, distance in enumerate(outcome.distances, start=1):
            rows.writerow((*of_run, layer, *map(_text, (distance.total, *distance))))
    write_output(path, file.getvalue().encode())


def _text(number: float) -> str:
    return f"{number:.6g}"
