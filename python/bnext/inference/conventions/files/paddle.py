"""Paddle's .pdparams files: pickles, of which only arrays and plain containers are read.

A pickle is a program. This reader knows the few functions that make NumPy's arrays, and refuses a
file that names another before it is called.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from bnext.inference.conventions.files.contents import Contents

__all__ = ["read_pdparams"]

Names = frozenset[tuple[str, str]]

CORES = ("numpy.core", "numpy._core")  # before NumPy 2, and since
FOR_ARRAYS: Names = frozenset(
    {("numpy", "ndarray"), ("numpy", "dtype")}
    | {(f"{core}.multiarray", name) for core in CORES for name in ("_reconstruct", "scalar")}
    | {(f"{core}.numeric", "_frombuffer") for core in CORES}
)


def _bytes(text: str, encoding: str) -> bytes:
    """Make bytes as old pickles do, which have text alone."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


OTHERS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _bytes,
    ("builtins", "tuple"): tuple, ("__builtin__", "tuple"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
}  # fmt: skip


WRONG = (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)


class _Arrays(pickle.Unpickler):
    """An unpickler of NumPy's arrays, tuples, lists and dicts."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in OTHERS:
            return OTHERS[module, name]
        if (module, name) in FOR_ARRAYS:
            if not hasattr(np, "_core"):  # NumPy 1
                module = module.replace("numpy._core", "numpy.core")
            else:
                module = module.replace("numpy.core", "numpy._core")
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the name {module}.{name}, which is no array")


def read_pdparams(path: Path) -> Contents:
    """Read a .pdparams file."""
    try:
        with path.open("rb") as file:
            state = _Arrays(file).load()
    except WRONG as error:
        raise ValueError(
            f"{path}: expected a pickle of arrays and containers alone, got {error}"
        ) from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a dict of arrays, got a {type(state).__name__}")
    arrays = {}
    for name, value in state.items():
        if isinstance(value, tuple) and len(value) == 2:  # a tensor with its own name
            value = value[1]
        if isinstance(value, np.ndarray) and value.dtype != object:
            arrays[str(name)] = value
    return Contents(arrays, ("paddle",), writer="PaddlePaddle")
