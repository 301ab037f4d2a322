"""Whose an array is, where it lies, and what its library is asked for.

PyTorch and CuPy are asked in their own words, since they say more than the array API standard has:
strides, streams, memory orders. Others are asked in the standard's, and give their memory by DLPack
or by `__cuda_array_interface__`.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext import _core

__all__ = ["Library", "View", "Where", "library_of", "to_numpy"]

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
        """Return the array, if it may be read behind its library's back."""
        return array

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


class Torch(Library):
    """PyTorch."""

    def __init__(self, torch: Any) -> None:
        super().__init__("torch", torch)
        self._names = {
            getattr(torch, name): name for name in ("float32", "float64", "float16", "bfloat16")
        }
        # PyTorch for AMD's GPUs calls them "cuda" as well.
        self._cuda = "cuda" if getattr(torch.version, "hip", None) is None else ""

    def where(self, array: Any) -> Where:
        device = array.device
        if device.type == "cpu":
            return CPU
        if device.type == self._cuda:
            return Where("cuda", device.index)
        return Where(str(device))

    def readable(self, array: Any, name: str) -> Any:
        if not array.requires_grad:
            return array
        if self.xp.is_grad_enabled():
            raise TypeError(
                f"{name}: expected a tensor that requires no gradient, got one that does; bnext's "
                f"functions record nothing for autograd (pass {name}.detach(), or call them under "
                "torch.no_grad())"
            )
        return array.detach()

    def view(self, array: Any, name: str) -> View:
        array = self.readable(array, name)
        if array.layout is not self.xp.strided:
            raise TypeError(f"{name}: expected a dense tensor, got one of layout {array.layout}")
        dtype = self._names.get(array.dtype) or str(array.dtype).removeprefix("torch.")
        return View(array, array.data_ptr(), tuple(array.shape), array.stride(), dtype)

    def stream(self, view: View, index: int) -> int:
        return int(self.xp.cuda.current_stream(index).cuda_stream)

    def empty_like(self, array: Any) -> Any:
        return self.xp.empty_like(array, memory_format=self.xp.preserve_format)

    def copy_into(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def converted(self, array: Any, dtype: str) -> Any:
        return array.to(getattr(self.xp, dtype))

    def from_numpy(self, values: npt.NDArray[Any], like: Any) -> Any:
        return self.xp.from_numpy(np.array(values)).to(like.device)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        return np.array(np.asarray(array.detach().cpu()))


class CuPy(Library):
    """CuPy."""

    def __init__(self, cupy: Any) -> None:
        super().__init__("cupy", cupy)

    def where(self, array: Any) -> Where:
        return Where("cuda", int(array.device.id))

    def view(self, array: Any, name: str) -> View:
        item = array.dtype.itemsize
        strides = _in_elements(array.strides, item, name)
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
        # A tracer has no memory: it is refused where that is asked for.
        return super().where(array) if hasattr(array, "__dlpack_device__") else CPU

    def adopt(self, array: Any, name: str) -> npt.NDArray[Any]:
        try:
            return super().adopt(array, name)
        except TypeError:
            if _core.is_tracer(array):
                _core.as_array(array, name)  # whose error says what to do
            raise


_KNOWN: dict[type, Library | None] = {}
_TORCH_AND_CUPY: dict[str, Library] = {}
_FINDING = (
    threading.Lock()
)  # threads that bring the first array of a library at once get one object


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
        in_elements = [1] * len(shape)
        for axis in range(len(shape) - 1, 0, -1):
            in_elements[axis - 1] = in_elements[axis] * shape[axis]
        strides = tuple(in_elements)
    else:
        strides = _in_elements(strides, item, name)
    stream = interface.get("stream")
    return View(
        array, int(address or 0), shape, strides, str(np.dtype(code)), read_only, stream
    )  # fmt: skip


def _in_elements(strides: Sequence[int], item: int, name: str) -> tuple[int, ...]:
    if any(stride % item for stride in strides):
        raise ValueError(f"{name}: expected strides that are multiples of {item}, got {strides}")
    return tuple(stride // item for stride in strides)
