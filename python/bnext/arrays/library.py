"""Where an array lies, and what its library is asked for, by the array API standard.

Memory comes by DLPack or by `__cuda_array_interface__`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext import _core

__all__ = ["CPU", "Library", "View", "Where", "capsule_of", "in_elements"]

LEGACY_STREAM = 1  # CUDA's default stream, as DLPack and __cuda_array_interface__ number it


class Where(NamedTuple):
    """The memory of an array: "cpu", "cuda" or what else errors call it, and the number of it."""

    kind: str
    index: int = 0  # type: ignore[assignment]  # tuple has a method of that name

    def __str__(self) -> str:
        if self.kind == "cpu":
            return "the CPU"
        if self.kind == "cuda":
            return f"cuda:{self.index}" if self.index >= 0 else "a CUDA device"
        return self.kind


CPU = Where("cpu")


class View(NamedTuple):
    """An array on a GPU as kernels see it; strides are in elements."""

    array: Any
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    read_only: bool = False
    stream: int | None = None  # that its values are made on, if the array says so
    keep: Any = None  # what keeps the memory, besides the array


class Library:
    """What is asked of a library, by the array API standard."""

    immutable = False  # whether its arrays can never be written
    plain_of: Any = None  # torch, whose plain tensors are read by DLPack's table of C functions
    # Address of a C function without arguments that says whether a profiler records what the
    # library allocates; 0 without any.
    memory_is_profiled: int = 0

    def __init__(self, name: str, namespace: Any) -> None:
        self.name = name
        self.xp = namespace

    def where(self, array: Any) -> Where:
        """Say where the array lies; index -1 if it does not say on which GPU."""
        if not hasattr(array, "__dlpack_device__"):
            return Where("cuda", -1)
        kind, index = (int(number) for number in array.__dlpack_device__())
        text = _core.device_name(kind, index)
        if text == str(CPU):
            return CPU
        return Where("cuda", index) if text.startswith("cuda:") else Where(text)

    def readable(self, array: Any, name: str) -> Any:
        """Return the array or its values, if these may be read behind its library's back."""
        return array

    def check_writable(self, array: Any, name: str) -> None:
        """TypeError unless the array may be written behind its library's back."""
        if self.immutable:
            raise TypeError(
                f"{name}: expected an array that can be written, got one of {self.name}"
            )

    def count_writes(self, arrays: tuple[Any, ...]) -> None:
        """Let the library know that the arrays have been written."""

    # --- on the CPU -------------------------------------------------------------------------------

    def adopt(self, array: Any, name: str) -> npt.NDArray[Any]:
        """Make a NumPy array on the same memory."""
        return _core.from_dlpack(capsule_of(self.readable(array, name), name), name)

    def wrap(self, array: npt.NDArray[Any]) -> Any:
        """Make an array of a NumPy array, on the same memory if the library can."""
        from_dlpack = getattr(self.xp, "from_dlpack", None)
        return array if from_dlpack is None else from_dlpack(_core.Exported(array))

    # --- on a GPU ---------------------------------------------------------------------------------

    def view(self, array: Any, name: str) -> View:
        """See the array as kernels do."""
        if hasattr(array, "__dlpack__"):
            capsule = capsule_of(array, name, stream=LEGACY_STREAM)
            address, shape, strides, dtype, _, _, read_only, keep = _core.describe_dlpack(
                capsule, name
            )
            return View(array, address, shape, strides, dtype, read_only, LEGACY_STREAM, keep)
        return _interface_view(array, name)

    def stream(self, view: View, index: int) -> int:
        """Find the stream on which work on the array is to be put."""
        return LEGACY_STREAM if view.stream is None else view.stream

    def _namespace(self) -> Any:
        if self.xp is None:
            raise RuntimeError(
                f"x: got an array of {self.name}, and nothing to make results with: expected one "
                "of PyTorch, CuPy, or of a library whose arrays have __array_namespace__, or that "
                "array-api-compat knows (pip install 'bnext[arrays]')"
            )
        return self.xp

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Make an array in C order, not initialised, where `like` is."""
        xp = self._namespace()
        return xp.empty(shape, dtype=getattr(xp, dtype), device=like.device)

    def zeros(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Make an array of zeros in C order, where `like` is."""
        xp = self._namespace()
        return xp.zeros(shape, dtype=getattr(xp, dtype), device=like.device)

    def empty_like(self, array: Any) -> Any:
        """Make an array in the memory order of `array`, as far as the library keeps it."""
        return self._namespace().empty_like(array)

    def copy_into(self, target: Any, source: Any) -> None:
        """Copy values from one array to the other."""
        target[...] = source

    def copied(self, array: Any) -> Any:
        """Copy, in the same memory order."""
        copy = self.empty_like(array)
        self.copy_into(copy, array)
        return copy

    def converted(self, array: Any, dtype: str) -> Any:
        """Copy to another dtype."""
        xp = self._namespace()
        return xp.astype(array, getattr(xp, dtype))

    def mean_of_first(self, array: Any) -> Any:
        """Give the means along the first axis."""
        return self._namespace().mean(array, axis=0)

    def blend(self, target: Any, momentum: float, values: Any, divisor: int) -> None:
        """Make `target` ``(1 - momentum) * target + momentum * (values / divisor)``.

        `values` are float64, and so is the arithmetic; the result is rounded once.
        """
        moved = self.converted(target, "float64") * (1.0 - momentum)
        moved = moved + (values / divisor) * momentum
        self.copy_into(target, self.converted(moved, self.view(target, "target").dtype))

    def from_numpy(self, values: npt.NDArray[Any], like: Any) -> Any:
        """Copy a NumPy array to where `like` is."""
        return self._namespace().asarray(values, device=like.device, copy=True)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """Copy to a NumPy array."""
        if self.where(array).kind == "cpu":
            view = np.asarray(array) if hasattr(array, "__array__") else np.from_dlpack(array)
            return np.array(view)
        host = self._namespace().from_dlpack(array, device="cpu")
        return np.array(host)


def capsule_of(array: Any, name: str, **options: Any) -> Any:
    """Ask for the array's capsule; the library's refusal becomes an error of ours."""
    try:
        try:
            return array.__dlpack__(max_version=(1, 0), **options)
        except TypeError:  # from before the standard had versions
            return array.__dlpack__(**options)
    except Exception as error:  # whatever the library raises
        kind = type(array).__name__
        raise TypeError(
            f"{name}: expected an array that DLPack can hand over, got {kind}: {error}"
        ) from error


def _interface_view(array: Any, name: str) -> View:
    interface = array.__cuda_array_interface__
    code = interface["typestr"]
    item = int(code[2:])
    address, read_only = interface["data"]
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    else:
        strides = in_elements(strides, item, name)
    dtype, stream = str(np.dtype(code)), interface.get("stream")
    return View(array, int(address or 0), shape, strides, dtype, read_only, stream)


def in_elements(strides: Sequence[int], item: int, name: str) -> tuple[int, ...]:
    """Divide strides by the size of an element; ValueError if they are no multiples of it."""
    if any(stride % item for stride in strides):
        raise ValueError(f"{name}: expected strides that are multiples of {item}, got {strides}")
    return tuple(stride // item for stride in strides)
