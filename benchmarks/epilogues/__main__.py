"""Activations and additions that follow normalization, in the same pass.

    python -m benchmarks.epilogues [--check] [--quick] [--threads N] [--seconds S] [--out FILE]

Three tables. What epilogues cost: forward and backward with them over the plain ones, on large
arrays. The 53 normalization layers of ResNet-50, each with what follows it there: PyTorch's
operators one after the other, and autograd through them, over bnext's calls. And the same chain
beside torch.compile's fused code, and oneDNN's fused ReLU. Calls take turns in one process on the
same arrays; times are medians. A ratio of the first table that breaks its promise is measured twice
more, on other arrays, and is then the median of the three. What is promised of the first and the
third table is judged by arrays of float32 that exceed this machine's last-level cache.

With --check it exits with 1 if a promise does not hold, and with 2 if it cannot compare.
"""

import sys
from pathlib import Path

from benchmarks import cases
from benchmarks.epilogues import report
from benchmarks.epilogues.cases import DTYPES, OPERATIONS, large, variants
from benchmarks.epilogues.measure import beside_fused, cost, network
from benchmarks.kit.command import checked, command, flag, option, threads
from benchmarks.kit.promises import is_broken
from benchmarks.promises import THREADS
from bnext.bench.libraries import import_torch
from bnext.bench.measure import threads_set_to
from bnext.command_line import USAGE, check_output, positive, write_output

SECONDS, QUICK_SECONDS = 0.3, 0.05  # for each call


@command(
    "python -m benchmarks.epilogues",
    __doc__,
    checked("fail where a promise does not hold"),
    flag("--quick", "float32, warm pages, short turns"),
    threads(THREADS),
    option("--seconds", type=positive, metavar="S", help=f"for each call ({SECONDS})"),
    option("--out", type=Path, metavar="FILE", help="where the tables go as well"),
)
def main(options):
    if options.out:
        check_output(options.parser, "--out", options.out)
    texts = []

    def show(text):
        texts.append(text)
        print(text, flush=True)

    with threads_set_to(options.threads):
        found = measure(options, show)
    if options.out:
        write_output(options.out, ("\n".join(texts) + "\n").encode())
    if options.check and import_torch() is None:
        return USAGE
    return 1 if options.check and is_broken(found) else 0


def measure(options, show):
    """Measure and show everything; return the verdicts."""
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    dtypes = [d for d in DTYPES[: 1 if options.quick else None] if cases.refusal(d) is None]
    has_torch = import_torch() is not None
    notes = [] if has_torch else ["PyTorch is not installed: nothing to compare with"]
    rows, fused = [], []
    show(report.introduction(options.threads))
    if has_torch and not options.quick:  # first, since `recycled_pages` changes the allocator
        rows += network("fresh", dtypes, seconds)
    costs = [
        cost(case, operation, seconds)
        for shape in large()
        for case in variants(shape, dtypes)
        for operation in OPERATIONS
    ]
    show(report.costs_table(costs))
    if has_torch:
        rows += network("warm", dtypes, seconds)
        show(report.sums_table(rows))
        show(report.layers_table(rows))
        fused = beside_fused(seconds, notes)
        show(report.fused_table(fused))
    found = list(report.verdicts(costs, rows, fused))
    show("\n".join([*notes, *(verdict.line for verdict in found)]))
    return found


if __name__ == "__main__":
    sys.exit(main())
