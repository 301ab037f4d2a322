"""On a GPU: plain tensors, which are read by DLPack's table of C functions, beside the others."""

import pytest

import bnext
from bnext import _core, arrays
from bnext.arrays import pytorch

from . import gpu

pytestmark = pytest.mark.gpu

SHAPES = [(64, 20), (8, 6, 14, 14), (3, 5, 2, 4, 3)]
FORMATS = {4: "channels_last", 5: "channels_last_3d"}


@pytest.fixture
def xp(tensors):
    """PyTorch, which has the table."""
    return tensors.xp


def by_both_roads(monkeypatch, call):
    """The results of a call on plain tensors, during which to view one is an error; and without."""
    from bnext.torch import kernels

    with monkeypatch.context() as patch:
        patch.setattr(pytorch.Torch, "view", None)
        first = call()
    with monkeypatch.context() as patch:
        calls_on = _core.calls_on
        patch.setattr(arrays, "_ENGINES", {})
        patch.setattr(kernels, "_THERE", {})
        patch.setattr(_core, "calls_on", lambda *of: calls_on(*of, plain=False))
        second = call()
    return first, second


def assert_same(xp, first, second):
    xp.cuda.synchronize()
    for a, b in zip(first, second, strict=True):
        assert (a.dtype, a.stride(), a.device) == (b.dtype, b.stride(), b.device)
        assert xp.equal(xp.nan_to_num(a), xp.nan_to_num(b))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_both_roads_give_the_same_bits(xp, monkeypatch, shape, last, dtype):
    x, dy = xp.randn(2, *shape, device=gpu.DEVICE).to(getattr(xp, dtype))
    if last and len(shape) in FORMATS:
        x, dy = (t.to(memory_format=getattr(xp, FORMATS[len(shape)])) for t in (x, dy))
    kind = xp.float64 if dtype == "float64" else xp.float32
    weight, bias = xp.randn(2, shape[1], device=gpu.DEVICE, dtype=kind)
    out = xp.empty_like(x)

    def functions():
        y, saved = bnext.batch_norm_forward(x, weight, bias)
        bnext.batch_norm_forward(x, weight, bias, out=out)
        inference = bnext.normalize(x, saved.mean, saved.var, weight, bias)
        gradients = bnext.batch_norm_backward(dy, x, saved, weight)
        return y, out.clone(), saved.rows, inference, *gradients

    assert_same(xp, *by_both_roads(monkeypatch, functions))

    def layers():
        name = f"BatchNorm{max(len(shape) - 2, 1)}d"
        bn = getattr(bnext.torch, name)(shape[1], device=gpu.DEVICE, dtype=kind)
        leaf = x.clone().requires_grad_()
        y = bn(leaf)
        found = [y, *xp.autograd.grad(y, (leaf, *bn.parameters()), dy), *bn.buffers()]
        found.append(bn.eval()(x).detach())
        return found

    first, second = by_both_roads(monkeypatch, layers)
    assert_same(xp, first, second)
    assert int(first[-2]) == 1


def test_gpu_calls_are_put_on_the_current_stream(xp, monkeypatch):
    """What is behind a sleep on the same stream is not read, nor overwritten, before its time."""
    x = xp.zeros(64, 20, device=gpu.DEVICE)
    bnext.batch_norm_forward(x)
    values = xp.randn(64, 20, device=gpu.DEVICE)
    expected, _ = bnext.batch_norm_forward(values)
    xp.cuda.synchronize()
    stream = xp.cuda.Stream()
    with xp.cuda.stream(stream):
        xp.cuda._sleep(50_000_000)
        x.copy_(values)
        y, _ = bnext.batch_norm_forward(x)
    assert not stream.query()  # the call has waited for nothing
    stream.synchronize()
    assert xp.equal(y, expected)


def test_gpu_a_graph_of_layers_counts_its_batches(xp):
    """Also the count is kept by what is captured: a replay adds one."""
    bn = bnext.torch.BatchNorm1d(20).to(gpu.DEVICE)
    x = xp.randn(64, 20, device=gpu.DEVICE, requires_grad=True)
    side = xp.cuda.Stream()
    side.wait_stream(xp.cuda.current_stream())
    with xp.cuda.stream(side):
        for _ in range(3):
            bn(x).square().sum().backward()
    xp.cuda.current_stream().wait_stream(side)
    x.grad = None
    bn.zero_grad(set_to_none=True)
    graph = xp.cuda.CUDAGraph()
    with xp.cuda.graph(graph):
        bn(x).square().sum().backward()
    before, mean = int(bn.num_batches_tracked), bn.running_mean.clone()
    for _ in range(5):
        graph.replay()
    xp.cuda.synchronize()
    assert int(bn.num_batches_tracked) == before + 5
    assert not xp.equal(bn.running_mean, mean)
    eager = bnext.torch.BatchNorm1d(20).to(gpu.DEVICE)
    for _ in range(int(bn.num_batches_tracked)):
        eager(x)
    xp.testing.assert_close(bn.running_mean, eager.running_mean)
