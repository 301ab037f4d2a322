"""The comparison from beginning to end."""

from __future__ import annotations

from rich.console import Console
from threadpoolctl import threadpool_limits

from bnext.demo.data import Digits, split_digits
from bnext.demo.networks import Kind
from bnext.demo.statistics import numbers, picture, report
from bnext.demo.statistics.cost import Cost, costs
from bnext.demo.statistics.experiment import Outcome, run_case
from bnext.demo.statistics.methods import methods
from bnext.demo.statistics.options import Options


def run(options: Options) -> None:
    """Train every network at every batch size, then show the tables and draw the picture."""
    console = Console()
    report.introduce(console, options)
    compared = methods(options.decays)
    splits = {seed: split_digits(seed) for seed in range(options.seed, options.seed + options.runs)}
    outcomes: list[Outcome] = []
    # As in the demo: a second BLAS thread has nothing to gain here, and spins.
    with threadpool_limits(1, user_api="blas"):
        with report.progress_bars(console) as bars:
            for kind in options.kinds:
                cases = options.cases(kind)
                advance = report.add_bar(bars, kind, len(cases))
                for case in cases:
                    outcomes += run_case(case, splits[case.seed], compared)
                    advance()
        spent = _costs(options, splits[options.seed])
    for kind in options.kinds:
        for table in report.tables(options, kind, outcomes):
            console.print(table)
    console.print(report.cost_table(options, spent))
    report.explain(console)
    if options.csv is not None:
        numbers.write(outcomes, options.csv)
        print(f"Numbers: {options.csv.absolute()}")
    if options.output is not None:
        picture.draw(options, outcomes, options.output)
        print(f"Picture: {options.output.absolute()}")


def _costs(options: Options, digits: Digits) -> dict[Kind, list[Cost]]:
    return {kind: costs(kind, digits.train_images, options.detailed) for kind in options.kinds}
