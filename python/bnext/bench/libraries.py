"""The same operations by each library, on the same arrays.

Each `*_calls` function maps (operation, pages) to a call. Pages are "warm" where the output goes to
mapped memory, and "fresh" where the library allocates it, as by default. PyTorch is imported here,
on demand, and nowhere else in the benchmark.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

import bnext
from bnext.bench.cases import EPS, Array, Data
from bnext.bench.timing import Call
from bnext.bench.traffic import Operation

Pages = Literal["warm", "fresh"]
Calls = dict[tuple[Operation, Pages], Call]
Prepare = Callable[[Data], Calls]

# Room for arrays that calls with warm pages allocate nevertheless, in sizes of `x`: PyTorch's
# backward has two at a time (`recycled_pages` says why they need twice as much).
ROOM: dict[Operation, int] = {"backward": 4}


def bnext_calls(data: Data) -> Calls:
    """Prepare the calls of this package."""
    x, dy, out, weight, bias = data.x, data.dy, data.out, data.weight, data.bias
    saved = bnext.batch_norm_forward(x, weight, bias, eps=EPS, out=out)[1]
    given = (x, data.mean, data.var, weight, bias)
    return {
        ("forward", "warm"): lambda: bnext.batch_norm_forward(x, weight, bias, eps=EPS, out=out),
        ("forward", "fresh"): lambda: bnext.batch_norm_forward(x, weight, bias, eps=EPS),
        ("backward", "warm"): lambda: bnext.batch_norm_backward(dy, x, saved, weight, out=out),
        ("backward", "fresh"): lambda: bnext.batch_norm_backward(dy, x, saved, weight),
        ("inference", "warm"): lambda: bnext.normalize(*given, eps=EPS, out=out),
        ("inference", "fresh"): lambda: bnext.normalize(*given, eps=EPS),
    }


def numpy_calls(data: Data) -> Calls:
    """Prepare the usual expressions in NumPy; each makes fresh arrays.

    16-bit data is converted to float32 and back.
    """
    dtype, wide = data.x.dtype, data.weight.dtype
    axes = (0, *range(2, data.x.ndim))
    column = (-1,) + (1,) * (data.x.ndim - 2)
    weight, bias = data.weight.reshape(column), data.bias.reshape(column)
    eps = wide.type(EPS)

    def normalize(x: Array, mean: Array, var: Array) -> Array:
        result: Array = (x - mean) / np.sqrt(var + eps) * weight + bias
        return result.astype(dtype, copy=False)

    def forward() -> Array:
        x = data.x.astype(wide, copy=False)
        return normalize(x, x.mean(axes, keepdims=True), x.var(axes, keepdims=True))

    def backward() -> tuple[Array, Array, Array]:
        x, dy = data.x.astype(wide, copy=False), data.dy.astype(wide, copy=False)
        xhat = (x - mean) * rstd
        dbias = dy.sum(axes, keepdims=True)
        dweight = (dy * xhat).sum(axes, keepdims=True)
        dx = weight * rstd * (dy - dbias / n - xhat * dweight / n)
        return dx.astype(dtype, copy=False), dweight.ravel(), dbias.ravel()

    def inference() -> Array:
        return normalize(data.x.astype(wide, copy=False), *given)

    given = data.mean.reshape(column), data.var.reshape(column)
    x = data.x.astype(wide, copy=False)
    mean = x.mean(axes, keepdims=True)
    rstd = 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    n = x.size // x.shape[1]
    del x
    return {
        ("forward", "fresh"): forward,
        ("backward", "fresh"): backward,
        ("inference", "fresh"): inference,
    }


def import_torch() -> Any:
    """Import PyTorch, or return None if it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def as_tensor(array: Array) -> Any:
    """View an array as a tensor on the same memory; bfloat16 crosses as another type's bits."""
    torch = import_torch()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch_calls(data: Data) -> Calls:
    """Prepare PyTorch's operators on the CPU, without autograd.

    Its backward operator cannot write to given memory: the `out` variant allocates, and copies in
    the end, which would count against it. The "warm" call is therefore the ordinary one, and needs
    `bnext.bench.heap.recycled_pages` to be warm.
    """
    torch = import_torch()
    aten, batch_norm = torch.ops.aten, torch.nn.functional.batch_norm
    x, dy, out = map(as_tensor, (data.x, data.dy, data.out))
    weight, bias = as_tensor(data.weight), as_tensor(data.bias)
    mean, var = as_tensor(data.mean), as_tensor(data.var)
    _, save_mean, save_rstd = aten.native_batch_norm(x, weight, bias, None, None, True, 0.1, EPS)
    scratch = {"save_mean": torch.empty_like(mean), "save_invstd": torch.empty_like(var)}

    def into_out(training: bool) -> Call:
        running = (None, None) if training else (mean, var)
        arguments = (x, weight, bias, *running, training, 0.1, EPS)
        return lambda: aten.native_batch_norm.out(*arguments, out=out, **scratch)

    def backward() -> Any:
        return aten.native_batch_norm_backward(
            dy, x, weight, None, None, save_mean, save_rstd, True, EPS, [True, True, True]
        )

    return {
        ("forward", "warm"): into_out(training=True),
        ("forward", "fresh"): lambda: batch_norm(x, None, None, weight, bias, True, 0.1, EPS),
        ("backward", "warm"): backward,
        ("backward", "fresh"): backward,
        ("inference", "warm"): into_out(training=False),
        ("inference", "fresh"): lambda: batch_norm(x, mean, var, weight, bias, False, 0.1, EPS),
    }


class Copier:
    """A copy of `x` to `out` with the same number of threads: the speed of memory.

    NumPy copies with one thread and without the interpreter's lock, so a pool of threads copies
    pieces. Pieces below a mebibyte would cost more than they gain.
    """

    SMALLEST_PIECE = 1 << 20

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def calls(self, data: Data) -> dict[str, Call]:
        """Return calls that copy, by name; the fastest one counts."""
        source, target = (
            data.case.in_memory_order(array).reshape(-1) for array in (data.x, data.out)
        )
        pieces = max(1, min(self._threads, source.nbytes // self.SMALLEST_PIECE))
        if pieces == 1:
            return {"copy": lambda: np.copyto(target, source)}
        targets, sources = np.array_split(target, pieces), np.array_split(source, pieces)
        return {"copy": lambda: [*self._pool.map(np.copyto, targets, sources)]}


LIBRARIES: dict[str, Prepare] = {
    "bnext": bnext_calls,
    "torch": torch_calls,
    "numpy": numpy_calls,
}


def installed() -> dict[str, Prepare]:
    """Give the libraries that can be measured here."""
    missing = ("torch",) if import_torch() is None else ()
    return {name: prepare for name, prepare in LIBRARIES.items() if name not in missing}
