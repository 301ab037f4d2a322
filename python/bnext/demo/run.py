"""The demo from beginning to end."""

from __future__ import annotations

from rich.console import Console
from threadpoolctl import threadpool_limits

from bnext.demo import report
from bnext.demo.data import Digits, split_digits
from bnext.demo.networks import build
from bnext.demo.options import Options
from bnext.demo.training import Case, Record, train


def run(options: Options) -> None:
    """Train every network in every way, then show the tables and draw the picture.

    After an error, or Ctrl-C, the finished runs are shown too.
    """
    console = Console()
    digits = split_digits(options.seed)
    report.introduce(console, options)
    records: list[Record] = []
    try:
        _train(options, digits, records)
    finally:
        for kind in dict.fromkeys(record.case.kind for record in records):
            report.table(kind, records).show(console)
        if records:
            report.explain(console)
    if options.output is not None:
        from bnext.demo import picture  # with matplotlib, which only a picture needs

        picture.draw(records, options.kinds, options.output)
        print(f"Picture: {options.output.absolute()}")


def _train(options: Options, digits: Digits, records: list[Record]) -> None:
    """Train each network at every rate, with normalization and then without; add its record."""
    cases = [
        Case(kind, options.batch_size, rate, options.epochs, options.seed, normalized)
        for kind in options.kinds
        for rate in options.rates
        for normalized in (True, False)
    ]
    # A second BLAS thread gains nothing on such small matrices, and costs much on busy cores, since
    # BLAS threads spin while they wait. (threadpoolctl comes with scikit-learn.)
    with threadpool_limits(1, user_api="blas"), report.progress_bars() as bars:
        for case in cases:
            network = build(case.kind, normalized=case.normalized, seed=case.seed)
            records.append(train(network, case, digits, report.add_bar(bars, case)))
