"""Every operation, data type and path on small odd shapes: a program for compute-sanitizer.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m benchmarks.gpu.sanitize

It launches by addresses, below everything that Python adds. All data is made on the host and
copied, so that the device runs no kernels but those of bnext, and is allocated array by array, so
that a step over an end is one out of an allocation. Results are compared with float64; elements on
either side of an output must not change.
"""

import collections
import os
import sys
import time
from dataclasses import dataclass

import numpy as np

import bnext
from benchmarks.gpu import dry
from benchmarks.kit.command import command, flag, names, option
from bnext.bench.libraries import import_torch
from bnext.command_line import positive
from bnext.rows import ROW, Statistics

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Of the largest magnitude of a result; one rounding to the data's type is half a unit.
TOLERANCES = {"float32": 2e-5, "float64": 1e-11, "float16": 2e-3, "bfloat16": 1.6e-2}
EPS, MOMENTUM = 1e-5, 0.25
# Names of the arrays that a plan is made for, in its order.
OPERANDS = {
    "forward": ("x", "y"),
    "normalize": ("x", "y"),
    "collect_stats": ("x",),
    "backward": ("x", "dy", "dx"),
    "backward_fixed": ("x", "dy", "dx"),
    "backward_reduce": ("x", "dy"),
    "backward_apply": ("x", "dy", "dx"),
}
# Planes and rows of odd sizes; one whose slab is worth several blocks; few and many channels.
SHAPES = (
    ((3, 5, 7, 3), False),
    ((2, 7, 5, 3), True),
    ((37, 19), False),
    ((3, 3, 67, 61), False),
    ((4, 130, 9), True),
    ((1030, 33), False),
    ((2, 3, 4, 5, 8), False),
    ((1, 2, 2), False),
)
MARK = 13.0  # on either side of an output; every type has it


@dataclass(frozen=True)
class Case:
    """One launch."""

    operation: str
    path: str | None
    dtype: str
    shape: tuple
    channels_last: bool
    offset: int  # elements that data begins after an allocation does
    given: bool  # what may be left out is given


def cases(module, dtypes=DTYPES):
    """All launches, in an order that brings something of everything early."""
    found = [
        Case(operation, path, dtype, shape, last, offset, given)
        for operation in module.operations()
        for path in (None, *module.paths(operation))
        for dtype in dtypes
        for shape, last in SHAPES
        for offset, given in ((0, True), (1, False))
    ]
    np.random.default_rng(0).shuffle(found)
    return found


class Array:
    """A copy of `values` on a device, `offset` elements after its allocation begins."""

    def __init__(self, values, device, offset=0, last=False):
        torch = import_torch()
        self._offset, self._last = offset, last and values.ndim > 2
        placed = values.movedim(1, -1) if self._last else values
        self._placed_shape = placed.shape
        # Marks stand around what is offset. The rest ends where its allocation does.
        marks = torch.full((offset,), MARK, dtype=values.dtype)
        self._memory = torch.cat([marks, placed.reshape(-1), marks]).to(device)

    @property
    def address(self):
        return self._memory.data_ptr() + self._offset * self._memory.element_size()

    @property
    def strides(self):
        """In elements, of the shape as the caller has it."""
        placed = np.cumprod([1, *self._placed_shape[:0:-1]])[::-1].tolist()
        return [placed[0], placed[-1], *placed[1:-1]] if self._last else placed

    def values(self):
        """A float64 array, and whether the marks are as they were."""
        memory = self._memory.cpu().double()
        inside = memory[self._offset :][: int(np.prod(self._placed_shape))]
        around = [*memory[: self._offset], *memory[self._offset + inside.numel() :]]
        found = inside.reshape(self._placed_shape)
        found = found.movedim(-1, 1) if self._last else found
        return found.numpy(), all(value == MARK for value in around)


def expected(x, dy, weight, bias, mean, var, given):
    """Every operation's results in float64, by operation and name of the array."""
    axes = tuple(i for i in range(x.ndim) if i != 1)
    column = (1, -1) + (1,) * (x.ndim - 2)
    n = x.size // x.shape[1]

    def of(values):
        return values.reshape(column)

    def applied(mean, var):
        return (x - of(mean)) / np.sqrt(of(var) + EPS) * of(weight) + of(bias)

    def statistics(mean, m2, var):
        low = np.zeros_like(mean)
        return np.stack(Statistics(mean, m2, var, 1 / np.sqrt(var + EPS), low))

    batch = x.mean(axes)
    m2 = np.square(x - of(batch)).sum(axes)
    all_statistics = statistics(batch, m2, m2 / n)
    rstd = all_statistics[ROW.rstd]
    xmu = x - of(batch)
    sum_dy, sum_dy_xmu = dy.sum(axes), (dy * xmu).sum(axes)
    dx = of(weight * rstd) * (dy - of(sum_dy / n) - xmu * of(rstd * rstd * sum_dy_xmu / n))
    gradients = {"dweight": sum_dy_xmu * rstd, "dbias": sum_dy}
    forward = {"y": applied(batch, m2 / n), "statistics": all_statistics}
    if given:
        unbiased = m2 / max(n - 1, 1)
        forward["running_mean"] = (1 - MOMENTUM) * mean + MOMENTUM * batch
        forward["running_var"] = (1 - MOMENTUM) * var + MOMENTUM * unbiased
    return {
        "forward": forward,
        "normalize": {"y": applied(mean, var)},
        "collect_stats": {"statistics": all_statistics},
        "backward": {"dx": dx, **gradients},
        "backward_fixed": {"dx": dy * of(weight * rstd), **gradients},
        "backward_reduce": {"sums": np.stack([sum_dy, sum_dy_xmu])},
        "backward_apply": {"dx": dx},
    }


def run(module, case, limits, device):
    """Launch one case; None where its path does not take it, else the path and what was wrong."""
    torch = import_torch()
    dtype = getattr(torch, case.dtype)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    channels, rng = case.shape[1], np.random.default_rng(len(case.shape) + case.shape[0])

    def drawn(shape, low, high, dtype):
        return torch.from_numpy(rng.uniform(low, high, shape)).to(dtype)

    host = {
        "x": drawn(case.shape, -1, 3, dtype),
        "dy": drawn(case.shape, -1, 1, dtype),
        **{n: drawn(channels, 0.5, 2, parameter) for n in ("weight", "bias", "mean", "var")},
    }
    if not case.given:
        host["weight"], host["bias"] = torch.ones(channels), torch.zeros(channels)
    wide = {name: values.double().numpy() for name, values in host.items()}
    reference = expected(**wide, given=case.given)
    wanted = reference[case.operation]
    sums = torch.from_numpy(reference["backward_reduce"]["sums"])
    statistics = torch.from_numpy(reference["collect_stats"]["statistics"])

    def unset(shape, dtype):
        return torch.full(shape, float("nan"), dtype=dtype)

    data = {
        name: Array(
            host[name] if name in host else unset(case.shape, dtype),
            device,
            case.offset,
            case.channels_last,
        )
        for name in OPERANDS[case.operation]
    }
    given = dict(data)
    for name in _vectors(case):
        if name == "statistics":
            source = unset((len(ROW), channels), torch.float64) if name in wanted else statistics
        elif name == "sums":
            source = unset((2, channels), torch.float64) if name in wanted else sums
        elif name in ("dweight", "dbias"):
            source = unset((channels,), parameter)
        else:
            source = host[name.removeprefix("running_")]
        given[name] = Array(source, device)
    try:
        plan = module.plan(
            case.operation,
            case.dtype,
            case.shape,
            [array.strides for array in data.values()],
            [array.address for array in data.values()],
            1,
            limits,
            case.path,
        )
    except ValueError:
        if case.path is None:
            raise
        return None
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    module.launch(
        plan,
        0,
        torch.cuda.current_stream().cuda_stream if device == "cuda" else 0,
        workspace=workspace.data_ptr() if plan.workspace_bytes else 0,
        eps=EPS,
        momentum=MOMENTUM,
        count=float(wide["x"].size // channels),
        **{name: array.address for name, array in given.items()},
    )
    if device == "cuda":
        torch.cuda.synchronize()
    return plan.path, list(_wrong(case, given, wanted))


def _vectors(case):
    """The arrays of one value a channel, or a few, that a launch takes."""
    affine = ("weight", "bias") if case.given else ()
    running = ("running_mean", "running_var") if case.given else ()
    return {
        "forward": (*affine, *running, "statistics"),
        "normalize": (*affine, "mean", "var"),
        "collect_stats": ("statistics",),
        "backward": (*affine[:1], "statistics", "dweight", "dbias"),
        "backward_fixed": (*affine[:1], "statistics", "dweight", "dbias"),
        "backward_reduce": ("statistics", "sums"),
        "backward_apply": (*affine[:1], "statistics", "sums"),
    }[case.operation]


def _wrong(case, given, wanted):
    for name, values in wanted.items():
        found, kept = given[name].values()
        tolerance = TOLERANCES[case.dtype if name in ("y", "dx") else _parameter(case.dtype)]
        scale = max(1.0, np.abs(values).max())
        off = np.abs(found - values.reshape(found.shape)).max() / scale
        if not off <= tolerance:  # a NaN is wrong as well
            yield f"{name} is off by {off:.2g}"
        if not kept:
            yield f"{name}: something beside it was written"


def _parameter(dtype):
    return "float64" if dtype == "float64" else "float32"


@command(
    "sanitize.py",
    __doc__,
    option("--seconds", type=positive, default=60, help="stop after that many (60)"),
    names("--dtypes", DTYPES, default=DTYPES),
    flag("--trace", "name each case before its launch"),
    flag("--dry", "launch the emulated kernels instead"),
)
def main(options):
    """Launch everything, and say what was wrong."""
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # one allocation for each array
    kernels, device = (dry.emulated(), "cpu") if options.dry else (bnext.cuda._load(), "cuda")
    log = print if options.trace else lambda *given: None
    return launch_all(kernels, device, kernels.limits(0), options.dtypes, options.seconds, log=log)


def launch_all(module, device, limits, dtypes, seconds, log=lambda *given: None):
    """Launch all cases until the time is over; 1 if one was wrong or a path takes none of them.

    `log` is given the text of each case before its launch, so that a hang is located.
    """
    begin, launched, bad, over = time.monotonic(), collections.Counter(), 0, False
    everything = cases(module, dtypes)
    for done, case in enumerate(everything, 1):  # noqa: B007
        log(case)
        found = run(module, case, limits, device)
        if found is None:
            continue
        path, wrong = found
        launched[case.operation, path] += 1
        for text in wrong:
            bad += 1
            print(f"WRONG: {case}, path {path}: {text}")
        over = time.monotonic() - begin > seconds
        if over:
            break
    missing = [
        (operation, path)
        for operation in module.operations()
        for path in module.paths(operation)
        if not launched[operation, path] and (path != "cluster" or limits.cluster > 1)
    ]
    for operation, path in missing:
        why = ": no time was left" if over else ""
        print(f"MISSING: {operation} was never launched on the path {path}{why}")
    paths = ", ".join(f"{o} {p} {n}" for (o, p), n in sorted(launched.items()))
    print(f"{launched.total()} launches ({done} of {len(everything)} cases): {paths}")
    return 1 if bad or (missing and not over) else 0


if __name__ == "__main__":
    sys.exit(main())
