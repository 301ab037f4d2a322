"""On a GPU: the caller's stream, no waiting, CUDA graphs, libraries that bnext does not know."""

import types

import numpy as np
import pytest

import bnext

from .. import reference
from ..compare import assert_are_gradients, assert_is_forward, assert_same_bits
from . import gpu

pytestmark = pytest.mark.gpu

SHAPE = (16, 12, 33, 31)
CYCLES = 200_000_000  # about a tenth of a second of a stream that does nothing


@pytest.fixture
def data(rng):
    return rng.normal(0.5, 2, (2, *SHAPE)).astype(np.float32)


def both_passes(x, dy):
    y, saved = bnext.batch_norm_forward(x)
    return y, *bnext.batch_norm_backward(dy, x, saved)


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
def test_work_follows_what_the_stream_has_to_do(tensors, data, path):
    """On a stream of its own, behind work that takes long; and the call returns meanwhile."""
    torch = tensors.xp
    x, dy = map(tensors.put, data)

    def run():
        both_passes(x, dy)  # whatever is loaded at the first call is
        late = torch.zeros_like(x)
        tensors.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)
            late.copy_(x)
            results = both_passes(late, dy)
            busy = not stream.query()
        stream.synchronize()
        return busy, results

    busy, results = run() if path is None else gpu.forced(path, run)
    y, *gradients = map(tensors.get, results)
    assert_is_forward(y, data[0])
    assert_are_gradients(gradients, data[1], data[0])
    assert busy, "a call has waited for the device"


def test_a_layer_does_not_wait(tensors, data):
    torch = tensors.xp
    x, dy = map(tensors.put, data)
    bn = bnext.BatchNorm2d(SHAPE[1]).to(x)

    def all_kernels(layer):
        layer.train()(x)
        layer.backward(dy)
        layer.eval()(x)
        layer.backward(dy)
        moments = bnext.moments(x) + bnext.moments(dy)
        bnext.normalize(x, moments.mean, moments.var)

    for layer in (bn, bnext.BatchNorm2d(SHAPE[1], momentum=None).to(x)):
        all_kernels(layer)  # the driver loads a kernel when it is first used, and may wait for that
        tensors.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(CYCLES)
            all_kernels(layer)
            assert not stream.query()
        stream.synchronize()


def test_cupy_s_stream(data):
    cupy = gpu.with_a_gpu("cupy").xp
    library = gpu.with_a_gpu("cupy")
    x, dy = map(library.put, data)
    late = cupy.zeros_like(x)
    both_passes(x, dy)
    library.synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        late[...] = x
        results = both_passes(late, dy)
    stream.synchronize()
    y, *gradients = map(library.get, results)
    assert_is_forward(y, data[0])
    assert_are_gradients(gradients, data[1], data[0])


@pytest.mark.parametrize("path", [None, *gpu.PATHS])
def test_graphs(tensors, data, path, rng):
    """Captured once, replayed on other data: the bits of calls one by one."""
    torch = tensors.xp
    x, dy = map(tensors.put, data)
    bn = bnext.BatchNorm2d(SHAPE[1]).to(x)

    def capture():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = bn(x)
            dx = bn.backward(dy)
        return graph, y, dx, bn.weight_grad

    def warm():
        beside = bnext.BatchNorm2d(SHAPE[1]).to(x)
        beside(x)
        beside.backward(dy)
        tensors.synchronize()

    if path is None:
        warm()
        graph, *results = capture()
    else:
        gpu.forced(path, warm)
        graph, *results = gpu.forced(path, capture)
    beside = bnext.BatchNorm2d(SHAPE[1]).to(x)
    for _ in range(3):
        x.copy_(tensors.put(rng.normal(1, 3, SHAPE).astype(np.float32)))
        graph.replay()

        def eager():
            y = beside(x)
            return y, beside.backward(dy), beside.weight_grad

        expected = eager() if path is None else gpu.forced(path, eager)
        for actual, value in zip(results, expected, strict=True):
            assert torch.equal(actual, value)
        for name in ("running_mean", "running_var"):
            assert torch.equal(getattr(bn, name), getattr(beside, name))


def test_memory_order_of_channels_last(tensors, data):
    torch = tensors.xp
    x = tensors.put(data[0]).to(memory_format=torch.channels_last)
    y, saved = bnext.batch_norm_forward(x)
    dx, _, _ = bnext.batch_norm_backward(tensors.put(data[1]), x, saved)
    for result in (y, dx):
        assert result.is_contiguous(memory_format=torch.channels_last)
    assert_is_forward(tensors.get(y), data[0])


def test_running_statistics_are_updated_by_momentum(tensors, rng, dtype):
    """Also where it is 0, 1 and None."""
    for momentum in (0.0, 0.3, 1.0, None):
        bn = bnext.BatchNorm1d(7, momentum=momentum, dtype=dtype).to(tensors.put(np.ones(1)))
        running = np.zeros(7), np.ones(7)
        for step in range(4):
            x = rng.normal(step, 2, (50, 7)).astype(dtype)
            bn(tensors.put(x))
            share = 1 / (step + 1) if momentum is None else momentum
            running = reference.update_running(running, reference.moments(x), share)
        for name, value in zip(("running_mean", "running_var"), running, strict=True):
            actual = tensors.get(getattr(bn, name))
            np.testing.assert_allclose(actual, value, rtol=0, atol=32 * np.finfo(dtype).eps)
        assert type(bn.num_batches_tracked) is np.ndarray
        assert bn.num_batches_tracked == 4


class Unknown:
    """An array of a library that bnext has no words for, over a tensor: by DLPack alone."""

    def __init__(self, tensor):
        self.tensor = tensor

    shape = property(lambda self: tuple(self.tensor.shape))
    dtype = property(lambda self: self.tensor.dtype)
    device = property(lambda self: self.tensor.device)

    def __array_namespace__(self):
        torch = gpu.with_a_gpu("tensor").xp
        return types.SimpleNamespace(
            __name__="unknown", float32=torch.float32, float64=torch.float64,
            empty=lambda *given, **named: type(self)(torch.empty(*given, **named)),
            empty_like=lambda x: type(self)(torch.empty_like(x.tensor)),
        )  # fmt: skip

    def __getitem__(self, index):
        return type(self)(self.tensor[index])

    def __setitem__(self, index, value):
        self.tensor[index] = getattr(value, "tensor", value)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, *, stream=None, max_version=None):
        return self.tensor.__dlpack__(stream=stream)


class Interface(Unknown):
    """By `__cuda_array_interface__` alone."""

    __dlpack__ = __dlpack_device__ = property()  # reading it raises AttributeError

    @property
    def __cuda_array_interface__(self):
        return self.tensor.__cuda_array_interface__


@pytest.mark.parametrize("kind", [Unknown, Interface])
def test_arrays_of_an_unknown_library(tensors, data, kind):
    x, dy = (kind(tensors.put(values)) for values in data)
    results = both_passes(x, dy)
    assert all(type(result) is kind for result in results)
    y, *gradients = (tensors.get(result.tensor) for result in results)
    assert_is_forward(y, data[0])
    assert_are_gradients(gradients, data[1], data[0])
    strided = kind(x.tensor[:, ::2, 1:, ::3])
    y, _ = bnext.batch_norm_forward(strided)
    assert_is_forward(tensors.get(y.tensor), np.ascontiguousarray(data[0][:, ::2, 1:, ::3]))


def test_two_libraries_agree(data):
    results = []
    for name in gpu.LIBRARIES:
        library = gpu.with_a_gpu(name)
        x, dy = map(library.put, data)
        results.append([library.get(result) for result in both_passes(x, dy)])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
