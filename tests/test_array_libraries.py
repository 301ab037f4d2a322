"""CPU arrays of other libraries: computed where they lie, and results of the same library.

PyTorch and JAX are tested where they are installed; a producer of DLPack that is nothing else, and
a small library around it, always.
"""

import copy
import gc
import pickle
import sys
import threading
import time
import types

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import libraries

from . import fake_cuda
from .compare import assert_same_bits
from .optional import marked

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
NAMES = [np.dtype(dtype).name for dtype in DTYPES]
SHAPE = (6, 64, 19, 23)  # its results come from the pool


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


def address(array):
    return array.__array_interface__["data"][0]


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


# How an array becomes one of the library, and how it comes back; always on the same memory.
LIBRARIES = {
    "torch": (as_torch, from_torch),
    "small": (Small, from_small),
    "producer": (Producer, from_nothing),  # of no library: NumPy's answer, as to a list
    "unversioned": (Unversioned, from_nothing),
}


@pytest.fixture(params=marked(LIBRARIES))
def library(request):
    return LIBRARIES[request.param]


@pytest.fixture(params=["C", "channels-last", "NHWC"])
def data(request, rng):
    """x, dy and parameters in float64, with a layout and a channel axis."""

    def make(dtype):
        x, dy = (rng.normal(0.5, 2, SHAPE).astype(dtype) for _ in range(2))
        axis = 1
        if request.param != "C":
            x, dy = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, dy))
            axis = -1
        if request.param == "channels-last":
            x, dy = (a.transpose(0, 3, 1, 2) for a in (x, dy))
            axis = 1
        kind = np.float64 if dtype == np.float64 else np.float32
        vectors = rng.uniform(0.5, 2, (4, SHAPE[1])).astype(kind)
        return x, dy, *vectors, axis

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_results_are_numpy_s_to_the_bit(library, data, dtype):
    make, values_of = library
    x, dy, weight, bias, mean, var, axis = data(dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    x_, dy_, weight_, bias_, mean_, var_ = map(make, (x, dy, weight, bias, mean, var))
    y_, saved_ = bnext.batch_norm_forward(x_, weight_, bias_, channel_axis=axis)
    assert_same_bits(values_of(y_), y)
    assert values_of(y_).strides == y.strides
    for name in ("mean", "m2", "var", "rstd"):
        assert_same_bits(getattr(saved_, name), getattr(saved, name), name)
    there = bnext.batch_norm_backward(dy_, x_, saved_, weight_)
    for actual, expected in zip(there, gradients, strict=True):
        assert_same_bits(values_of(actual), expected)
    expected = bnext.normalize(x, mean, var, weight, bias, channel_axis=axis)
    actual = bnext.normalize(x_, mean_, var_, weight_, bias_, channel_axis=axis)
    assert_same_bits(values_of(actual), expected)
    moments = bnext.moments(x_, channel_axis=axis)
    assert type(moments.mean) is np.ndarray
    assert moments == bnext.moments(x, channel_axis=axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
def test_out_is_written_in_place(library, data, dtype):
    make, _ = library
    x, dy, _, _, mean, var, axis = data(dtype)
    y, saved = bnext.batch_norm_forward(x, channel_axis=axis)
    values = np.zeros_like(x)
    out, x_ = make(values), make(x)
    result, saved_ = bnext.batch_norm_forward(x_, channel_axis=axis, out=out)
    assert result is out
    assert_same_bits(values, y)
    result, *_ = bnext.batch_norm_backward(make(dy), x_, saved_, out=out)
    assert result is out
    assert_same_bits(values, bnext.batch_norm_backward(dy, x, saved)[0])
    assert bnext.normalize(x_, make(mean), make(var), channel_axis=axis, out=out) is out
    assert_same_bits(values, bnext.normalize(x, mean, var, channel_axis=axis))
    text = "^out: expected memory of its own, got an array that overlaps x$"
    with pytest.raises(ValueError, match=text):
        bnext.batch_norm_backward(make(dy), x_, saved_, out=make(x))


@pytest.mark.usefixtures("collected")
def test_nothing_is_copied(library, rng):
    """The pool knows of every array of this size that bnext makes: one for each result."""
    make, values_of = library
    x = make(rng.normal(size=SHAPE).astype(np.float32))
    before = bnext.show_config(mode="dicts")["pool"]
    y, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(x, x, saved)
    after = bnext.show_config(mode="dicts")["pool"]
    calls = [pool["hits"] + pool["misses"] for pool in (before, after)]
    assert calls[1] - calls[0] == 2
    assert after["in_use_bytes"] - before["in_use_bytes"] >= 2 * 4 * np.prod(SHAPE)
    assert address(values_of(y)) != address(values_of(dx))


@pytest.mark.usefixtures("collected")
def test_results_outlive_what_they_come_from(library, rng):
    """The memory of a result is the pool's, and goes back to it with the last who sees it."""
    make, values_of = library
    gc.collect()
    x = rng.normal(size=SHAPE).astype(np.float32)
    expected, _ = bnext.batch_norm_forward(x)
    expected = expected.copy()
    before = bnext.show_config(mode="dicts")["pool"]["in_use_bytes"]
    y, _ = bnext.batch_norm_forward(make(x))
    part = values_of(y)[1:]
    del y
    gc.collect()
    bnext.batch_norm_forward(x)  # memory that was given back too early would be taken here
    assert_same_bits(part, expected[1:])
    assert bnext.show_config(mode="dicts")["pool"]["in_use_bytes"] > before
    del part
    gc.collect()
    assert bnext.show_config(mode="dicts")["pool"]["in_use_bytes"] == before


def test_layers(library, data, dtype):
    """Parameters stay NumPy's; what comes out is of the library."""
    make, values_of = library
    x, dy, weight, _, _, _, axis = data(dtype)
    ours, there = (bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype) for _ in range(2))
    for training in (True, False):
        for bn in (ours, there):
            bn.train(training).weight[...] = weight
        assert_same_bits(values_of(there(make(x))), ours(x))
        assert_same_bits(values_of(there.backward(make(dy))), ours.backward(dy))
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            assert_same_bits(getattr(there, name), getattr(ours, name), name)
    assert there.num_batches_tracked == 1


@pytest.mark.torch
def test_torch_layer_of_tensors(data, dtype):
    """After `to`, parameters are tensors, updated in place; they serve PyTorch's optimizers."""
    import torch

    x, dy, *_, axis = data(dtype)
    ours = bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype)
    bn = bnext.BatchNorm(SHAPE[1], channel_axis=axis, dtype=dtype).to(as_torch(x))
    running = bn.running_mean
    assert all(isinstance(a, torch.Tensor) for a in (running, bn.running_var, bn.weight, bn.bias))
    for training in (True, False):
        ours.train(training)
        bn.train(training)
        assert_same_bits(from_torch(bn(as_torch(x))), ours(x))
        assert_same_bits(from_torch(bn.backward(as_torch(dy))), ours.backward(dy))
        for name in ("running_mean", "running_var", "weight_grad", "bias_grad"):
            assert_same_bits(from_torch(getattr(bn, name)), getattr(ours, name), name)
    assert bn.running_mean is running
    state = bn.state_dict()
    theirs = torch.nn.BatchNorm1d(SHAPE[1], dtype=getattr(torch, np.dtype(dtype).name))
    theirs.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    np.testing.assert_array_equal(theirs.running_var, ours.running_var)
    theirs.running_var[...] = 5
    assert (bn.running_var != 5).all()
    bn.load_state_dict(theirs.state_dict())
    assert (bn.running_var == 5).all()
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert_same_bits(from_torch(other.running_var), from_torch(bn.running_var))
    back = bn.to(np.empty(0))
    assert type(back.running_var) is type(back.weight_grad) is np.ndarray
    assert (back.running_var == 5).all()
    bn.reset_running_stats()
    assert (bn.running_var == 1).all()


def test_layer_of_tensors_and_a_numpy_array():
    """The two may stand together wherever nothing has to be updated in place."""
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    bn = bnext.BatchNorm1d(3).to(as_torch(x)).eval()
    assert type(bn(x)) is np.ndarray
    bn.train()
    text = r"^running_mean: expected an array of shape \(3,\), got Tensor$"
    with pytest.raises(TypeError, match=text):
        bn(x)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["x", "weight", "dy", "out"])
def test_torch_tensors_that_require_gradients(name):
    """There is no autograd: a gradient that would silently be missing is an error."""
    import torch

    tensors = {name: torch.ones(4, 3) for name in ("x", "dy", "out")} | {"weight": torch.ones(3)}
    saved = bnext.batch_norm_forward(torch.ones(4, 3))[1]
    tensors[name].requires_grad_()
    x, dy, weight, out = (tensors[name] for name in ("x", "dy", "weight", "out"))
    text = (
        f"{name}: expected a tensor that requires no gradient, got one that does; bnext's "
        f"functions record nothing for autograd (pass {name}.detach(), or call them under "
        "torch.no_grad())"
    )
    with pytest.raises(TypeError) as caught:
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)
    assert str(caught.value) == text
    with torch.no_grad():
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)


@pytest.mark.torch
def test_torch_tensors_of_other_makes():
    import torch

    dense = torch.eye(4)
    for x, kind, text in (
        (dense.to(torch.int32), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got int32"),
        (dense.to(torch.complex64), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got complex64"),
        (dense.bool(), TypeError,
         "x: expected dtype float16, bfloat16, float32 or float64, got bool"),
        (torch.tensor(1.0), ValueError, "x: expected at least 1 dimension, got 0"),
        (dense.to("meta"), RuntimeError,
         "x: expected an array on the CPU or on a CUDA device, got one on meta"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            bnext.batch_norm_forward(x)
        assert str(caught.value) == text
    with pytest.raises(
        TypeError, match=r"^x: expected an array that DLPack can hand over, got Ten"
    ):
        bnext.batch_norm_forward(dense.to_sparse())


@pytest.mark.torch
def test_torch_parameters_are_tensors(rng):
    """Subclasses of Tensor, such as Parameter, are PyTorch's as well."""
    import torch

    x = rng.normal(size=(19, 5)).astype(np.float32)
    weight = torch.nn.Parameter(torch.full((5,), 2.0), requires_grad=False)
    y, _ = bnext.batch_norm_forward(as_torch(x), weight)
    assert type(y) is torch.Tensor
    assert_same_bits(from_torch(y), bnext.batch_norm_forward(x, weight.numpy())[0])


def test_numpy_arrays_may_stand_beside(library, rng):
    make, values_of = library
    x, dy = rng.normal(size=(2, 19, 5)).astype(np.float32)
    weight = rng.normal(size=5).astype(np.float32)
    y, saved = bnext.batch_norm_forward(x, weight)
    y_, saved_ = bnext.batch_norm_forward(make(x), weight)
    assert_same_bits(values_of(y_), y)
    dx, dweight, _ = bnext.batch_norm_backward(dy, make(x), saved_, weight)
    assert_same_bits(values_of(dx), bnext.batch_norm_backward(dy, x, saved, weight)[0])
    assert type(dweight) is np.ndarray, "gradients of parameters are as the parameters"
    out = np.zeros_like(x)
    assert bnext.batch_norm_forward(make(x), weight, out=out)[0] is out
    assert_same_bits(out, y)


def test_torch_tensors_beside_a_numpy_array(rng):
    x, dy = rng.normal(size=(2, 19, 5)).astype(np.float32)
    _, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(as_torch(dy), x, saved, as_torch(np.ones(5, np.float32)))
    assert_same_bits(dx, bnext.batch_norm_backward(dy, x, saved)[0])


@pytest.mark.torch
def test_two_libraries_do_not_mix():
    import torch

    x, weight = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    text = "^weight: expected an array of torch, like x, or of NumPy, got one of small$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(torch.from_numpy(x), Small(weight))
    with pytest.raises(TypeError, match=r"^out: expected an array of small, like x, or of NumPy"):
        bnext.batch_norm_forward(Small(x), out=torch.from_numpy(x))


def test_namespaces_that_array_api_compat_knows(monkeypatch):
    """Where it is installed it is asked; without it such arrays give NumPy's."""

    class Known(Producer):
        pass

    class Another(Producer):
        pass

    compat = types.SimpleNamespace(array_namespace=lambda array: SMALL)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    monkeypatch.setitem(sys.modules, "array_api_compat", compat)
    assert type(bnext.batch_norm_forward(Known(x))[0]) is Small
    monkeypatch.setitem(sys.modules, "array_api_compat", None)
    assert type(bnext.batch_norm_forward(Another(x))[0]) is np.ndarray


def test_threads_find_one_library(monkeypatch):
    """Also if they come at once, with the first arrays of it."""
    together = threading.Barrier(4)

    class Slow(libraries.Library):
        def __init__(self, *of):
            time.sleep(0.05)
            super().__init__(*of)

    class Known(Producer):
        def __array_namespace__(self):
            return namespace

    namespace = types.SimpleNamespace(__name__="slow")
    monkeypatch.setattr(libraries, "Library", Slow)
    kinds = [Known, type("Another", (Known,), {})]
    found = [None] * 4

    def find(number):
        array = kinds[number % 2](np.ones(3))
        together.wait()
        found[number] = libraries.library_of(array)

    threads = [threading.Thread(target=find, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].xp is namespace
    assert all(library is found[0] for library in found)


def test_lists_are_numpy_s():
    x = [[1.0, 2.0], [3.0, 5.0]]
    assert type(bnext.batch_norm_forward(x)[0]) is np.ndarray
    assert type(bnext.BatchNorm1d(2, dtype=float)(x)) is np.ndarray


@pytest.mark.jax
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_jax(rng, dtype):
    import jax

    x, dy = (rng.normal(0.5, 2, SHAPE).astype(np.float32) for _ in range(2))
    x_, dy_ = (jax.numpy.asarray(array).astype(dtype) for array in (x, dy))
    x, dy = map(np.asarray, (x_, dy_))
    weight = rng.uniform(0.5, 2, SHAPE[1]).astype(np.float32)
    y, saved = bnext.batch_norm_forward(x, weight)
    y_, saved_ = bnext.batch_norm_forward(x_, as_jax(weight))
    assert y_.dtype == x_.dtype
    assert_same_bits(from_jax(y_), y)
    expected = bnext.batch_norm_backward(dy, x, saved, weight)
    actual = bnext.batch_norm_backward(dy_, x_, saved_, as_jax(weight))
    for gradient, value in zip(actual, expected, strict=True):
        assert_same_bits(from_jax(gradient), value)
    bn = bnext.BatchNorm2d(SHAPE[1])
    assert_same_bits(from_jax(bn(x_)), bnext.batch_norm_forward(x)[0])
    assert_same_bits(from_jax(bn.backward(dy_)), bnext.batch_norm_backward(dy, x, saved_)[0])
    assert type(bn.weight_grad) is np.ndarray


@pytest.mark.jax
def test_jax_memory_is_shared(rng):
    """bnext's view of a JAX array, and JAX's of a result, are the memory that they are of."""
    import jax

    x = as_jax(rng.normal(size=SHAPE).astype(np.float32))
    view = bnext._core.from_dlpack(x.__dlpack__())
    assert address(view) == x.unsafe_buffer_pointer()
    y, _ = bnext._core.forward(view, None, None, 1e-5, 1, None)
    result = jax.numpy.from_dlpack(bnext._core.Exported(y))
    assert result.unsafe_buffer_pointer() == address(y)


@pytest.mark.jax
def test_jax_arrays_cannot_be_written():
    x = as_jax(np.arange(12, dtype=np.float32).reshape(4, 3))
    text = "^out: expected an array that can be written, got one of jax$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(x, out=x + 1)
    with pytest.raises(
        TypeError, match=r"^like: expected an array that can be written, got one of"
    ):
        bnext.BatchNorm1d(3).to(x)
    bn = bnext.BatchNorm1d(3)
    bn.running_mean = as_jax(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match=r"^running_mean: expected an array that can be written"):
        bn(x)


@pytest.mark.jax
def test_jax_tracers():
    import jax

    def function(x):
        return bnext.batch_norm_forward(x)[0]

    with pytest.raises(TypeError, match=r"^x: expected an array, got a tracer of JAX"):
        jax.jit(function)(as_jax(np.ones((4, 3), np.float32)))
