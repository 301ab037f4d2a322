"""Norms besides batch normalization, beside PyTorch's: ``python -m benchmarks.norms``.

Each line is one call of one norm on one shape, timed in turns with PyTorch's: forward and backward
by functions, or with `--layers` the forward pass and a whole step of modules. Ratios above 1 say
that bnext is faster. Another norm adds an entry to the functions and modules here, and its shapes
to `CASES`.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bnext
from benchmarks.kit.command import command, flag, option, seconds
from bnext.bench.libraries import import_torch
from bnext.bench.measure import threads_set_to
from bnext.bench.timing import alternate
from bnext.command_line import at_least


class Case(NamedTuple):
    norm: str
    shape: tuple
    dtype: str = "float32"
    groups: int = 0  # of channels
    channels_last: bool = False
    device: str = "cpu"


OF_ROWS = {"layer": "LayerNorm", "rms": "RMSNorm"}
NORMS = (*OF_ROWS, "group", "instance")
ROWS = ((8192, 4096), (16384, 1024), (4096, 16384), (131072, 128))
CASES = [
    *(Case(norm, shape) for norm in ("layer", "rms") for shape in ROWS),
    *(Case(norm, (16384, 1024), "bfloat16") for norm in ("layer", "rms")),
    *(Case(norm, (64, 20)) for norm in ("layer", "rms")),
    *(Case("group", (32, 256, 56, 56), groups=32, channels_last=last) for last in (False, True)),
    Case("group", (32, 256, 56, 56), "bfloat16", 32),
    *(Case("group", (32, channels, 7, 7), groups=32) for channels in (512, 2048)),
    Case("group", (32, 1024, 14, 14), groups=32),
    Case("instance", (2, 32, 128, 128, 64)),
    Case("group", (64, 20), groups=4),
    Case("instance", (64, 20, 8)),
]


def tensors(case):
    """x and dy of a case, in its memory format."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(1)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    chosen = formats[len(case.shape)] if case.channels_last else torch.contiguous_format
    drawn = (torch.randn(case.shape, generator=generator) for _ in range(2))
    options = {"dtype": getattr(torch, case.dtype), "device": case.device}
    return [each.to(**options).contiguous(memory_format=chosen) for each in drawn]


def parameters(case):
    """Weight and bias of a case."""
    torch = import_torch()
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    size = case.shape[-1] if case.norm in OF_ROWS else case.shape[1]
    options = {"dtype": wide, "device": case.device}
    return torch.ones(size, **options), torch.zeros(size, **options)


def forward_functions(case):
    """Functions of x, weight and bias: this package's, and PyTorch's."""
    functional = import_torch().nn.functional
    width, groups = case.shape[-1], case.groups
    ours = {
        "layer": lambda x, weight, bias: bnext.layer_norm_forward(x, width, weight, bias),
        "rms": lambda x, weight, bias: bnext.rms_norm_forward(x, width, weight),
        "group": lambda x, weight, bias: bnext.group_norm_forward(x, groups, weight, bias),
        "instance": bnext.instance_norm_forward,
    }
    theirs = {
        "layer": lambda x, weight, bias: functional.layer_norm(x, (width,), weight, bias),
        "rms": lambda x, weight, bias: functional.rms_norm(x, (width,), weight),
        "group": lambda x, weight, bias: functional.group_norm(x, groups, weight, bias),
        "instance": lambda x, weight, bias: functional.instance_norm(x, None, None, weight, bias),
    }
    return ours[case.norm], theirs[case.norm]


def functions(case):
    """Forward and backward by functions of arrays, beside PyTorch's operators."""
    torch = import_torch()
    (x, dy), (weight, bias) = tensors(case), parameters(case)
    ours, theirs = forward_functions(case)
    gradients = getattr(bnext, f"{case.norm}_norm_backward", bnext.group_norm_backward)
    saved = ours(x, weight, bias)[1]
    if case.norm == "layer":  # the operator, without autograd
        given = (
            dy,
            x,
            (case.shape[-1],),
            *torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)[1:],
        )

        def backward():
            return torch.ops.aten.native_layer_norm_backward(*given, weight, bias, [True] * 3)

    else:
        leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
        y = theirs(*leaves)

        def backward():
            return torch.autograd.grad(y, leaves, dy, retain_graph=True, allow_unused=True)

    return {
        "forward": (lambda: ours(x, weight, bias), lambda: theirs(x, weight, bias)),
        "backward": (lambda: gradients(dy, x, saved, weight), backward),
    }


def module(library, case):
    """A module of a library."""
    if case.norm in OF_ROWS:
        return getattr(library, OF_ROWS[case.norm])(case.shape[-1])
    if case.norm == "group":
        return library.GroupNorm(case.groups, case.shape[1])
    return getattr(library, f"InstanceNorm{len(case.shape) - 2}d")(case.shape[1], affine=True)


def modules(case):
    """Calls of modules that autograd records, and whole steps."""
    torch = import_torch()
    import bnext.torch

    x, dy = tensors(case)
    x.requires_grad_()

    def calls_of(library):
        layer = module(library, case).to(x.device)

        def step():
            x.grad = None
            layer.zero_grad()
            layer(x).backward(dy)

        return lambda: layer(x), step

    pairs = zip(calls_of(bnext.torch), calls_of(torch.nn), strict=True)
    return dict(zip(("forward", "step"), pairs, strict=True))


def finished(call, case):
    """The call, with the wait for what it enqueues on a GPU."""
    if case.device == "cpu":
        return call
    torch = import_torch()

    def both():
        result = call()
        torch.cuda.synchronize()
        return result

    return both


def measured(case, layers, seconds):
    """One row for each call of a case."""
    for name, (ours, theirs) in (modules if layers else functions)(case).items():
        calls = {"bnext": ours, "torch": theirs}
        times = alternate({side: finished(call, case) for side, call in calls.items()}, seconds)
        yield {
            "norm": case.norm, "shape": case.shape, "dtype": case.dtype, "call": name,
            "groups": case.groups, "channels_last": case.channels_last, "device": case.device,
            "bnext": times["bnext"].median, "torch": times["torch"].median,
            "ratio": times["torch"].median / times["bnext"].median,
        }  # fmt: skip


def line(row):
    """A row of the table, in milliseconds."""
    shape = "x".join(map(str, row["shape"])) + (" last" if row["channels_last"] else "")
    return (
        f"{row['norm']:8} {shape:22} {row['dtype']:9} {row['call']:9} "
        f"{1e3 * row['bnext']:10.4f} {1e3 * row['torch']:10.4f} {row['ratio']:6.2f}"
    )


@command(
    "benchmarks.norms",
    __doc__,
    option("--norms", nargs="+", choices=NORMS, default=NORMS),
    flag("--layers", "modules in place of functions"),
    option("--device", default="cpu", help="cuda: of layer and RMS normalization"),
    option("--threads", type=at_least(0), default=0, help="of both sides (0: all)"),
    seconds(2.0, "line"),
    option("--most", type=int, default=2**31, help="elements of the largest shape"),
    option("--json", type=Path, metavar="FILE", help="a file for the rows"),
    needs_torch=True,
)
def main(options, torch):
    threads = options.threads or torch.get_num_threads()
    print(f"threads: {threads}; milliseconds; ratio: PyTorch {torch.__version__} / bnext")
    print(
        f"{'norm':8} {'shape':22} {'dtype':9} {'call':9} {'bnext':>10} {'torch':>10} {'ratio':>6}"
    )
    rows = []
    with threads_set_to(threads):
        for case in CASES:
            if case.norm in options.norms and np.prod(case.shape) <= options.most:
                case = case._replace(device=options.device)
                for row in measured(case, options.layers, options.seconds):
                    print(line(row), flush=True)
                    rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
