"""The comparison from beginning to end."""

from __future__ import annotations

from rich.console import Console
from threadpoolctl import threadpool_limits

from bnext.demo.data import Digits, split_digits
from bnext.demo.networks import Kind
from bnext.demo.report import progress_bars
from bnext.demo.statistics import numbers, report
from bnext.demo.statistics.comparison import Comparison
from bnext.demo.statistics.cost import Cost, costs
from bnext.demo.statistics.experiment import Outcome, run_case
from bnext.demo.statistics.methods import methods
from bnext.demo.statistics.options import Options, detailed


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
                spent[kind] = costs(kind, digits.train_images, detailed(options.batch_sizes))
    finally:
        compared = [Comparison(kind, outcomes) for kind in options.kinds]
        for of_kind in compared:
            if of_kind.means:
                for table in report.tables(options, of_kind):
                    table.show(console)
        if spent:
            report.cost_table(options, spent).show(console)
        if outcomes:
            report.explain(console)
    if options.csv is not None:
        numbers.write(outcomes, options.csv)
        print(f"Numbers: {options.csv.absolute()}")
    if options.output is not None:
        from bnext.demo.statistics import picture  # with matplotlib, which only a picture needs

        picture.draw(options, compared, options.output)
        print(f"Picture: {options.output.absolute()}")


def _train(options: Options, outcomes: list[Outcome]) -> Digits:
    """Train one network after the other; add the outcomes of each at its end."""
    compared = methods(options.decays)
    seeds = range(options.seed, options.seed + options.runs)
    splits = {seed: split_digits(seed) for seed in seeds}
    with progress_bars("runs") as bars:
        for kind in options.kinds:
            cases = options.cases(kind)
            for case in bars.track(cases, description=f"{kind:5}"):
                outcomes += run_case(case, splits[case.seed], compared)
    return splits[options.seed]
