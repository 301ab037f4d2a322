"""The two ways on which tensors reach the kernels: DLPack's table of C functions, and arrays."""

import subprocess
import sys
import threading

import pytest

import bnext

from .plain import arguments, backward, forward
from .support import DTYPES, by_arrays, name_of_dtype, torch

from bnext.torch import kernels  # isort: skip - of which there is nothing without PyTorch

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="a PyTorch without the table"
)

SHAPES = [(7, 3), (2, 1), (5, 300), (3, 5, 11), (4, 17, 5, 3), (33, 64, 9, 7), (2, 3, 2, 5, 3)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@pytest.mark.parametrize(
    ("shape", "last"),
    [
        *((shape, False) for shape in SHAPES),
        *((shape, True) for shape in SHAPES if len(shape) in FORMATS),
    ],
    ids=str,
)
def test_both_ways_give_the_same_bits(shape, dtype, last, monkeypatch):
    x, w, b, mean, var, counter = arguments(shape, dtype)
    dy = torch.randn(shape).to(dtype)
    if last:
        x, dy = (t.to(memory_format=FORMATS[len(shape)]) for t in (x, dy))

    def everything():
        buffers = [mean.clone(), var.clone(), counter.clone()]
        y, saved = kernels.forward(x, w, b, 1e-3, None, (*buffers[:2], 0.3, buffers[2]))
        gradients = kernels.backward(dy, x, saved, w)
        inference, constant = kernels.forward(x, w, b, 1e-3, (mean, var, None, None))
        rows = [kernels.rows_of(s) for s in (saved, constant)]
        of_constants = [
            *kernels.backward(dy, x, constant, w),
            kernels.backward(dy, None, constant, w)[0],
        ]
        tensors = [
            y,
            inference,
            *gradients,
            *of_constants,
            *rows,
            *buffers,
        ]
        return tensors, (saved.count, saved.eps, saved.shape, constant.batch_statistics)

    ours, facts = everything()
    by_arrays(monkeypatch)
    theirs, expected_facts = everything()
    assert facts == expected_facts
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    assert ours[-1] == 6


def test_parameters_that_are_missing():
    x = torch.randn(9, 4)
    y, saved = forward(x)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y, expected)
    dx, dweight, dbias = backward(x, x, saved)
    assert dx.shape == x.shape
    assert dweight.shape == dbias.shape == (4,)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@pytest.mark.parametrize("shape", [(1, 300), (1, 3, 1, 1), (64, 20), (2, 3, 5, 7)], ids=str)
def test_evaluation_takes_the_short_way(shape, dtype, monkeypatch):
    """Also of one value per channel, with and without gradients: nothing goes by NumPy."""
    name = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
    ours = getattr(bnext.torch, name)(shape[1]).eval()
    if dtype == torch.float64:
        ours.double()
    ours.running_mean.normal_()
    x, dy = torch.randn(2, *shape).to(dtype)
    with monkeypatch.context() as patched, torch.no_grad():
        by_arrays(patched)
        by_long_way = ours(x)
    with monkeypatch.context() as patched:
        for function in ("_forward_of_others", "backward_of_parameters", "engine_of"):
            patched.setattr(kernels, function, None)  # to call it is an error
        with torch.no_grad():
            assert torch.equal(ours(x), by_long_way)
        leaf = x.clone().requires_grad_()
        y = ours(leaf)
        assert torch.equal(y.detach(), by_long_way)
        dx, *of_parameters = torch.autograd.grad(y, (leaf, *ours.parameters()), dy)
        frozen = ours.requires_grad_(False)(leaf)
        assert torch.equal(torch.autograd.grad(frozen, leaf, dy)[0], dx)
    with monkeypatch.context() as patched:
        by_arrays(patched)
        ours.requires_grad_(True)
        again = torch.autograd.grad(ours(leaf), (leaf, *ours.parameters()), dy)
    assert all(map(torch.equal, (dx, *of_parameters), again))


def test_another_x_is_noticed():
    x = torch.randn(4, 6, 3, 5)
    _, saved = forward(x)
    with pytest.raises(ValueError, match="saved: made from another x, or x was changed since"):
        backward(x, x + 1, saved)
    with pytest.raises(ValueError, match=r"saved: made from an input of shape \(4, 6, 3, 5\)"):
        backward(x[:2], x[:2], saved)
    with pytest.raises(TypeError, match="saved: expected what batch_norm_forward returned"):
        backward(x, x, None)


@pytest.mark.parametrize("shape", [(8, 4), (8, 16, 64, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_evaluation_in_memory_of_pytorchs(shape, channels_last):
    """Memory that others lend cannot be resized; PyTorch's own can."""
    layer = bnext.torch.BatchNorm2d(shape[1]) if len(shape) == 4 else bnext.torch.BatchNorm1d(4)
    x = torch.randn(shape)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer.eval()(x)
    assert y.untyped_storage().resizable()
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, x / (1 + layer.eps) ** 0.5)


def test_import_with_another_table():
    """One of a later version of DLPack is left alone, not an error at import."""
    script = """
import ctypes, torch
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
table = (ctypes.c_uint64 * 8)(2)  # major version 2, with no older one behind it
torch.Tensor.__dlpack_c_exchange_api__ = new(ctypes.addressof(table), b"dlpack_exchange_api", None)
import bnext.torch
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(5, 3).to(dtype)
    try:
        bnext._core.evaluate(x=x, running_mean=torch.zeros(3), running_var=torch.ones(3),
                             weight=None, bias=None, eps=0.1, channel_axis=1, plain=True)
    except TypeError:
        pass
    else:
        raise AssertionError("the table was read")
    found = []
    for layer in (bnext.torch.BatchNorm1d(3), torch.nn.BatchNorm1d(3)):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.float().square().sum().backward()
        found.append((y, leaf.grad, layer.weight.grad, layer.running_var, layer.eval()(x)))
    for a, b in zip(*found):
        assert type(a) is type(b)
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(64, 20), (64, 32, 16, 16)], ids=["small", "pooled"])
def test_results_lie_on_lines_and_are_given_back(shape):
    """Also by threads that know nothing of Python's lock."""
    x = torch.randn(shape)
    in_use = bnext._core.pool_figures()["in_use_bytes"]
    results = [forward(x)[0] for _ in range(8)]
    assert all(y.data_ptr() % 64 == 0 for y in results)
    assert len({y.data_ptr() for y in results}) == 8
    thread = threading.Thread(target=results.clear)
    thread.start()
    thread.join()
    assert bnext._core.pool_figures()["in_use_bytes"] == in_use


def test_small_calls_leave_nothing_behind():
    x, w, b, mean, var, counter = arguments((64, 20), torch.float32)
    tensors = (x, w, b, mean, var, counter)

    def calls(number):
        for _ in range(number):
            _, saved = forward(x, w, b, mean, var, 0.1, counter)
            backward(x, x, saved, w)

    calls(100)
    references, before = [sys.getrefcount(t) for t in tensors], resident()
    calls(20_000)  # 15 KB each: 300 MB, if nothing were given back
    assert [sys.getrefcount(t) for t in tensors] == references
    if before is not None:
        assert resident() - before < 30e6


def resident():
    """Bytes of this process in memory; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return None


def test_bfloat16_is_trained_without_ml_dtypes():
    script = """
import sys
sys.modules["ml_dtypes"] = None
import torch, bnext.torch
from bnext.torch import kernels
x = torch.randn(8, 5, 7, 3).bfloat16().requires_grad_()
ours, theirs = bnext.torch.BatchNorm2d(5), torch.nn.BatchNorm2d(5)
ran = []
class Watched:
    def __getattr__(self, name):
        def call(**operands):
            result = getattr(bnext._core, name)(**operands)
            ran.append((name, operands["plain"]))
            return result
        return call
kernels._core = Watched()
found = []
for layer in (ours, theirs):
    x.grad = None
    y = layer(x)
    y.float().square().sum().backward()
    found.append((y.detach(), x.grad, layer.weight.grad, layer.running_var))
for a, b in zip(*found):
    torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
assert ran == [("forward", True), ("backward", True)], ran
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_layers_without_the_table(monkeypatch, kernel_calls):
    """As with versions of PyTorch that have none."""
    by_arrays(monkeypatch)
    x = torch.randn(6, 4, 5, 3, requires_grad=True)
    ours, theirs = bnext.torch.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    for training in (True, False):
        found = []
        for layer in (ours, theirs):
            x.grad = None
            y = layer.train(training)(x)
            y.square().sum().backward()
            found.append((y.detach(), x.grad, layer.weight.grad, layer.running_var.clone()))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
    assert kernel_calls["forward"] == kernel_calls["inference"] == 1


def test_gradients_by_rows():
    x, weight = torch.randn(4, 6, 3, 5), torch.randn(6)
    rows, _ = kernels.statistics(x, weight, None, 1e-5)
    results = kernels.backward_by_rows(x, x, weight, rows, 1e-5)
    _, saved = kernels.forward(x, weight, None, 1e-5)
    assert all(map(torch.equal, results, kernels.backward(x, x, saved, weight)))
    same = kernels.backward_by_rows(x, x, weight, rows.t().contiguous().t(), 1e-5)
    assert all(map(torch.equal, results, same))
    for other in (rows.float(), rows[:3], rows[:, :5], rows.t(), rows[None]):
        with pytest.raises((TypeError, ValueError), match=r"^rows: "):
            kernels.backward_by_rows(x, x, weight, other, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@pytest.mark.parametrize("shape", [(3, 21, 7, 9), (2, 64, 16, 16), (5, 3, 37, 41), (2, 19, 3, 5, 7),
                                   (9, 130, 33, 31)], ids=str)  # fmt: skip
def test_gradients_in_the_other_order(shape, dtype):
    """They are brought into the order of the data, and give the same bits."""
    last = FORMATS[len(shape)]
    for of_x, of_dy in ((last, torch.contiguous_format), (torch.contiguous_format, last)):
        x, dy = torch.randn(2, *shape, dtype=dtype).unbind()
        x, dy = x.contiguous(memory_format=of_x), dy.contiguous(memory_format=of_dy)
        _, saved = kernels.forward(x, None, None, 1e-5)
        for threads in (1, 2):
            bnext.set_num_threads(threads)
            results = [
                kernels.backward(each, x, saved, None)
                for each in (dy, dy.contiguous(memory_format=of_x))
            ]
            for actual, expected in zip(*results, strict=True):
                assert torch.equal(actual, expected)
            assert results[0][0].stride() == x.stride()
