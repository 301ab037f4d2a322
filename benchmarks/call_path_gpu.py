"""The time of a call on CUDA tensors on the CPU, up to the launch, measured without a GPU.

    python -m benchmarks.call_path_gpu [--check]

Needs PyTorch and a build with BNEXT_CUDA_EMULATION=ON. PyTorch's tensors on the CPU stand for CUDA
tensors (64, 20) of float32, and a launch returns at once. benchmarks/pretended_gpu.py lists the
differences from a GPU: PyTorch's allocations, and the CUDA runtime below the launch. A GPU adds the
launch itself, and the extra cost of PyTorch's CUDA allocator.

Each row is a call, and beside it the same call on tensors that are not plain, which Python views.
Times are in microseconds: the least and the median of turns, with so few calls each that a busy
machine does not interrupt all turns. With --check it exits with 1 if the least is above the
promise; it exits with 2 if it cannot measure.
"""

import importlib
import sys
import time
from contextlib import ExitStack
from unittest import mock

import bnext
from benchmarks.kit.command import checked, command, ended
from bnext import _core, arrays
from bnext.bench.libraries import import_torch
from bnext.command_line import USAGE, CommandError

SHAPE = (64, 20)
TURNS, CALLS = 400, 40

# Microseconds, on an idle machine.
PROMISED = {"forward": 10.0, "forward, out=": 10.0, "backward": 10.0, "layer, training": 10.0}


def calls_of(torch):
    x, dy = torch.randn(2, *SHAPE)
    weight, bias = torch.randn(2, SHAPE[1])
    out = torch.empty_like(x)
    _, saved = bnext.batch_norm_forward(x, weight, bias)
    recorded, training, evaluating = (bnext.torch.BatchNorm1d(SHAPE[1]) for _ in range(3))
    training.requires_grad_(False)
    evaluating.requires_grad_(False).eval()
    leaf = x.clone().requires_grad_()
    parameters = tuple(recorded.parameters())
    return {
        "forward": lambda: bnext.batch_norm_forward(x, weight, bias),
        "forward, out=": lambda: bnext.batch_norm_forward(x, weight, bias, out=out),
        "backward": lambda: bnext.batch_norm_backward(dy, x, saved, weight),
        "normalize": lambda: bnext.normalize(x, bias, weight, weight, bias),
        "layer, training": lambda: training(x),
        "layer, evaluation": lambda: evaluating(x),
        "layer, training, recorded": lambda: recorded(leaf),
        "layer, forward and backward": lambda: torch.autograd.grad(
            recorded(leaf), (leaf, *parameters), dy
        ),
    }


def microseconds(call):
    """The least and the median of a call over turns."""
    for _ in range(CALLS):
        call()
    turns = []
    for _ in range(TURNS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        turns.append((time.perf_counter() - begin) / CALLS * 1e6)
    turns.sort()
    return turns[0], turns[TURNS // 2]


def by_the_general_road(stack):
    """Let no tensor be plain."""
    from bnext.torch import kernels

    calls_on = _core.calls_on
    stack.enter_context(mock.patch.object(kernels, "_THERE", {}))
    stack.enter_context(mock.patch.object(arrays, "_ENGINES", {}))
    stack.enter_context(
        mock.patch.object(_core, "calls_on", lambda *of: calls_on(*of, plain=False))
    )


@command("call_path_gpu.py", __doc__, checked("fail where a promise is not kept"))
def main(options):
    torch = import_torch()
    try:
        kernels = importlib.import_module("bnext._cuda_emulated")
    except ModuleNotFoundError:
        kernels = None
    if torch is None or kernels is None:
        raise CommandError("needs PyTorch and a build with BNEXT_CUDA_EMULATION=ON", USAGE)
    from benchmarks.pretended_gpu import pretended_gpu

    torch.set_num_threads(1)
    broken = []
    print(f"{'us a call':28} {'least':>8} {'median':>8} {'general road':>14}")
    kernels.run_kernels(False)
    try:
        with pretended_gpu(kernels):
            for name, call in calls_of(torch).items():
                least, median = microseconds(call)
                with ExitStack() as stack:
                    by_the_general_road(stack)
                    general, _ = microseconds(call)
                limit = PROMISED.get(name)
                if limit is not None and least > limit:
                    broken.append(f"{name}: {least:.2f} us, promised {limit:.0f}")
                note = f"   promised: {limit:.0f}" if limit is not None else ""
                print(f"{name:28} {least:8.2f} {median:8.2f} {general:14.2f}{note}")
    finally:
        kernels.run_kernels(True)
    return ended(options, broken)


if __name__ == "__main__":
    sys.exit(main())
