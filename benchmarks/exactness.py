"""Accuracy beside speed: the errors of bnext, PyTorch and oneDNN, by the rules of accuracy.py."""

import numpy as np

from benchmarks import accuracy
from benchmarks.onednn import Layer, own_format
from benchmarks.shared_libraries import UnavailableError
from bnext.bench import cases
from bnext.bench.libraries import import_torch

DRAWS = 4
# One of each layout and size; accuracy.py has more.
CASES = tuple(c for c in accuracy.CASES if c.name in ("NCHW 28x28", "NHWC 28x28", "NC 8192x32"))


def of_onednn(inputs):
    """One training step by oneDNN, on the arrays in place; None where it lacks the dtype."""
    x, dy, weight, bias, eps = inputs[:5]
    if eps != cases.EPS:
        return None
    last = x.ndim > 2 and x.strides[1] == x.itemsize
    case = cases.Case("accuracy", x.shape, last, x.dtype.name)
    channels = x.shape[1]
    given = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    data = cases.Data(case, x, dy, case.empty(), weight, bias, *given)
    try:
        layer = Layer(data, own_format(case))
    except UnavailableError:
        return None
    layer.call("forward", "warm")()
    y = layer.output().copy(order="K")
    layer.call("backward", "warm")()
    dx = layer.output().copy(order="K")
    n = x.size // channels
    running = layer.mean, layer.var * np.float32(n / (n - 1))
    return accuracy.Results(y, dx, layer.dweight, layer.dbias, *running)


def measure(dtypes=None, draws=DRAWS):
    """The rows of the accuracy tables, and a note for each omitted dtype."""
    libraries = {"bnext": accuracy.of_bnext, "onednn": of_onednn}
    if import_torch() is not None:
        libraries["torch"] = accuracy.of_torch
    here, refused = accuracy.dtypes_here()
    wanted = [name for name in here if dtypes is None or name in dtypes]
    rows = list(accuracy.collect(wanted, draws, libraries, CASES))
    skipped = [{"dtype": name, "reason": reason} for name, reason in refused.items()]
    return rows, skipped
