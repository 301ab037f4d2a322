"""The tensors that come out: whose memory it is, how long it lives, what may be done with it."""

import copy
import gc
import io
import multiprocessing
import pickle

import pytest

import bnext

from .support import DTYPES, name_of_dtype, torch

# Large enough for bnext's pool to have it.
SHAPE = (64, 32, 16, 16)


@pytest.fixture
def result():
    """y of a layer that is gone, its values as they were, and dx."""
    layer = bnext.torch.BatchNorm2d(32)
    x = torch.randn(SHAPE, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    return y.detach(), y.detach().numpy().copy()


def overwrite_the_pool():
    """Layers whose results would lie where freed ones were."""
    layer = bnext.torch.BatchNorm2d(32)
    for _ in range(5):
        layer(torch.full(SHAPE, 7.0, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_results_outlive_everything_else(dtype):
    layer = bnext.torch.BatchNorm2d(32, dtype=dtype)
    x = torch.randn(SHAPE).to(dtype).requires_grad_()
    y = layer(x)
    part, before = y.detach()[1], y.detach()[1].clone()
    y.sum().backward()
    dx, dx_before = x.grad, x.grad.clone()
    del layer, x, y
    gc.collect()
    bnext.empty_cache()
    overwrite_the_pool()
    assert torch.equal(part, before)
    assert torch.equal(dx, dx_before)


def test_memory_goes_back_to_the_pool():
    """What is freed is used again: memory does not grow with the number of steps."""
    layer = bnext.torch.BatchNorm2d(32)
    addresses = set()
    for _ in range(20):
        y = layer(torch.randn(SHAPE, requires_grad=True))
        addresses.add(y.data_ptr())
        y.sum().backward()
        del y
    assert len(addresses) <= 4


def test_results_are_copied_saved_and_sent(result):
    y, values = result
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    for other in (copy.deepcopy(y), pickle.loads(pickle.dumps(y)), torch.load(file), y.clone()):
        assert other.data_ptr() != y.data_ptr()
        assert torch.equal(other, torch.from_numpy(values))
    assert torch.from_dlpack(y).data_ptr() == y.data_ptr()
    assert y.numpy().flags.writeable
    assert y.view(64, -1).shape == (64, 32 * 256)


def test_results_are_shared_with_processes(result):
    y, values = result
    shared = y.clone().share_memory_()
    assert y.share_memory_().is_shared()
    assert torch.equal(y, torch.from_numpy(values))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        doubled = pool.apply(torch.mul, (shared[0, 0, 0], 2))
    assert torch.equal(doubled, 2 * y[0, 0, 0])


def test_results_keep_the_size_of_their_memory(result):
    """Which PyTorch's do not: memory that is not its own, as NumPy's, it does not resize."""
    y, values = result
    with pytest.raises(RuntimeError, match="storage that is not resizable"):
        y.untyped_storage().resize_(0)
    assert torch.equal(y, torch.from_numpy(values))
    assert y.resize_(3).shape == (3,)
    y.set_(torch.ones(2))
    assert torch.equal(y, torch.ones(2))


def test_results_of_inference_mode():
    layer = bnext.torch.BatchNorm2d(32)
    x = torch.randn(SHAPE)
    with torch.inference_mode():
        y = layer(x)
        assert y.is_inference()
        y.mul_(2)
        layer.eval()(y)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        y.add_(1)
    layer.train()(x.requires_grad_()).sum().backward()
    assert layer.num_batches_tracked == 2


def test_results_lie_in_no_input():
    """Not even where nothing would change: weight 1, bias 0, statistics 0 and 1."""
    layer = bnext.torch.BatchNorm2d(32, eps=1e-30).eval()
    x = torch.randn(SHAPE)
    y = layer(x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
    y.zero_()
    assert x.abs().max() > 0


def test_threads_call_one_layer_at_once():
    """In evaluation nothing of it changes; results are those of calls one after the other."""
    from concurrent.futures import ThreadPoolExecutor

    layer = bnext.torch.BatchNorm2d(32).eval()
    inputs = [torch.randn(8, 32, 9, 9) for _ in range(16)]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, y in zip(pool.map(layer, inputs), expected, strict=True):
            assert torch.equal(actual, y)
