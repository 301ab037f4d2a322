"""bnext against PyTorch on large inputs, and whether the promised speed is reached.

    python benchmarks/compare.py [--threads N] [--check]

Outputs go to mapped memory, so that kernels are compared and not allocators. With --check it exits
with 1 if a promise does not hold; it exits with 2 if it cannot compare.
"""

import sys
from statistics import median

from bnext.bench import report
from bnext.bench.cases import PLANES_56, ROWS_256, ROWS_4096
from bnext.bench.environment import environment
from bnext.bench.libraries import LIBRARIES, installed
from bnext.bench.measure import measure
from bnext.command_line import MOST_THREADS, Parser, at_least, ends_well

# PyTorch's time over bnext's, with two threads.
# 5 on two cores of a Zen 4, 2.2 to 2.5 on two of a Xeon (Sapphire Rapids), whose PyTorch is faster.
PROMISES = {"forward": 2.0, "backward": 1.0}
PROMISED_CASE = PLANES_56
OTHER_CASES = (ROWS_256, ROWS_4096)

# A ratio is of medians taken in turns, so other work on the machine mostly meets both libraries.
# The median of several such ratios evens out the rest.
RUNS = 3


def compare(cases, threads):
    return list(
        measure(
            cases,
            pages="warm",
            libraries={name: LIBRARIES[name] for name in ("bnext", "torch")},
            threads=threads,
            seconds=2.0,
            operations=tuple(PROMISES),
        )
    )


def typical_ratios(first, threads):
    """The ratio of each promised operation: the median over the runs, `first` included."""
    runs = [first, *(compare([PROMISED_CASE], threads) for _ in range(RUNS - 1))]
    found = [m for run in runs for m in run if m.case == PROMISED_CASE]
    return {
        name: median(m.ratio("torch") for m in found if m.operation == name) for name in PROMISES
    }


@ends_well("compare.py")
def main(arguments=None):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--threads", type=at_least(1, MOST_THREADS), default=2, metavar="N", help="(default: 2)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"fail where the median of {RUNS} runs falls short",
    )
    options = parser.parse_args(arguments)
    if "torch" not in installed():
        print("compare.py: needs PyTorch to compare with", file=sys.stderr)
        return 2

    print(report.introduction(environment(options.threads)))
    measurements = compare((PROMISED_CASE, *OTHER_CASES), options.threads)
    report.show(measurements)
    if not options.check:
        return 0
    kept = True
    for operation, ratio in typical_ratios(measurements, options.threads).items():
        enough = ratio >= PROMISES[operation]
        kept = kept and enough
        print(
            f"{'kept' if enough else 'NOT KEPT'}: {operation} of {PROMISED_CASE.name} "
            f"{PROMISES[operation]} times as fast as PyTorch; it is {ratio:.2f} times"
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
