"""The cases of the benchmark: shapes with a memory layout, and data drawn for them."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EPS = 1e-5

# A misaligned array begins this many bytes, or one element, after a multiple of ALIGNMENT.
OFFSET = 4
ALIGNMENT = 64


def dtype_of(name: str) -> np.dtype[Any]:
    """Find the dtype of this name; NumPy has bfloat16 from the package ml_dtypes."""
    if name == "bfloat16":
        importlib.import_module("ml_dtypes")
    return np.dtype(name)


@dataclass(frozen=True)
class Case:
    """A problem with its channels at axis 1.

    With `channels_last` the channels are contiguous in memory (NHWC), and the array is a transposed
    view with the shape NCHW. Arrays that are not `aligned` begin a few bytes after the beginning of
    a cache line.
    """

    name: str
    shape: tuple[int, ...]
    channels_last: bool = False
    dtype: str = "float32"
    aligned: bool = True

    @property
    def nbytes(self) -> int:
        """Size of one array."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    @property
    def parameter_dtype(self) -> np.dtype[Any]:
        """The dtype of weight, bias and statistics: at least float32."""
        return np.promote_types(dtype_of(self.dtype), np.float32)

    def in_memory_order(self, array: Array) -> Array:
        """View `array` with its axes in the order of memory, the slowest first."""
        return np.moveaxis(array, 1, -1) if self.channels_last else array

    def empty(self, dtype: np.dtype[Any] | None = None) -> Array:
        """Allocate an array in the memory order of the case, of its dtype or another."""
        dtype = dtype or dtype_of(self.dtype)
        n, c, *inner = self.shape
        shape = (n, *inner, c) if self.channels_last else self.shape
        if self.aligned:
            array: Array = np.empty(shape, dtype)
        else:
            nbytes = math.prod(shape) * dtype.itemsize
            raw = np.empty(nbytes + 2 * ALIGNMENT, np.uint8)
            begin = -raw.ctypes.data % ALIGNMENT + max(OFFSET, dtype.itemsize)
            array = raw[begin : begin + nbytes].view(dtype).reshape(shape)
        return np.moveaxis(array, -1, 1) if self.channels_last else array


@dataclass(frozen=True)
class Data:
    """The arrays of one case. All libraries read the same arrays, and write to the same `out`."""

    case: Case
    x: Array
    dy: Array
    out: Array
    weight: Array
    bias: Array
    mean: Array
    var: Array


def draw(case: Case, seed: int = 0) -> Data:
    """Draw the data of `case`: uniform, with a minimum and a width for each channel.

    Pages of `out` are mapped; inference normalizes by `mean` and `var`.
    """
    rng = np.random.default_rng(seed)
    channels = case.shape[1]
    column = (channels,) + (1,) * (len(case.shape) - 2)
    parameter = case.parameter_dtype
    low = rng.normal(size=channels).astype(parameter)
    width = rng.uniform(1, 4, channels).astype(parameter)

    def uniform(width: Array, low: Array) -> Array:
        values = case.empty()
        # The generator has no 16-bit types.
        wide = values if values.dtype == parameter else case.empty(parameter)
        rng.random(dtype=parameter.type, out=case.in_memory_order(wide))
        wide *= width
        wide += low
        if wide is not values:
            values[...] = wide
        return values

    out = case.empty()
    out[...] = 0
    return Data(
        case=case,
        x=uniform(width.reshape(column), low.reshape(column)),
        dy=uniform(np.ones((), parameter), np.asarray(-0.4, parameter)),
        out=out,
        weight=rng.uniform(0.5, 1.5, channels).astype(parameter),
        bias=rng.normal(size=channels).astype(parameter),
        mean=low + width / 2,
        var=np.square(width) / 12,
    )


PLANES_56 = Case("planes of 56x56", (32, 256, 56, 56))
ROWS_256 = Case("rows of 256", (32 * 56 * 56, 256))
ROWS_4096 = Case("rows of 4096", (8192, 4096))

CASES = (
    PLANES_56,
    Case("planes of 56x56, channels last", (32, 256, 56, 56), channels_last=True),
    Case("planes of 7x7", (32, 2048, 7, 7)),
    ROWS_256,
    ROWS_4096,
    Case("rows of 20", (64, 20)),
)

QUICK_CASES = (
    Case("planes of 28x28", (8, 64, 28, 28)),
    Case("planes of 28x28, channels last", (8, 64, 28, 28), channels_last=True),
    Case("rows of 256", (2048, 256)),
    Case("rows of 20", (64, 20)),
)
