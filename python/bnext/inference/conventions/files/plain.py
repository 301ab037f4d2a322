"""NumPy's .npz and .safetensors: read and written without another package.

A .safetensors file is the length of its header (64 bits, little-endian), the header (JSON: dtype,
shape and place of every array by its name), and the arrays.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.inference.conventions.files.contents import Contents, library

__all__ = ["npz_bytes", "read_npz", "read_safetensors", "safetensors_bytes"]

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
METADATA = "__metadata__"


def read_npz(path: Path) -> Contents:
    """Read an .npz file, without pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array")
            return Contents({name: file[name] for name in file.files})
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: expected an .npz file of plain arrays, got {error}") from None


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Make an .npz file."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_safetensors(path: Path) -> Contents:
    """Read a .safetensors file; arrays stay in the file until they are used."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise _broken(path, "a header longer than the file")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise _broken(path, "a header that is no JSON") from None
    if not isinstance(header, dict):
        raise _broken(path, "a header that is no object")
    whole: npt.NDArray[Any] = np.empty(0, np.uint8)
    if size > 8 + length:
        whole = np.memmap(path, np.uint8, "r", offset=8 + length)
    arrays = {}
    for name, entry in header.items():
        if name == METADATA:
            continue
        try:
            dtype, shape = _dtype(entry["dtype"]), tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _broken(path, f"a wrong entry for {name}") from None
        if dtype is None:
            continue  # of a type that no statistics have
        right = 0 <= begin <= end <= whole.size and all(n >= 0 for n in shape)
        if not right or end - begin != math.prod(shape) * dtype.itemsize:
            raise _broken(path, f"{name} outside of the file")
        arrays[name] = whole[begin:end].view(dtype).reshape(shape)
    return Contents(arrays)


def safetensors_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Make a .safetensors file."""
    codes = {np.dtype(code): name for name, code in DTYPES.items()}
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    place = 0
    # Large elements first, so that every array is aligned.
    for name in sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize):
        array = arrays[name]
        if array.dtype not in codes:
            raise TypeError(f"{name}: expected a dtype of .safetensors, got {array.dtype}")
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": codes[array.dtype], "shape": list(array.shape),
            "data_offsets": [place, place + len(data)],
        }  # fmt: skip
        place += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def _dtype(name: str) -> np.dtype[Any] | None:
    if name == "BF16":
        wide: np.dtype[Any] = np.dtype(library("ml_dtypes", "bfloat16 arrays").bfloat16)
        return wide
    return np.dtype(DTYPES[name]) if name in DTYPES else None


def _broken(path: Path, got: str) -> ValueError:
    return ValueError(f"{path}: expected a .safetensors file, got {got}")
