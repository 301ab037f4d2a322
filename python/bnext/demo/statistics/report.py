"""The comparison in the terminal: progress bars, three tables for each network, and the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bnext.demo.data import TEST_EXAMPLES, TRAIN_EXAMPLES
from bnext.demo.networks import DESCRIPTIONS, Kind
from bnext.demo.statistics.cost import Cost
from bnext.demo.statistics.experiment import Outcome
from bnext.demo.statistics.methods import Method, shown
from bnext.demo.statistics.options import REFERENCE_BATCH, Options
from bnext.terminal import TextTable

MOST_COLUMNS = 5  # of two numbers each


def introduce(console: Console, options: Options) -> None:
    """Print the data and the options."""
    console.print(
        f"Training on {TRAIN_EXAMPLES} handwritten digits, {TEST_EXAMPLES} more held out: "
        f"{options.epochs} epochs at each batch size M, with learning rate {options.rate:g} "
        f"\u221a(M/{REFERENCE_BATCH}). Running averages follow the same training all at once. "
        f"Runs at each batch size: {options.runs}, from seed {options.seed} on; tables have their "
        "means.",
        highlight=False,
    )


def progress_bars() -> Progress:
    """Open a context in which each network shows a bar with its training runs on a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        refresh_per_second=4,
    )


def add_bar(bars: Progress, kind: Kind, runs: int) -> Callable[[], None]:
    """Add the bar of one network; the result advances it by a run."""
    task = bars.add_task(f"{kind:5}", total=runs)
    return lambda: bars.advance(task)


def tables(options: Options, kind: Kind, outcomes: Sequence[Outcome]) -> list[TextTable]:
    """Make the tables of one network; outcomes of other networks are ignored."""
    of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
    return [
        _accuracies(options, kind, of_kind),
        _distances(options, of_kind),
        _layers(options, of_kind),
    ]


def cost_table(options: Options, costs: dict[Kind, list[Cost]]) -> TextTable:
    """Tabulate the cost of each method, for each network."""
    title = (
        f"Cost after training: passes over the data, and the work in them; batches of "
        f"{options.detailed}"
    )
    rows = [
        [
            costs_of_method[0].name,
            *(
                f"{c.passes} {'pass' if c.passes == 1 else 'passes'}  {c.work:.2f}"
                for c in costs_of_method
            ),
        ]
        for costs_of_method in zip(*costs.values(), strict=True)
    ]
    return TextTable(title, ["statistics", *costs], rows)


def explain(console: Console) -> None:
    """Explain the tables."""
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
    """Accuracy; like the functions below, for `mean_of`."""
    return outcome.accuracy


def loss(outcome: Outcome) -> float:
    """Test loss."""
    return outcome.loss


def farthest(outcome: Outcome) -> float:
    """Distance of the farthest layer."""
    return outcome.distance


def at_layer(layer: int, part: Literal["mean", "var", "total"]) -> Callable[[Outcome], float]:
    """Distance of one layer, or a part of it."""
    return lambda outcome: float(getattr(outcome.distances[layer], part))


def methods_of(outcomes: Sequence[Outcome]) -> list[Method]:
    """List the methods for the tables, in order."""
    return shown(dict.fromkeys(outcome.method for outcome in outcomes))


def _accuracies(options: Options, kind: Kind, outcomes: Sequence[Outcome]) -> TextTable:
    sizes = options.batch_sizes
    chosen = sizes[:: max(1, -(-(len(sizes) - 1) // (MOST_COLUMNS - 1)))]
    header = [f"{size}\n{options.epochs * (TRAIN_EXAMPLES // size)} steps" for size in chosen]

    def cell(method: Method, size: int) -> str:
        correct = 100 * mean_of(outcomes, size, method, accuracy)
        return f"{correct:.1f} {mean_of(outcomes, size, method, loss):.3f}"

    return TextTable(
        f"{DESCRIPTIONS[kind]}\nTest accuracy in %, and test loss, by batch size",
        ["statistics", *header],
        [[m.name, *(cell(m, size) for size in chosen)] for m in methods_of(outcomes)],
    )


def _distances(options: Options, outcomes: Sequence[Outcome]) -> TextTable:
    sizes = options.batch_sizes
    return TextTable(
        "Distance from exact, of the layer that is farthest off, by batch size",
        ["statistics", *map(str, sizes)],
        [
            [m.name, *(_short(mean_of(outcomes, size, m, farthest)) for size in sizes)]
            for m in methods_of(outcomes)
        ],
    )


def _layers(options: Options, outcomes: Sequence[Outcome]) -> TextTable:
    size = options.detailed
    layers = range(len(outcomes[0].distances))

    def cell(method: Method, layer: int) -> str:
        mean = mean_of(outcomes, size, method, at_layer(layer, "mean"))
        var = mean_of(outcomes, size, method, at_layer(layer, "var"))
        return f"{_short(mean)} {_short(var)}"

    return TextTable(
        f"Distance of each layer, by its means and by its variances; batches of {size}",
        ["statistics", *(f"layer {layer + 1}" for layer in layers)],
        [[m.name, *(cell(m, layer) for layer in layers)] for m in methods_of(outcomes)],
    )


def _short(value: float) -> str:
    """Three decimals, without the zero before them, so that nine columns fit a terminal."""
    return f"{value:.3f}".removeprefix("0")
