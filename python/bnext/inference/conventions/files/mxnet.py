"""MXNet's .params files: a list of arrays and their names, read without MXNet.

All numbers are little-endian. The file has: the magic number 0x112 and a reserved number (64 bits
each), the number of arrays (64), the arrays, the number of names (64), and each name with its
length (64). An array has: the magic number of its version (32), the kind of its storage (32, 0 is
dense), the number of axes (32), their extents (64 each), the kind and the number of its device (32
each), its type (32), its elements.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.inference.conventions.files.contents import Contents

__all__ = ["read_params"]

LIST = 0x112
VERSIONS = (0xF993FAC9, 0xF993FACA)  # 2, and 3 with shapes as NumPy has them
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?")
MOST_AXES = 32


def read_params(path: Path) -> Contents:
    """Read a .params file."""
    file = _File(path)
    if file.number(8) != LIST:
        raise ValueError(f"{path}: expected a .params file of MXNet, got another")
    file.number(8)
    arrays = [file.array() for _ in range(file.count())]
    names = [file.name() for _ in range(file.count())]
    if len(names) != len(arrays):
        raise ValueError(f"{path}: expected a name for each of {len(arrays)} arrays")
    return Contents(
        {name: array for name, array in zip(names, arrays, strict=True) if array is not None},
        ("mxnet", "mxnet-symbol"), writer="MXNet",
    )  # fmt: skip


class _File:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, path.read_bytes(), 0

    def take(self, size: int) -> bytes:
        end = self.place + size
        if not self.place <= end <= len(self.data):
            raise ValueError(f"{self.path}: expected {size} more bytes, got the end of the file")
        self.place = end
        return self.data[end - size : end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self) -> int:
        count = self.number(8)
        if count > len(self.data):
            raise ValueError(f"{self.path}: expected a file of MXNet, got a count of {count}")
        return count

    def name(self) -> str:
        return self.take(self.count()).decode("utf-8", "replace")

    def array(self) -> npt.NDArray[Any] | None:
        version = self.number(4)
        kind = self.number(4)
        if version not in VERSIONS or kind != 0:
            raise ValueError(
                f"{self.path}: expected dense arrays of version 2 or 3, got version {version:#x} "
                f"and kind {kind} (save them again with MXNet 1.9)"
            )
        axes = self.number(4)
        if axes > MOST_AXES:
            raise ValueError(f"{self.path}: expected an array, got one of {axes} axes")
        shape = [self.number(8) for _ in range(axes)]
        if version == VERSIONS[0] and axes == 0:
            return None  # an array that was never given a shape
        self.take(8)  # the device
        code = self.number(4)
        if code >= len(DTYPES):
            raise ValueError(f"{self.path}: expected an array of numbers, got type {code}")
        dtype = np.dtype(DTYPES[code])
        data = self.take(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)
