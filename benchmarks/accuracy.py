"""Errors of bnext and of PyTorch's CPU batch norm against the exact result, on the same input.

    python benchmarks/accuracy.py

Both do one training step with the same x, dy, weight and bias: forward, backward, and running
statistics with momentum 1. An error is counted in units in the last place (ulp) of the data's
dtype, at the largest magnitude in the channel (`exact` says of which value). The tables have the
largest error of all channels, as a mean over several draws of the data, since the largest error of
all draws is luck. The exact result is computed in long double for float64 data, and in float64 for
the others (so the tests' reference does not serve here). Cases with an activation have it in the
same pass, where PyTorch has two operators. 16-bit data has float32 parameters and statistics:
rounding y and dx once, at the end, costs half a unit.

Exits with 1 if bnext is worse than PyTorch anywhere, and with 2 if it cannot compare.
"""

import math
import sys
from typing import NamedTuple

import numpy as np

import bnext
from bnext.bench.cases import dtype_of
from bnext.bench.libraries import as_tensor, import_torch
from bnext.command_line import Parser, at_least, ends_well

# A result within half a unit may be the exact one, rounded, and the worst channel shows a random
# part of that half. So a difference of half a unit between two libraries means nothing; more is a
# loss.
MARGIN = 0.5


def margin(dtype, name):
    """The difference that means nothing.

    For 16-bit data, statistics and parameters' gradients are first summed in float32; for float64
    data, sums have the precision of the data, and the best order of summation is luck.
    """
    if np.dtype(dtype).itemsize == 2 and name not in ("y", "dx"):
        return 2.5
    return 1.0 if np.dtype(dtype).itemsize == 8 and name == "dweight" else MARGIN


WIDER = {
    "float32": np.float64,
    "float64": np.longdouble,
    "bfloat16": np.float64,
    "float16": np.float64,
}


class Case(NamedTuple):
    name: str
    shape: tuple[int, ...]
    channels_last: bool = False
    activation: str | None = None  # in the same pass; PyTorch's is one after the other


CASES = (
    Case("NCHW 28x28", (8, 16, 28, 28)),
    Case("NHWC 28x28", (8, 16, 28, 28), channels_last=True),
    Case("NCHW 7x7", (32, 64, 7, 7)),
    Case("NHWC 7x7", (32, 64, 7, 7), channels_last=True),
    Case("NCHW 224x224", (2, 4, 224, 224)),
    Case("NC 64x20", (64, 20)),
    Case("NC 8192x32", (8192, 32)),
    # The derivative of a ReLU jumps, so that an error of z in the last place is one of dy's size.
    Case("NCHW SiLU", (8, 16, 28, 28), activation="silu"),
    Case("NHWC SiLU", (8, 16, 28, 28), channels_last=True, activation="silu"),
    Case("NCHW GELU~", (8, 16, 28, 28), activation="gelu_tanh"),
)


class Inputs(NamedTuple):
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    eps: float
    activation: str | None = None


class Results(NamedTuple):
    """The results of one training step. From `exact`, all have a row for each channel."""

    y: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray


def normal(mean, std):
    """Every channel normal with about this mean and this standard deviation."""

    def draw(rng, channels, count):
        place = mean * rng.uniform(0.9, 1.1, (channels, 1)) * rng.choice([-1, 1], (channels, 1))
        return rng.normal(place, std * rng.uniform(0.5, 2, (channels, 1)), (channels, count))

    return draw


def constant(rng, channels, count):
    return np.repeat(rng.normal(0, 100, (channels, 1)), count, axis=1)


def outlier_first(rng, channels, count):
    values = normal(1, 1)(rng, channels, count)
    values[:, 0] = 1e6
    return values


# Functions that draw values, and eps: at a scale of 1e-20 the usual eps would dominate the
# denominator, and PyTorch refuses 0.
DATA = {
    "ordinary": (normal(1, 1), 1e-5),
    "mean/std = 1e4": (normal(1e4, 1), 1e-5),
    "mean/std = 1e6": (normal(1e6, 1), 1e-5),
    "constant channels": (constant, 1e-5),
    "first value an outlier": (outlier_first, 1e-5),
    "scale 1e-20": (normal(1e-20, 1e-20), 1e-42),
    "scale 1e18": (normal(1e18, 1e18), 1e-5),
}

# For float16, whose range is 6e-8 to 65504: values are drawn this much smaller, or not at all.
SMALLER_FOR_FLOAT16 = {"mean/std = 1e6": 100, "first value an outlier": 100}
NOT_FOR_FLOAT16 = ("scale 1e-20", "scale 1e18")


def draw(kind, case, dtype, seed):
    """Inputs of one step; weight and bias are float32 at least."""
    rng = np.random.default_rng(seed)
    values, eps = DATA[kind]
    smaller = SMALLER_FOR_FLOAT16.get(kind, 1) if dtype == np.float16 else 1
    parameter = np.promote_types(dtype, np.float32)
    batch, channels, *inner = case.shape
    count = batch * math.prod(inner)

    def placed(table):
        """A table with a row for each channel, as an array of the case's shape and layout."""
        table = table.reshape((channels, batch, *inner))
        axis = -1 if case.channels_last else 1
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(table, 0, axis)).astype(dtype), axis, 1)

    return Inputs(
        x=placed(values(rng, channels, count) / smaller),
        dy=placed(rng.normal(0.25, 1, (channels, count))),
        weight=rng.uniform(0.5, 2, channels).astype(parameter),
        bias=rng.normal(size=channels).astype(parameter),
        eps=eps,
        activation=case.activation,
    )


def silu(z):
    """SiLU and its derivative."""
    sigmoid = 1 / (1 + np.exp(-z))
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


def gelu_tanh(z):
    """GELU by its approximation with tanh, and its derivative (Hendrycks and Gimpel 2016)."""
    root = 1 / np.sqrt(2 * np.arctan(z.dtype.type(1)))  # sqrt(2 / pi)
    cubic = z.dtype.type("0.044715")
    t = np.tanh(root * (z + cubic * z**3))
    return z * (1 + t) / 2, (1 + t + z * (1 - t * t) * root * (1 + 3 * cubic * z * z)) / 2


ACTIVATIONS = {None: lambda z: (z, np.ones_like(z)), "silu": silu, "gelu_tanh": gelu_tanh}


def rows(array):
    """A row for each channel, of one value for arrays of one value a channel."""
    array = np.moveaxis(array, 1, 0) if array.ndim > 1 else array
    return np.ascontiguousarray(array).reshape(len(array), -1)


def walk(terms):
    return np.sqrt(np.square(terms).sum(axis=1, keepdims=True))


def exact(inputs):
    """The results in the wider type; and for each the magnitude at which its unit is taken.

    It is the largest magnitude in the channel: of the result; for a sum (dweight, dbias), of its
    partial sums in any order, a random walk as long as the root of the sum of squares; for a mean,
    of the deviations from it; and, for float64 data only, of the change that half a unit in the
    mean makes in a result, since no wider type can hold the mean.
    """
    wider = WIDER[inputs.x.dtype.name]
    x, dy, weight, bias = (rows(array).astype(wider) for array in inputs[:4])
    n = x.shape[1]
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    centred -= centred.mean(axis=1, keepdims=True)  # the rounding error of the mean
    var = np.square(centred).mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt(var + wider(inputs.eps))
    xhat = centred * rstd
    y, slope = ACTIVATIONS[inputs.activation](xhat * weight + bias)
    dy = dy * slope
    dbias = dy.sum(axis=1, keepdims=True)
    dweight = (dy * xhat).sum(axis=1, keepdims=True)
    dx = weight * rstd * (dy - dbias / n - xhat * dweight / n)
    results = Results(y, dx, dweight, dbias, mean, var * n / (n - 1))

    far = np.abs(mean * rstd) if wider is np.longdouble else np.zeros_like(mean)
    far_dx = np.abs(weight * rstd / n) * far * np.maximum(np.abs(dweight), np.abs(xhat * dbias))
    far_dweight = np.maximum(walk(dy * xhat), far * np.abs(dbias))
    terms = (far * weight, far_dx, far_dweight, walk(dy), np.sqrt(var), var)
    scales = [
        np.maximum(np.abs(result).max(axis=1), np.abs(term).max(axis=1))
        for result, term in zip(results, terms, strict=True)
    ]
    return results, scales


def of_bnext(inputs):
    x, dy, weight, bias, eps, activation = inputs
    if x.dtype != weight.dtype:  # a layer has the dtype of its parameters
        y, saved = bnext.batch_norm_forward(x, weight, bias, eps=eps, activation=activation)
        dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
        statistics = saved.mean, saved.m2 / (saved.count - 1)
        return Results(y, dx, dweight, dbias, *(s.astype(weight.dtype) for s in statistics))
    layer = bnext.BatchNorm(x.shape[1], eps, momentum=1.0, dtype=x.dtype, activation=activation)
    layer.weight[...], layer.bias[...] = weight, bias
    y = layer(x)
    dx = layer.backward(dy)
    return Results(y, dx, layer.weight_grad, layer.bias_grad, layer.running_mean, layer.running_var)


def of_torch(inputs, device="cpu"):
    import torch

    x, dy, weight, bias = (as_tensor(array).to(device) for array in inputs[:4])
    x.requires_grad_()
    kind = torch.nn.BatchNorm1d if x.ndim == 2 else torch.nn.BatchNorm2d
    layer = kind(x.shape[1], inputs.eps, momentum=1.0, dtype=weight.dtype, device=device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    functional = torch.nn.functional
    after = {
        None: lambda z: z,
        "silu": functional.silu,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }
    y = after[inputs.activation](layer(x))
    y.backward(dy)

    gradients = (x.grad, layer.weight.grad, layer.bias.grad)
    return Results(*map(array_of, (y, *gradients, layer.running_mean, layer.running_var)))


def array_of(tensor):
    """The values of a tensor, of any device."""
    torch, tensor = import_torch(), tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return tensor.numpy()


LIBRARIES = {"bnext": of_bnext, "torch": of_torch}


def errors(results, expected, scales):
    """The largest error of each result over the channels, in units; infinite for a NaN."""
    worst = []
    for result, wanted, scale in zip(results, expected, scales, strict=True):
        unit = np.spacing(scale.astype(result.dtype)).astype(wanted.dtype)[:, None]
        off = np.abs(rows(result).astype(wanted.dtype) - wanted) / unit
        worst.append(np.where(np.isnan(off), np.inf, off).max())
    return Results(*worst)


def typical_errors(kind, case, dtype, draws, libraries):
    """The errors of each library with results, as means over several draws of the data."""
    found = {name: [] for name in libraries}
    for seed in range(draws):
        inputs = draw(kind, case, dtype, seed)
        expected, scales = exact(inputs)
        for name, results_of in libraries.items():
            if (results := results_of(inputs)) is not None:
                found[name].append(errors(results, expected, scales))
    return {name: Results(*np.mean(each, axis=0)) for name, each in found.items() if each}


def collect(dtypes, draws, libraries, cases=CASES):
    """A dictionary for each kind of data, dtype and case, in types of JSON.

    `libraries` maps names to functions of Inputs that return Results, or None if the library lacks
    the case. "worse" lists the results in which bnext's error exceeds PyTorch's by more than the
    margin.
    """
    for kind in DATA:
        for dtype in map(dtype_of, dtypes):
            if dtype == np.float16 and kind in NOT_FOR_FLOAT16:
                continue
            for case in cases:
                found = typical_errors(kind, case, dtype, draws, libraries)
                theirs = found.get("torch", found["bnext"])
                worse = [
                    name
                    for name, a, b in zip(Results._fields, found["bnext"], theirs, strict=True)
                    if a > b + margin(dtype, name)
                ]
                yield {
                    "kind": kind,
                    "dtype": dtype.name,
                    "case": case.name,
                    "errors": {name: tuple(map(float, each)) for name, each in found.items()},
                    "worse": worse,
                }


def dtypes_here():
    """The dtypes that can be compared, and why the others cannot."""
    accepted, refused = [], {}
    for name, wider in WIDER.items():
        if name == "float64" and np.finfo(wider).nmant <= np.finfo(np.float64).nmant:
            refused[name] = "long double is no wider here"
            continue
        try:
            bnext.batch_norm_forward(np.zeros((2, 1), dtype_of(name)))
            accepted.append(name)
        except (TypeError, ImportError) as error:
            refused[name] = str(error)
    return accepted, refused


def text(value):
    if value > 1e9:  # of zeros, for instance, whose unit is the smallest number
        return ">1e9"
    return f"{value:.2f}" if value < 1000 else f"{value:.0e}"


def compare(dtypes, draws):
    """Print the table; return how many comparisons there were, and the losses among them."""
    compared, losses, heading = 0, [], None
    names = "".join(f"{name:>17}" for name in Results._fields)
    for row in collect(dtypes, draws, LIBRARIES):
        if heading != (row["kind"], row["dtype"]):
            heading = row["kind"], row["dtype"]
            print(f"\n{', '.join(heading)}\n{'':14}{names}")
        cells = []
        pairs = zip(row["errors"]["bnext"], row["errors"]["torch"], strict=True)
        for name, (ours, theirs) in zip(Results._fields, pairs, strict=True):
            worse = name in row["worse"]
            cells.append(f"{text(ours)}{'!' if worse else ' '}/{text(theirs):>7}")
            if worse:
                losses.append(
                    f"{', '.join(heading)}, {row['case']}, {name}: "
                    f"{ours:.3g} where PyTorch has {theirs:.3g}"
                )
        compared += len(cells)
        print(f"  {row['case']:12}{''.join(f'{cell:>17}' for cell in cells)}")
    return compared, losses


@ends_well("accuracy.py")
def main(arguments=None):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=at_least(1), default=10,
                        help="of the data of each row (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    torch = import_torch()
    if torch is None:
        print("accuracy.py: needs PyTorch to compare with", file=sys.stderr)
        return 2
    dtypes, refused = dtypes_here()
    for name, reason in refused.items():
        print(f"{name} is left out: {reason}")
    print(
        f"bnext {bnext.__version__} / PyTorch {torch.__version__}: largest error of all channels,\n"
        f"in units in the last place, mean of {options.draws} draws of the data; "
        f"! where bnext's is larger by more than {MARGIN}"
    )
    compared, losses = compare(dtypes, options.draws)
    print()
    for loss in losses:
        print(f"worse: {loss}")
    if losses:
        print(f"Verdict: bnext is worse than PyTorch in {len(losses)} of {compared} comparisons.")
        return 1
    print(f"Verdict: bnext is no worse than PyTorch in any of {compared} comparisons.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
