"""PyTorch's tensors: read, written and made as PyTorch and its autograd have them."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.arrays.library import CPU, Library, View, Where

__all__ = ["Torch", "counter_of_writes"]


def counter_of_writes(torch: Any) -> Any:
    """Find what lets autograd know that tensors of a tuple have been written, as it may keep them.

    Inference tensors, which autograd does not count, may be among them.
    """
    # Not the public function, which is Python, and takes longer than all that it does.
    increment: Any = getattr(torch._C, "_increment_version", None)
    try:
        increment((torch.empty(()),))
    except (TypeError, AttributeError, RuntimeError):
        one_by_one = getattr(torch.autograd.graph, "increment_version", lambda tensor: None)
        return lambda tensors: [one_by_one(each) for each in tensors if not each.is_inference()]
    return increment


def teller_of_profiled_memory(torch: Any) -> int:
    """Find the address of PyTorch's C++ function ``c10::memoryProfilingEnabled``; 0 without it."""
    file = os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so")
    try:
        function = ctypes.CDLL(file)["_ZN3c1022memoryProfilingEnabledEv"]
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Torch(Library):
    """PyTorch, whose tensors may be more than their memory: lazy, wrapped, watched by autograd."""

    def __init__(self, torch: Any) -> None:
        super().__init__("torch", torch)
        self.plain_of = torch
        self.memory_is_profiled = teller_of_profiled_memory(torch)
        self.count_writes = counter_of_writes(torch)  # type: ignore[method-assign]
        self._forward_ad = torch.autograd.forward_ad
        # Types that leave PyTorch's operations as they are, so that memory is all there is.
        self._transparent: set[type] = set()
        self._operations_as_they_are = torch.Tensor.__torch_dispatch__
        self._names = {
            getattr(torch, name): name for name in ("float32", "float64", "float16", "bfloat16")
        }
        self._places: dict[Any, Where] = {}
        # PyTorch for AMD's GPUs calls them "cuda" as well.
        self._cuda = "cuda" if getattr(torch.version, "hip", None) is None else ""

    def where(self, array: Any) -> Where:
        """Say where the tensor lies."""
        device = array.device
        try:
            return self._places[device]
        except KeyError:
            return self._places.setdefault(device, self._place(device))

    def _place(self, device: Any) -> Where:
        if device.type == "cpu":
            return CPU
        if device.type == self._cuda:
            return Where("cuda", device.index)
        return Where(str(device))

    def readable(self, array: Any, name: str) -> Any:
        """Return the tensor, negated if it is to be; TypeError if more than its memory matters."""
        self._check_kind(array, name)
        if getattr(self._forward_ad, "_current_level", -1) >= 0:
            self._check_tangent(array, name)
        if array.is_neg():
            array = array.resolve_neg()
        if not array.requires_grad:
            return array
        if self.xp.is_grad_enabled():
            raise TypeError(
                f"{name}: expected a tensor that requires no gradient, got one that does; bnext's "
                f"functions record nothing for autograd (pass {name}.detach(), or call them under "
                "torch.no_grad())"
            )
        return array.detach()

    def check_writable(self, array: Any, name: str) -> None:
        """TypeError for what PyTorch lets nobody write in place."""
        if array.is_neg():
            problem = "one that is negated lazily", f"pass {name}.resolve_neg()"
        elif array.is_inference() and not self.xp.is_inference_mode_enabled():
            problem = "an inference tensor", "call bnext in inference mode, or clone it outside"
        elif any(n > 1 and not step for n, step in zip(array.shape, array.stride(), strict=True)):
            problem = "an expanded one", f"pass {name}.contiguous()"
        else:
            return
        raise TypeError(
            f"{name}: expected a tensor that can be written, got {problem[0]} ({problem[1]})"
        )

    def _check_kind(self, array: Any, name: str) -> None:
        """Refuse types whose operations are their own, as their values are: wrappers of others."""
        kind = type(array)
        if kind in self._transparent:
            return
        if kind.__torch_dispatch__ is not self._operations_as_they_are:
            raise TypeError(
                f"{name}: expected a tensor whose memory holds its values, got {kind.__name__}, "
                "which has operations of its own (pass the plain tensor of it: to_local() of a "
                "DTensor, get_data() of a MaskedTensor, dequantize() of a quantized one)"
            )
        self._transparent.add(kind)

    def _check_tangent(self, array: Any, name: str) -> None:
        """Refuse what forward-mode differentiation looks at, which would lose its derivative."""
        if self._forward_ad.unpack_dual(array).tangent is not None:
            raise TypeError(
                f"{name}: expected a tensor without a tangent, got a dual one; bnext's functions "
                f"know nothing of forward-mode differentiation (pass {name}.detach(), or use "
                "bnext.torch, which does)"
            )

    def view(self, array: Any, name: str) -> View:
        """See the tensor as kernels do."""
        array = self.readable(array, name)
        if array.layout is not self.xp.strided:
            raise TypeError(f"{name}: expected a dense tensor, got one of layout {array.layout}")
        dtype = self._names.get(array.dtype) or str(array.dtype).removeprefix("torch.")
        return View(array, array.data_ptr(), tuple(array.shape), array.stride(), dtype)

    def stream(self, view: View, index: int) -> int:
        """Find PyTorch's current stream."""
        return int(self.xp.cuda.current_stream(index).cuda_stream)

    def empty_like(self, array: Any) -> Any:
        """Make a tensor in the memory order of `array`."""
        return self.xp.empty_like(array, memory_format=self.xp.preserve_format)

    def copy_into(self, target: Any, source: Any) -> None:
        """Copy values from one tensor to the other."""
        target.copy_(source)

    def converted(self, array: Any, dtype: str) -> Any:
        """Copy to another dtype."""
        return array.to(getattr(self.xp, dtype))

    def from_numpy(self, values: npt.NDArray[Any], like: Any) -> Any:
        """Copy a NumPy array to where `like` is."""
        return self.xp.from_numpy(np.array(values)).to(like.device)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """Copy to a NumPy array; of float32 for bfloat16, which NumPy has not."""
        self._check_kind(array, "array")
        if array.dtype == self.xp.bfloat16:
            array = array.float()
        return np.array(array.numpy(force=True))
