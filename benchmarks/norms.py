"""Norms besides batch normalization, beside PyTorch's: ``python -m benchmarks.norms``.

Each line is one call of one norm on one shape, timed in turns with PyTorch's: forward and backward
by functions, or with `--layers` the forward pass and a whole step of modules. Ratios above 1 say
that bnext is faster. `NORMS` has, for each norm, what makes the calls of both sides from a case;
another norm adds an entry, and its shapes to `CASES`.
"""

import argparse
import json
from typing import NamedTuple

import numpy as np

import bnext
from bnext.bench.libraries import import_torch
from bnext.bench.timing import alternate


class Case(NamedTuple):
    norm: str
    shape: tuple
    dtype: str = "float32"
    groups: int = 0  # of channels
    channels_last: bool = False
    device: str = "cpu"


ROWS = ((8192, 4096), (16384, 1024), (4096, 16384), (131072, 128))
CASES = [
    *(Case(norm, shape) for norm in ("layer", "rms") for shape in ROWS),
    *(Case(norm, (16384, 1024), "bfloat16") for norm in ("layer", "rms")),
    *(Case(norm, (64, 20)) for norm in ("layer", "rms")),
    *(Case("group", (32, 256, 56, 56), groups=32, channels_last=last) for last in (False, True)),
    Case("group", (32, 256, 56, 56), "bfloat16", 32),
    Case("instance", (2, 32, 128, 128, 64)),
    Case("group", (64, 20), groups=4),
    Case("instance", (64, 20, 8)),
]


def tensors(case):
    """x and dy of a case."""
    torch = import_torch()
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(case.shape, generator=generator).to(case.device, dtype) for _ in range(2))
    return x, dy


def parameters(case, size):
    """Weight and bias of a case."""
    torch = import_torch()
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    options = {"dtype": wide, "device": case.device}
    return torch.ones(size, **options), torch.zeros(size, **options)


def row_functions(case):
    """Forward and backward by functions of arrays, beside PyTorch's operators."""
    torch = import_torch()
    x, dy = tensors(case)
    width = case.shape[-1]
    weight, bias = parameters(case, width)
    if case.norm == "layer":
        forward = lambda: bnext.layer_norm_forward(x, width, weight, bias)  # noqa: E731
        saved = forward()[1]
        theirs = lambda: torch.native_layer_norm(x, (width,), weight, bias, 1e-5)  # noqa: E731
        _, mean, rstd = theirs()
        return {
            "forward": (forward, theirs),
            "backward": (
                lambda: bnext.layer_norm_backward(dy, x, saved, weight),
                lambda: torch.ops.aten.native_layer_norm_backward(
                    dy, x, (width,), mean, rstd, weight, bias, [True, True, True]
                ),
            ),
        }
    forward = lambda: bnext.rms_norm_forward(x, width, weight)  # noqa: E731
    saved = forward()[1]
    leaf, own = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = torch.nn.functional.rms_norm(leaf, (width,), own)

    def theirs():
        with torch.no_grad():
            return torch.nn.functional.rms_norm(x, (width,), weight)

    return {
        "forward": (forward, theirs),
        "backward": (
            lambda: bnext.rms_norm_backward(dy, x, saved, weight),
            lambda: torch.autograd.grad(y, (leaf, own), dy, retain_graph=True),
        ),
    }


def row_layers(case):
    """Calls of modules that autograd records, and whole steps."""
    torch = import_torch()
    import bnext.torch

    kind = {"layer": "LayerNorm", "rms": "RMSNorm"}[case.norm]
    layers = [getattr(side, kind)(case.shape[-1]) for side in (bnext.torch, torch.nn)]
    return calls_of_layers(layers, *tensors(case))


def calls_of_layers(layers, x, dy):
    """Forward passes and steps of a layer of bnext's and one of PyTorch's."""
    x.requires_grad_()
    pairs = []
    for layer in layers:
        layer.to(x.device)

        def step(layer=layer):
            x.grad = None
            layer.zero_grad()
            layer(x).backward(dy)

        pairs.append((lambda layer=layer: layer(x), step))
    ours, theirs = pairs
    return {"forward": (ours[0], theirs[0]), "step": (ours[1], theirs[1])}


def cell_tensors(case):
    """x and dy of a case, in its memory format."""
    torch = import_torch()
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    chosen = formats[len(case.shape)] if case.channels_last else torch.contiguous_format
    return (each.contiguous(memory_format=chosen) for each in tensors(case))


def cell_functions(case):
    """The same of group and instance normalization."""
    torch = import_torch()
    x, dy = cell_tensors(case)
    channels, groups = case.shape[1], case.groups or case.shape[1]
    weight, bias = parameters(case, channels)

    def forward():
        if case.norm == "group":
            return bnext.group_norm_forward(x, groups, weight, bias)
        return bnext.instance_norm_forward(x, weight, bias)

    def theirs(x=x, weight=weight, bias=bias):
        if case.norm == "group":
            return torch.nn.functional.group_norm(x, groups, weight, bias)
        return torch.nn.functional.instance_norm(x, None, None, weight, bias)

    saved = forward()[1]
    leaves = [x.detach().clone(memory_format=torch.preserve_format), weight.clone(), bias.clone()]
    y = theirs(*(leaf.requires_grad_() for leaf in leaves))
    return {
        "forward": (forward, theirs),
        "backward": (
            lambda: bnext.group_norm_backward(dy, x, saved, weight),
            lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        ),
    }


def cell_layers(case):
    """The same of their modules."""
    torch = import_torch()
    import bnext.torch

    def made(library):
        if case.norm == "group":
            return library.GroupNorm(case.groups, case.shape[1])
        kind = getattr(library, f"InstanceNorm{len(case.shape) - 2}d")
        return kind(case.shape[1], affine=True)

    return calls_of_layers([made(bnext.torch), made(torch.nn)], *cell_tensors(case))


NORMS = {
    "layer": (row_functions, row_layers), "rms": (row_functions, row_layers),
    "group": (cell_functions, cell_layers), "instance": (cell_functions, cell_layers),
}  # fmt: skip


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
    functions, modules = NORMS[case.norm]
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


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norms", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--layers", action="store_true", help="modules in place of functions")
    parser.add_argument("--device", default="cpu", help="cuda: of layer and RMS normalization")
    parser.add_argument("--threads", type=int, default=0, help="of both sides (0: all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    parser.add_argument("--most", type=int, default=2**31, help="elements of the largest shape")
    parser.add_argument("--json", help="a file for the rows")
    return parser


def main(given=None):
    """Measure and print; give the rows."""
    options = arguments().parse_args(given)
    torch = import_torch()
    if torch is None:
        raise SystemExit("benchmarks.norms: expected PyTorch to be installed")
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    bnext.set_num_threads(threads)
    print(f"threads: {threads}; milliseconds; ratio: PyTorch {torch.__version__} / bnext")
    print(
        f"{'norm':8} {'shape':22} {'dtype':9} {'call':9} {'bnext':>10} {'torch':>10} {'ratio':>6}"
    )
    rows = []
    for case in CASES:
        if case.norm in options.norms and np.prod(case.shape) <= options.most:
            case = case._replace(device=options.device)
            for row in measured(case, options.layers, options.seconds):
                print(line(row), flush=True)
                rows.append(row)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return rows


if __name__ == "__main__":
    main()
