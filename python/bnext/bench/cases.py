"""What is measured: shapes with a memory layout, and data drawn for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A float32 problem with its channels at axis 1.

    `channels_last` says how an image lies in memory: its channels are then contiguous (NHWC), and
    the array is a transposed view with the shape NCHW.
    """

    name: str
    shape: tuple[int, ...]
    channels_last: bool = False

    def in_memory_order(self, array: Array) -> Array:
        """View `array` with its axes as they lie in memory, the slowest first."""
        return np.moveaxis(array, 1, -1) if self.channels_last else array

    def empty(self) -> Array:
        """Allocate an array that lies in memory as the case says."""
        if not self.channels_last:
            return np.empty(self.shape, np.float32)
        n, c, *inner = self.shape
        return np.moveaxis(np.empty((n, *inner, c), np.float32), -1, 1)


@dataclass(frozen=True)
class Data:
    """The arrays of one case. All libraries read the same ones, and write to the same `out`."""

    case: Case
    x: Array
    dy: Array
    out: Array
    weight: Array
    bias: Array
    mean: Array
    var: Array


def draw(case: Case, seed: int = 0) -> Data:
    """Draw the data of `case`: uniform, with a place and a width that differ by channel.

    Parameters
    ----------
    case : Case
        The shape and the layout.
    seed : int
        Of the random numbers.

    Returns
    -------
    Data
        Pages of `out` are mapped; `mean` and `var` are what inference normalizes with.
    """
    rng = np.random.default_rng(seed)
    channels = case.shape[1]
    column = (channels,) + (1,) * (len(case.shape) - 2)
    low = rng.normal(size=channels).astype(np.float32)
    width = rng.uniform(1, 4, channels).astype(np.float32)

    def uniform() -> Array:
        values = case.empty()
        rng.random(dtype=np.float32, out=case.in_memory_order(values))
        return values

    x, dy, out = uniform(), uniform(), case.empty()
    x *= width.reshape(column)
    x += low.reshape(column)
    dy -= np.float32(0.4)
    out[...] = 0
    return Data(
        case=case,
        x=x,
        dy=dy,
        out=out,
        weight=rng.uniform(0.5, 1.5, channels).astype(np.float32),
        bias=rng.normal(size=channels).astype(np.float32),
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
