"""The cost of a call with next to nothing to compute: (64, 20), float32.

    python benchmarks/call_path.py [--threads N ...] [--seconds S] [--check]

Each row is a level of the path from Python to the kernel, beside PyTorch's call at the same level.
PyTorch records nothing for autograd (torch.no_grad), except in the last row. Times are medians of
turns, in microseconds, with the 10th and 90th percentile of bnext's.
With --check it exits with 1 if bnext is slower in any row; it exits with 2 if it cannot compare.
"""

import sys

import numpy as np

import bnext
from bnext.bench import report
from bnext.bench.environment import environment
from bnext.bench.libraries import import_torch
from bnext.bench.measure import threads_set_to
from bnext.bench.timing import alternate
from bnext.command_line import MOST_THREADS, Parser, at_least, ends_well, positive

SHAPE = (64, 20)
EPS, MOMENTUM = 1e-5, 0.1


def drawn():
    """x, dy, weight and bias."""
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, *SHAPE), np.float32)
    return *arrays, *rng.standard_normal((2, SHAPE[1]), np.float32)


def calls_of_bnext(x, dy, weight, bias):
    mean, var = np.zeros_like(weight), np.ones_like(weight)
    y, dx = np.empty_like(x), np.empty_like(x)
    _, saved = bnext.batch_norm_forward(x, weight, bias)
    training, evaluating = bnext.BatchNorm1d(SHAPE[1]), bnext.BatchNorm1d(SHAPE[1]).eval()
    both = bnext.BatchNorm1d(SHAPE[1])

    def forward_and_backward():
        both(x)
        return both.backward(dy)

    return {
        "forward, out=": lambda: bnext.batch_norm_forward(x, weight, bias, out=y),
        "forward": lambda: bnext.batch_norm_forward(x, weight, bias),
        "backward, out=": lambda: bnext.batch_norm_backward(dy, x, saved, weight, out=dx),
        "backward": lambda: bnext.batch_norm_backward(dy, x, saved, weight),
        "normalize, out=": lambda: bnext.normalize(x, mean, var, weight, bias, out=y),
        "normalize": lambda: bnext.normalize(x, mean, var, weight, bias),
        "layer, training": lambda: training(x),
        "layer, evaluation": lambda: evaluating(x),
        "layer, forward and backward": forward_and_backward,
    }


def calls_of_torch(torch, *arrays):
    x, dy, weight, bias = map(torch.from_numpy, arrays)
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    y, save_mean, save_rstd = torch.native_batch_norm(
        x, weight, bias, None, None, True, MOMENTUM, EPS
    )
    dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
    outputs = (y, save_mean, save_rstd)
    gradients = {"out0": dx, "out1": dweight, "out2": dbias}
    native, native_backward = torch.native_batch_norm, torch.ops.aten.native_batch_norm_backward
    saved = (weight, None, None, save_mean, save_rstd, True, EPS, [True] * 3)
    training, evaluating = torch.nn.BatchNorm1d(SHAPE[1]), torch.nn.BatchNorm1d(SHAPE[1]).eval()
    both = torch.nn.BatchNorm1d(SHAPE[1])
    leaf = x.clone().requires_grad_()

    def forward_and_backward():
        with torch.enable_grad():
            both(leaf).backward(dy)

    return {
        "forward, out=": lambda: native(
            x, weight, bias, None, None, True, MOMENTUM, EPS, out=outputs
        ),
        "forward": lambda: native(x, weight, bias, None, None, True, MOMENTUM, EPS),
        "backward, out=": lambda: native_backward.out(dy, x, *saved, **gradients),
        "backward": lambda: native_backward(dy, x, *saved),
        "normalize, out=": lambda: native(
            x, weight, bias, mean, var, False, MOMENTUM, EPS, out=outputs
        ),
        "normalize": lambda: torch.batch_norm(
            x, weight, bias, mean, var, False, MOMENTUM, EPS, False
        ),
        "layer, training": lambda: training(x),
        "layer, evaluation": lambda: evaluating(x),
        "layer, forward and backward": forward_and_backward,
    }


def compare(torch, threads, seconds):
    """The timings of both, by level."""
    arrays = drawn()
    with threads_set_to(threads), torch.no_grad():
        ours, theirs = calls_of_bnext(*arrays), calls_of_torch(torch, *arrays)
        for level, call in ours.items():
            yield level, alternate({"bnext": call, "torch": theirs[level]}, seconds)


@ends_well("call_path.py")
def main(arguments=None):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--threads",
        type=at_least(1, MOST_THREADS),
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="(default: 1 2)",
    )
    parser.add_argument(
        "--seconds", type=positive, default=0.4, metavar="S", help="for each row (default: 0.4)"
    )
    parser.add_argument("--check", action="store_true", help="fail where bnext is slower")
    options = parser.parse_args(arguments)
    torch = import_torch()
    if torch is None:
        print("call_path.py: needs PyTorch to compare with", file=sys.stderr)
        return 2

    slower = 0
    for threads in options.threads:
        print(report.introduction(environment(threads)))
        print(f"{'':28}  x PyTorch  bnext us   p10    p90  PyTorch us")
        for level, timing in compare(torch, threads, options.seconds):
            ours, theirs = timing["bnext"], timing["torch"]
            ratio = theirs.median / ours.median
            slower += ratio < 1
            figures = (ours.median * 1e6, ours.p10 * 1e6, ours.p90 * 1e6, theirs.median * 1e6)
            print(
                f"{level:28} {ratio:10.2f} " + "{:9.2f} {:6.2f} {:6.2f} {:11.2f}".format(*figures)
            )
        print()
    if options.check and slower:
        print(f"NOT KEPT: bnext is slower than PyTorch in {slower} rows")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
