"""The comparison in the terminal: three tables for each network, and the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from bnext.demo.data import TEST_EXAMPLES, TRAIN_EXAMPLES
from bnext.demo.networks import DESCRIPTIONS, Kind
from bnext.demo.statistics.comparison import Comparison
from bnext.demo.statistics.cost import Cost
from bnext.demo.statistics.options import REFERENCE_BATCH, Options, detailed
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


def tables(options: Options, compared: Comparison) -> list[TextTable]:
    """Make the tables of one network."""
    sizes, means = compared.sizes, compared.means
    chosen = sizes[:: max(1, -(-(len(sizes) - 1) // (MOST_COLUMNS - 1)))]
    size = detailed(sizes)
    layers = range(len(means[size, compared.methods[0]].layers))

    def table(title: str, header: Sequence[str], cells: Callable[..., list[str]]) -> TextTable:
        rows = [[method.name, *cells(method)] for method in compared.methods]
        return TextTable(title, ["statistics", *header], rows)

    return [
        table(
            f"{DESCRIPTIONS[compared.kind]}\nTest accuracy in %, and test loss, by batch size",
            [f"{m}\n{options.epochs * (TRAIN_EXAMPLES // m)} steps" for m in chosen],
            lambda of: [
                f"{100 * found.accuracy:.1f} {found.loss:.3f}"
                for found in (means[m, of] for m in chosen)
            ],
        ),
        table(
            "Distance from exact, of the layer that is farthest off, by batch size",
            [str(m) for m in sizes],
            lambda of: [_short(means[m, of].farthest) for m in sizes],
        ),
        table(
            f"Distance of each layer, by its means and by its variances; batches of {size}",
            [f"layer {layer + 1}" for layer in layers],
            lambda of: [f"{_short(mean)} {_short(var)}" for mean, var, _ in means[size, of].layers],
        ),
    ]


def cost_table(options: Options, costs: dict[Kind, list[Cost]]) -> TextTable:
    """Tabulate the cost of each method, for each network."""

    def cell(cost: Cost) -> str:
        return f"{cost.passes} {'pass' if cost.passes == 1 else 'passes'}  {cost.work:.2f}"

    return TextTable(
        "Cost after training: passes over the data, and the work in them; batches of "
        f"{detailed(options.batch_sizes)}",
        ["statistics", *costs],
        [[of[0].name, *map(cell, of)] for of in zip(*costs.values(), strict=True)],
    )


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


def _short(value: float) -> str:
    """Three decimals, without the zero before them, so that nine columns fit a terminal."""
    return f"{value:.3f}".removeprefix("0")
