"""What the tests with a GPU share: libraries that have arrays there, and how arrays get there."""

import contextlib
import ctypes
import importlib

import numpy as np
import pytest

import bnext

from ..cases import ALIGNMENT
from ..optional import NotHere

DEVICE = "cuda"


def _memory_of(values):
    """The bytes that `values` lies in, from a 64-byte boundary on, and where in them it begins."""
    address, item = values.__array_interface__["data"][0], values.itemsize
    reaches = [
        stride * (extent - 1) for stride, extent in zip(values.strides, values.shape, strict=True)
    ]
    lowest = address + sum(reach for reach in reaches if reach < 0)
    highest = address + item + sum(reach for reach in reaches if reach > 0)
    begin = lowest - lowest % ALIGNMENT
    memory = np.zeros(highest - begin, np.uint8)
    ctypes.memmove(memory.ctypes.data + lowest - begin, lowest, highest - lowest)
    return memory, address - begin


class Tensors:
    """PyTorch."""

    name = "tensor"
    negative_strides = False

    def __init__(self):
        self.xp = importlib.import_module("torch")

    def found(self):
        return self.xp.cuda.is_available()

    def put(self, values):
        """A copy on the GPU that lies there as `values` does here, alignment and margins too."""
        values = np.asarray(values)
        dtype, item = getattr(self.xp, values.dtype.name), values.itemsize
        if values.size == 0:
            return self.xp.empty(values.shape, dtype=dtype, device=DEVICE)
        raw, start = _memory_of(values)
        memory = self.xp.from_numpy(raw).to(DEVICE).view(dtype)
        strides = [stride // item for stride in values.strides]
        return memory.as_strided(values.shape, strides, start // item)

    def get(self, array):
        assert isinstance(array, self.xp.Tensor)
        assert array.device.type == DEVICE
        array = array.detach()
        if array.dtype == self.xp.bfloat16:
            import ml_dtypes

            return array.view(self.xp.int16).cpu().numpy().view(ml_dtypes.bfloat16)
        return array.cpu().numpy()

    def synchronize(self):
        self.xp.cuda.synchronize()


class CuPyArrays:
    """CuPy."""

    name = "cupy"
    negative_strides = True

    def __init__(self):
        self.xp = importlib.import_module("cupy")

    def found(self):
        return self.xp.cuda.runtime.getDeviceCount() > 0

    def put(self, values):
        values = np.asarray(values)
        if values.size == 0:
            return self.xp.empty(values.shape, values.dtype)
        raw, start = _memory_of(values)
        memory = self.xp.asarray(raw)
        return self.xp.ndarray(
            values.shape, values.dtype, memory.data + start, strides=values.strides
        )

    def get(self, array):
        assert isinstance(array, self.xp.ndarray)
        return array.get()

    def synchronize(self):
        self.xp.cuda.Device().synchronize()


LIBRARIES = {library.name: library for library in (Tensors, CuPyArrays)}
_made = {}


def with_a_gpu(name):
    """One of `LIBRARIES`, or a test that is not run here."""
    if name not in _made:
        try:
            _made[name] = LIBRARIES[name]()
        except ImportError as error:
            raise NotHere("arrays on a GPU", str(error)) from None
    if not _made[name].found():
        raise NotHere("arrays on a GPU", f"{name}: this build of the library finds no GPU")
    return _made[name]


def kernels():
    """The module `bnext._cuda`, or none where it cannot be loaded; to list paths with."""
    try:
        return bnext.cuda._load()
    except ImportError:
        return None


PATHS = ("block", "cluster", "cooperative", "chunked", "two_kernels")


def results_or_refusal(path, call):
    """What `call` returns with that path forced (None: the plan's), and None; or why it cannot."""
    try:
        with contextlib.nullcontext() if path is None else bnext.cuda._forced_path(path):
            return call(), None
    except ValueError as error:
        if not str(error).startswith("path:"):
            raise
        return None, str(error)


def forced(path, call):
    """What `call` returns with that path forced, or a skipped test if this GPU cannot do it."""
    results, refusal = results_or_refusal(path, call)
    if refusal is not None:
        pytest.skip(refusal)
    return results
