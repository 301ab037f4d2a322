"""Whose an array is.

PyTorch and CuPy are asked in their own words, since they say more than the array API standard has:
strides, streams, memory orders, and what is lazy or watched. Others are asked in the standard's.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.arrays.library import CPU, Library, View, Where, in_elements
from bnext.arrays.pytorch import Torch

__all__ = ["Library", "View", "Where", "library_of", "to_numpy"]


class CuPy(Library):
    """CuPy."""

    def __init__(self, cupy: Any) -> None:
        super().__init__("cupy", cupy)

    def where(self, array: Any) -> Where:
        return Where("cuda", int(array.device.id))

    def view(self, array: Any, name: str) -> View:
        item = array.dtype.itemsize
        strides = in_elements(array.strides, item, name)
        return View(array, array.data.ptr, array.shape, strides, array.dtype.name)

    def stream(self, view: View, index: int) -> int:
        with self.xp.cuda.Device(index):
            return int(self.xp.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        with like.device:
            return self.xp.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        with like.device:
            return self.xp.zeros(shape, dtype)

    def empty_like(self, array: Any) -> Any:
        with array.device:
            return self.xp.empty_like(array)

    def copy_into(self, target: Any, source: Any) -> None:
        with target.device:
            target[...] = source

    def converted(self, array: Any, dtype: str) -> Any:
        with array.device:
            return array.astype(dtype)

    def blend(self, target: Any, momentum: float, values: Any, divisor: int) -> None:
        with target.device:
            super().blend(target, momentum, values, divisor)

    def from_numpy(self, values: npt.NDArray[Any], like: Any) -> Any:
        with like.device:
            return self.xp.array(values)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        with array.device:  # whose current stream it is that is waited for
            host: npt.NDArray[Any] = array.get()
        return host


class Jax(Library):
    """JAX, whose arrays cannot be written, and which waits for no stream but its own."""

    immutable = True

    def where(self, array: Any) -> Where:
        # What has no memory, or has it in several places, is refused where that is asked for: a
        # tracer, a deleted array, a sharded one.
        try:
            return super().where(array) if hasattr(array, "__dlpack_device__") else CPU
        except Exception:
            return CPU

    def readable(self, array: Any, name: str) -> Any:
        if isinstance(array, sys.modules["jax"].core.Tracer):  # which knows nothing of all this
            return array
        if array.is_deleted():
            raise TypeError(
                f"{name}: expected an array that holds values, got one that was deleted (JAX "
                "deletes what is donated to a compiled function)"
            )
        devices = len(array.sharding.device_set)
        if devices > 1:
            raise TypeError(
                f"{name}: expected an array on one device, got one on {devices} (pass one shard of "
                "it, or what jax.device_get makes of it)"
            )
        return array

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        try:
            return np.array(array)
        except RuntimeError as error:  # it was deleted
            raise TypeError(f"array: expected one that holds values, got: {error}") from error

    def adopt(self, array: Any, name: str) -> npt.NDArray[Any]:
        try:
            return super().adopt(array, name)
        except TypeError:
            if _core.is_tracer(array):
                _core.refuse_tracer(array, name)
            raise


_KNOWN: dict[type, Library | None] = {}
_TORCH_AND_CUPY: dict[str, Library] = {}
_FINDING = threading.Lock()  # threads that bring a library's first arrays at once get one object


def library_of(array: Any) -> Library | None:
    """Whose the array is; None for NumPy's, and for what only NumPy can make an array of."""
    kind = type(array)
    try:
        return _KNOWN[kind]
    except KeyError:
        with _FINDING:
            if kind not in _KNOWN:
                _KNOWN[kind] = _found(array)
        return _KNOWN[kind]


_core.find_libraries_by(library_of)


def _found(array: Any) -> Library | None:
    if isinstance(array, np.ndarray | np.generic):
        return None
    for name, member, make in (("torch", "Tensor", Torch), ("cupy", "ndarray", CuPy)):
        module = sys.modules.get(name)
        if module is not None and isinstance(array, getattr(module, member, ())):
            return _TORCH_AND_CUPY.setdefault(name, make(module))
    if not hasattr(array, "__dlpack__") and not hasattr(array, "__cuda_array_interface__"):
        return None
    namespace = _namespace_of(array)
    name = getattr(namespace, "__name__", type(array).__module__).partition(".")[0]
    for library in _KNOWN.values():  # another type of the same library
        if library is not None and library.xp is namespace and library.name == name:
            return library
    return (Jax if name == "jax" else Library)(name, namespace)


def _namespace_of(array: Any) -> Any:
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    try:
        return importlib.import_module("array_api_compat").array_namespace(array)
    except ImportError:
        return None
    except TypeError:  # it does not know the library
        return None


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """Copy any array to one of NumPy, from wherever it lies."""
    library = library_of(value)
    return np.array(value) if library is None else library.to_numpy(value)
