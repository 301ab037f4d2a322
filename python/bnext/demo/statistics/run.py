"""The comparison from beginning to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from threadpoolctl import threadpool_limits

from bnext.demo.data import Digits, split_digits
from bnext.demo.networks import Kind
from bnext.demo.statistics import numbers, report
from bnext.demo.statistics.cost import Cost, costs
from bnext.demo.statistics.experiment import Outcome, run_case
from bnext.demo.statistics.methods import methods
from bnext.demo.statistics.options import Options


def run(options: Options) -> None:
    """Train every network at every batch size, then show the tables and draw the picture.

    After an error, or Ctrl-C, the finished runs are shown too.
    """
    console = Console()
    report.introduce(console, options)
    outcomes: list[Outcome] = []
    spent: dict[Kind, list[Cost]] = {}
    # As in the demo: a second BLAS thread gains nothing, and spins.
    try:
        with threadpool_limits(1, user_api="blas"):
            digits = _train(options, outcomes)
            for kind in options.kinds:
                spent[kind] = costs(kind, digits.train_images, options.detailed)
    finally:
        _show(console, options, outcomes, spent)
    if options.csv is not None:
        numbers.write(outcomes, options.csv)
        print(f"Numbers: {options.csv.absolute()}")
    if options.output is not None:
        from bnext.demo.statistics import picture  # with matplotlib, which only a picture needs

        picture.draw(options, outcomes, options.output)
        print(f"Picture: {options.output.absolute()}")


def _train(options: Options, outcomes: list[Outcome]) -> Digits:
    """Train one network after the other; add the outcomes of each at its end."""
    compared = methods(options.decays)
    seeds = range(options.seed, options.seed + options.runs)
    splits = {seed: split_digits(seed) for seed in seeds}
    with report.progress_bars() as bars:
        for kind in options.kinds:
            cases = options.cases(kind)
            advance = report.add_bar(bars, kind, len(cases))
            for case in cases:
                outcomes += run_case(case, splits[case.seed], compared)
                advance()
    return splits[options.seed]


def _show(
    console: Console,
    options: Options,
    outcomes: Sequence[Outcome],
    spent: dict[Kind, list[Cost]],
) -> None:
    """Print the tables of the finished runs."""
    for kind in options.kinds:
        measured = {o.case.batch_size for o in outcomes if o.case.kind == kind}
        if measured:
            sizes = tuple(size for size in options.batch_sizes if size in measured)
            for table in report.tables(replace(options, batch_sizes=sizes), kind, outcomes):
                table.show(console)
    if spent:
        report.cost_table(options, spent).show(console)
    if outcomes:
        report.explain(console)
