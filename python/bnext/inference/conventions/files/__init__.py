"""Checkpoints: arrays by name from the files of several libraries.

contents    what a reader gives
plain       .npz, .safetensors
torch, keras, flax, onnx, mxnet, paddle    the libraries' own formats
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bnext.inference.conventions.files.contents import Contents, Facts
from bnext.inference.conventions.files.flax import read_msgpack, read_orbax
from bnext.inference.conventions.files.keras import read_h5, read_keras
from bnext.inference.conventions.files.mxnet import read_params
from bnext.inference.conventions.files.onnx import read_onnx
from bnext.inference.conventions.files.paddle import read_pdparams
from bnext.inference.conventions.files.plain import (
    npz_bytes,
    read_npz,
    read_safetensors,
    safetensors_bytes,
)
from bnext.inference.conventions.files.torch import read_state_dict

__all__ = ["FORMATS", "WRITERS", "Contents", "Facts", "read"]

FORMATS: dict[str, Callable[[Path], Contents]] = {
    "npz": read_npz, "safetensors": read_safetensors, "torch": read_state_dict,
    "keras": read_keras, "h5": read_h5, "msgpack": read_msgpack, "orbax": read_orbax,
    "onnx": read_onnx, "mxnet": read_params, "paddle": read_pdparams,
}  # fmt: skip
SUFFIXES = {
    ".npz": "npz", ".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch",
    ".keras": "keras", ".h5": "h5", ".hdf5": "h5", ".msgpack": "msgpack", ".onnx": "onnx",
    ".params": "mxnet", ".pdparams": "paddle",
}  # fmt: skip
WRITERS = {".npz": npz_bytes, ".safetensors": safetensors_bytes}


def read(path: str | os.PathLike[str], format: str | None = None) -> Contents:
    """Read a file by its format; without one, by its suffix. A folder is Orbax'."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if format is None:
        format = "orbax" if path.is_dir() else SUFFIXES.get(path.suffix.lower())
    if format not in FORMATS:
        expected = ", ".join(map(repr, FORMATS))
        got = f"the suffix {path.suffix!r}" if format is None else repr(format)
        raise ValueError(f"format: expected one of {expected}, got {got}")
    return FORMATS[format](path)
