"""CPU arrays of other libraries, as tests make them and read them."""

import types

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import fake_cuda


class Producer:
    """What hands out DLPack capsules of a NumPy array, and has nothing else."""

    options = types.MappingProxyType({"device_type": 1})

    def __init__(self, values):
        self.values = values

    def __dlpack_device__(self):
        return (self.options["device_type"], 0)

    def __dlpack__(self, *, max_version=None):
        return fake_cuda.capsule(self.values, **self.options)


class Unversioned(Producer):
    """From before the standard had versions: it knows no `max_version`."""

    def __dlpack__(self):
        return fake_cuda.capsule(self.values, device_type=1, versioned=False)


class Small(Producer):
    """An array of a library with a namespace, of which bnext uses `from_dlpack`."""

    def __array_namespace__(self):
        return SMALL


def _from_dlpack(producer):
    return Small(bnext._core.from_dlpack(producer.__dlpack__(max_version=(1, 0))))


SMALL = types.SimpleNamespace(__name__="small", from_dlpack=_from_dlpack)


def as_torch(values):
    """A tensor on the array's memory, in its order."""
    import torch

    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def from_torch(tensor):
    """The array on the tensor's memory."""
    import torch

    assert isinstance(tensor, torch.Tensor)
    assert tensor.device.type == "cpu"
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def as_jax(values):
    import jax

    return jax.numpy.asarray(values)


def from_jax(array):
    import jax

    assert isinstance(array, jax.Array)
    return np.asarray(array)


def from_small(array):
    assert type(array) is Small
    return array.values


def from_nothing(array):
    assert type(array) is np.ndarray
    return array


SHAPE = (6, 64, 19, 23)  # its results come from the pool
IN_LAYOUTS = pytest.mark.parametrize("layout", ["C", "channels-last", "NHWC"])


def drawn(rng, layout, dtype):
    """x, dy, four vectors of parameters, and the channel axis."""
    x, dy = (rng.normal(0.5, 2, SHAPE).astype(dtype) for _ in range(2))
    axis = 1
    if layout != "C":
        x, dy = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, dy))
        axis = -1
    if layout == "channels-last":
        x, dy = (a.transpose(0, 3, 1, 2) for a in (x, dy))
        axis = 1
    kind = np.float64 if dtype == np.float64 else np.float32
    return x, dy, *rng.uniform(0.5, 2, (4, SHAPE[1])).astype(kind), axis


def address(array):
    return array.__array_interface__["data"][0]
