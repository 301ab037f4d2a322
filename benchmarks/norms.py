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


ROWS = ((8192, 4096), (16384, 1024), (4096, 16384), (131072, 128))
CASES = [
    *(Case(norm, shape) for norm in ("layer", "rms") for shape in ROWS),
    *(Case(norm, (16384, 1024), "bfloat16") for norm in ("layer", "rms")),
    *(Case(norm, (64, 20)) for norm in ("layer", "rms")),
]


def tensors(case):
    """x and dy of a case."""
    torch = import_torch()
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(case.shape, generator=generator).to(dtype) for _ in range(2))
    return x, dy


def row_functions(case):
    """Forward and backward by functions of arrays, beside PyTorch's operators."""
    torch = import_torch()
    x, dy = tensors(case)
    width = case.shape[-1]
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    weight, bias = torch.ones(width, dtype=wide), torch.zeros(width, dtype=wide)
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

    x, dy = tensors(case)
    x.requires_grad_()
    kind = {"layer": "LayerNorm", "rms": "RMSNorm"}[case.norm]
    pairs = {}
    for side in (bnext.torch, torch.nn):
        layer = getattr(side, kind)(case.shape[-1])

        def step(layer=layer):
            x.grad = None
            layer.zero_grad()
            layer(x).backward(dy)

        pairs[side] = lambda layer=layer: layer(x), step
    ours, theirs = pairs.values()
    return {"forward": (ours[0], theirs[0]), "step": (ours[1], theirs[1])}


NORMS = {"layer": (row_functions, row_layers), "rms": (row_functions, row_layers)}


def measured(case, layers, seconds):
    """One row for each call of a case."""
    functions, modules = NORMS[case.norm]
    for name, (ours, theirs) in (modules if layers else functions)(case).items():
        times = alternate({"bnext": ours, "torch": theirs}, seconds)
        yield {
            "norm": case.norm, "shape": case.shape, "dtype": case.dtype, "call": name,
            "bnext": times["bnext"].median, "torch": times["torch"].median,
            "ratio": times["torch"].median / times["bnext"].median,
        }  # fmt: skip


def line(row):
    """A row of the table, in milliseconds."""
    shape = "x".join(map(str, row["shape"]))
    return (
        f"{row['norm']:8} {shape:22} {row['dtype']:9} {row['call']:9} "
        f"{1e3 * row['bnext']:10.4f} {1e3 * row['torch']:10.4f} {row['ratio']:6.2f}"
    )


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--norms", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--layers", action="store_true", help="modules in place of functions")
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
            for row in measured(case, options.layers, options.seconds):
                print(line(row), flush=True)
                rows.append(row)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return rows


if __name__ == "__main__":
    main()
