"""What is shown in the terminal: progress bars, three tables for each network, and the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bnext.demo.data import TEST_EXAMPLES, TRAIN_EXAMPLES
from bnext.demo.networks import DESCRIPTIONS, Kind
from bnext.demo.statistics.cost import Cost
from bnext.demo.statistics.experiment import Outcome
from bnext.demo.statistics.methods import Method, shown
from bnext.demo.statistics.options import REFERENCE_BATCH, Options

MOST_COLUMNS = 5  # of two numbers each


def introduce(console: Console, options: Options) -> None:
    """Say what is going to be trained, and how."""
    console.print(
        f"Training on {TRAIN_EXAMPLES} handwritten digits, {TEST_EXAMPLES} more held out: "
        f"{options.epochs} epochs at each batch size M, with learning rate {options.rate:g} "
        f"\u221a(M/{REFERENCE_BATCH}). Running averages follow the same training all at once. "
        f"Runs at each batch size: {options.runs}, from seed {options.seed} on; tables have their "
        "means.",
        highlight=False,
    )


def progress_bars(console: Console) -> Progress:
    """Open a context in which each network shows a bar with its training runs."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
    )


def add_bar(bars: Progress, kind: Kind, runs: int) -> Callable[[], None]:
    """Add the bar of one network; the result moves it on by a run."""
    task = bars.add_task(f"{kind:5}", total=runs)
    return lambda: bars.advance(task)


def tables(options: Options, kind: Kind, outcomes: Sequence[Outcome]) -> list[Table]:
    """Make the tables of one network; the outcomes of others do not matter."""
    of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
    return [
        _accuracies(options, kind, of_kind),
        _distances(options, of_kind),
        _layers(options, of_kind),
    ]


def cost_table(options: Options, costs: dict[Kind, list[Cost]]) -> Table:
    """Tabulate what each method costs, for each network."""
    table = _table(
        f"Cost after training: passes over the data, and the work in them; batches of "
        f"{options.detailed}"
    )
    for kind in costs:
        table.add_column(kind, justify="right")
    for rows in zip(*costs.values(), strict=True):
        cells = [f"{c.passes} {'pass' if c.passes == 1 else 'passes'}  {c.work:.2f}" for c in rows]
        table.add_row(rows[0].name, *cells)
    return table


def explain(console: Console) -> None:
    """Say what the tables show."""
    console.print(
        "exact, pooled, average: bnext.update_statistics, on the training images in batches of the "
        "size they were trained in. cumulative, exponential and debiased, by their decay: running "
        "averages during training. biased: without Bessel's correction. Distance: how far the "
        "layer's normalized output, of standard deviation 1, is from that by the exact "
        "statistics, root mean square. Work: multiplications, those of one pass through the whole "
        "network being 1; passes of the exact method end at the layer they are for.",
        highlight=False,
    )


def mean_of(
    outcomes: Sequence[Outcome],
    batch_size: int,
    method: Method,
    value: Callable[[Outcome], float],
) -> float:
    """Average a value of one method at one batch size over the runs."""
    found = [value(o) for o in outcomes if (o.case.batch_size, o.method) == (batch_size, method)]
    return float(np.mean(found))


def accuracy(outcome: Outcome) -> float:
    """Accuracy, as a function for `mean_of`; so are those that follow."""
    return outcome.accuracy


def loss(outcome: Outcome) -> float:
    """Test loss."""
    return outcome.loss


def farthest(outcome: Outcome) -> float:
    """Distance of the layer that is farthest off."""
    return outcome.distance


def at_layer(layer: int, part: Literal["mean", "var", "total"]) -> Callable[[Outcome], float]:
    """Distance of one layer, or a part of it."""
    return lambda outcome: float(getattr(outcome.distances[layer], part))


def methods_of(outcomes: Sequence[Outcome]) -> list[Method]:
    """List the methods that are shown, in order."""
    return shown(dict.fromkeys(outcome.method for outcome in outcomes))


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title_justify = "left"
    table.add_column("statistics", no_wrap=True)
    return table


def _accuracies(options: Options, kind: Kind, outcomes: Sequence[Outcome]) -> Table:
    table = _table(f"{DESCRIPTIONS[kind]}\nTest accuracy in %, and test loss, by batch size")
    sizes = options.batch_sizes
    chosen = sizes[:: max(1, -(-(len(sizes) - 1) // (MOST_COLUMNS - 1)))]
    for size in chosen:
        steps = options.epochs * (TRAIN_EXAMPLES // size)
        table.add_column(f"{size}\n{steps} steps", justify="right", no_wrap=True)
    for method in methods_of(outcomes):
        cells = []
        for size in chosen:
            correct = 100 * mean_of(outcomes, size, method, accuracy)
            cells.append(f"{correct:.1f} {mean_of(outcomes, size, method, loss):.3f}")
        table.add_row(method.name, *cells)
    return table


def _distances(options: Options, outcomes: Sequence[Outcome]) -> Table:
    table = _table("Distance from exact, of the layer that is farthest off, by batch size")
    for size in options.batch_sizes:
        table.add_column(f"{size}", justify="right", no_wrap=True)
    for method in methods_of(outcomes):
        values = [mean_of(outcomes, size, method, farthest) for size in options.batch_sizes]
        table.add_row(method.name, *map(_short, values))
    return table


def _layers(options: Options, outcomes: Sequence[Outcome]) -> Table:
    size = options.detailed
    table = _table(f"Distance of each layer, by its means and by its variances; batches of {size}")
    layers = range(len(outcomes[0].distances))
    for layer in layers:
        table.add_column(f"layer {layer + 1}", justify="right", no_wrap=True)
    for method in methods_of(outcomes):
        cells = []
        for layer in layers:
            mean = mean_of(outcomes, size, method, at_layer(layer, "mean"))
            var = mean_of(outcomes, size, method, at_layer(layer, "var"))
            cells.append(f"{_short(mean)} {_short(var)}")
        table.add_row(method.name, *cells)
    return table


def _short(value: float) -> str:
    """Three decimals, without the zero before them, so that nine columns fit a terminal."""
    return f"{value:.3f}".removeprefix("0")
