"""A library of arrays that say they are on a GPU, over NumPy: what bnext asks of one, and no more.

The addresses are those of ordinary memory, for kernels that run on the CPU (tests/cuda). Arrays of
`Array` speak DLPack, those of `InterfaceArray` have `__cuda_array_interface__` and nothing else;
both have a namespace by `__array_namespace__`. NumPy cannot read either, as it cannot read a GPU.
"""

import ctypes
import math
import types

import ml_dtypes
import numpy as np

CUDA = 2  # kDLCUDA
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in ("float16", "bfloat16", "float32", "float64", "int64", "uint8")
}


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """Over `values`, a NumPy array."""

    def __init__(self, values, device=0):
        self.values = np.asarray(values)
        self.device = device
        self.streams = []  # that it was asked to be ready on

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    address = property(lambda self: self.values.__array_interface__["data"][0])
    T = property(lambda self: type(self)(self.values.T, self.device))

    def __array_namespace__(self, api_version=None):
        return namespace_of(type(self))

    def __array__(self, *arguments, **options):
        raise TypeError("an array on a GPU cannot become one of NumPy")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        values = [getattr(value, "values", value) for value in inputs]
        return type(self)(getattr(ufunc, method)(*values, **options), self.device)

    def __getitem__(self, index):
        return type(self)(self.values[index], self.device)

    def __setitem__(self, index, value):
        self.values[index] = getattr(value, "values", value)

    def all(self):
        return self.values.all()

    def __dlpack_device__(self):
        return (CUDA, self.device)

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        return capsule(self.values, self.device, read_only=not self.values.flags.writeable)


class InterfaceArray(Array):
    """The same without DLPack."""

    stream = None
    __dlpack__ = __dlpack_device__ = property()  # reading it raises AttributeError

    @property
    def __cuda_array_interface__(self):
        return dict(self.values.__array_interface__) | {"version": 3, "stream": self.stream}


def namespace_of(kind):
    """The functions that make arrays of `kind`; one object for each kind."""
    return next(NAMESPACES[base] for base in kind.__mro__ if base in NAMESPACES)


def _namespace(kind):
    def made(values, like):
        return kind(values, getattr(like, "device", 0))

    def empty(shape, *, dtype=None, device=0):
        # What nobody wrote shows: NaN in every floating dtype.
        values = np.full(math.prod(shape) * dtype.itemsize, 0xFF, np.uint8)
        return kind(values.view(dtype).reshape(shape), device)

    def zeros(shape, *, dtype=None, device=0):
        made_of = empty(shape, dtype=dtype, device=device)
        made_of.values[...] = 0
        return made_of

    def empty_like(x):
        order = sorted(range(x.ndim), key=lambda axis: -abs(x.values.strides[axis]))
        values = empty([x.shape[axis] for axis in order], dtype=x.dtype).values
        return made(values.transpose(np.argsort(order)), x)

    def asarray(values, *, device=0, copy=None):
        return kind(np.array(values), device)

    def astype(x, dtype):
        return made(x.values.astype(dtype), x)

    def mean(x, axis):
        return made(x.values.mean(axis=axis), x)

    def from_dlpack(x, *, device):
        assert device == "cpu"
        return x.values

    functions = (empty, zeros, empty_like, asarray, astype, mean, from_dlpack)
    return types.SimpleNamespace(
        __name__=f"fake_{kind.__name__.lower()}", **{f.__name__: f for f in functions}, **DTYPES
    )


NAMESPACES = {kind: _namespace(kind) for kind in (Array, InterfaceArray)}


# --- DLPack's structures, version 1 ---------------------------------------------------------------


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor),
    )  # fmt: skip


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LENT = {}  # address of a description: what must live as long
DELETED = []  # those that were given back


@_DELETER
def _give_back(address):
    DELETED.append(address)
    _LENT.pop(address, None)


def capsule(
    values, device=0, *, device_type=CUDA, versioned=True, strides=True, lanes=1, byte_offset=0,
    read_only=False, major=1, memory=True,
):  # fmt: skip
    """A capsule of the array, with or without memory, from nothing but the standard's text."""
    codes = {"f": 2, "i": 0, "u": 1, "V": 4, "c": 5, "b": 6}
    rank = values.ndim
    form = _Versioned() if versioned else _Managed()
    shape = (ctypes.c_int64 * rank)(*values.shape)
    steps = (ctypes.c_int64 * rank)(*(step // values.itemsize for step in values.strides))
    form.tensor = _Tensor(
        values.ctypes.data - byte_offset if memory else None, device_type, device, rank,
        4 if values.dtype.name == "bfloat16" else codes[values.dtype.kind], 8 * values.itemsize,
        lanes, shape, steps if strides else None, byte_offset,
    )  # fmt: skip
    form.deleter = ctypes.cast(_give_back, ctypes.c_void_p)
    if versioned:
        form.major, form.minor, form.flags = major, 0, int(read_only)
    address = ctypes.addressof(form)
    _LENT[address] = (form, shape, steps, values)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p,) * 3
    name = b"dltensor_versioned" if versioned else b"dltensor"
    return make(address, _name(name), None)


_NAMES = {}


def _name(text):
    """The text as C has it, kept: a capsule does not copy its name."""
    return ctypes.cast(_NAMES.setdefault(text, ctypes.c_char_p(text)), ctypes.c_void_p)
