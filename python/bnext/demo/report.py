"""The demo in the terminal: progress bars, then a table for each network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bnext.demo.data import TEST_EXAMPLES, TRAIN_EXAMPLES
from bnext.demo.networks import DESCRIPTIONS, Kind
from bnext.demo.options import Options
from bnext.demo.training import CHANCE_LOSS, Case, Record
from bnext.terminal import TextTable

NORMALIZATION = {True: "with", False: "without"}


def introduce(console: Console, options: Options) -> None:
    """Print the data, the options, and the terms of the comparison."""
    gentle, large = options.rates
    console.print(
        f"Training on {TRAIN_EXAMPLES} handwritten digits, {TEST_EXAMPLES} more held out. "
        f"Mini-batches of {options.batch_size}, {options.epochs} epochs, learning rates "
        f"{gentle:g} and {large:g}, seed {options.seed}. With and without batch normalization the "
        "initial weights and the batches are the same; without it, each hidden layer has a bias "
        "in its place.",
        highlight=False,
    )


def progress_bars(text: str = "loss {task.fields[loss]}") -> Progress:
    """Open a context in which tasks show a bar with their steps, a text and the time.

    They go to the standard error, if it is a terminal.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn(text),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        refresh_per_second=4,  # drawing takes time from the measured steps
    )


def add_bar(bars: Progress, case: Case) -> Callable[[float], None]:
    """Add the bar of one run; the result advances it by a step with the given loss."""
    name = f"{case.kind:5} {case.rate:<4g} {NORMALIZATION[case.normalized] + ' BN':10}"
    task = bars.add_task(name, total=case.epochs * case.steps_per_epoch, loss="")

    def advance(loss: float) -> None:
        bars.update(task, advance=1, loss=_loss(loss))
        if not math.isfinite(loss):
            bars.stop_task(task)

    return advance


def table(kind: Kind, records: Sequence[Record]) -> TextTable:
    """Tabulate the results of one network, a row for each run."""
    of_kind = [record for record in records if record.case.kind == kind]
    return TextTable(
        title=DESCRIPTIONS[kind],
        header=("rate", "BN", "accuracy", "loss", "step", "in BN", "outcome"),
        rows=[_row(record) for record in of_kind],
        keys=2,
        left=("outcome",),
        sections=[n for n, record in enumerate(of_kind) if not record.case.normalized],
        style=_style,
    )


def explain(console: Console) -> None:
    """Explain the columns of the tables."""
    console.print(
        "Accuracy: on the held-out digits in inference mode, that is with running statistics. "
        f"Loss: of training, mean of the last epoch; chance is {CHANCE_LOSS:.2f}. Step: median "
        "time of forward, backward and update. In BN: the share of that in normalization.",
        highlight=False,
    )


def _row(record: Record) -> list[str]:
    seconds = float(np.median(record.step_seconds))
    share = float(np.median(record.normalization_seconds)) / seconds
    return [
        f"{record.case.rate:g}",
        NORMALIZATION[record.case.normalized],
        "-" if record.diverged else f"{record.test_accuracy:.1%}",
        _loss(record.final_loss),
        f"{seconds * 1e3:.2f} ms",
        f"{share:.0%}" if record.case.normalized else "-",
        record.outcome,
    ]


def _style(column: str, cell: str) -> str:
    color = "green" if cell == "trained" else "red"
    return color if column == "outcome" else ""


def _loss(loss: float) -> str:
    if not math.isfinite(loss):
        return "overflow"
    return f"{loss:.4f}" if loss < 100 else f"{loss:.1e}"
