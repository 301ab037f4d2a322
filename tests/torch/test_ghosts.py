"""Ghost batches in bnext.torch: a batch in ghosts is the same as one call for each."""

import copy
import pickle

import pytest

import bnext

from .support import torch

SLICES = (slice(0, 4), slice(4, 8), slice(8, 11))


def each_of(layer, x, residual=None):
    """The same by one call for each ghost."""
    if residual is None:
        return torch.cat([layer(x[cut]) for cut in SLICES])
    parts = [residual if len(residual) == 1 else residual[cut] for cut in SLICES]
    return torch.cat([layer(x[cut], part) for cut, part in zip(SLICES, parts, strict=True)])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("activation", "residual"),
    [(None, None), ("relu", (11, 3, 4, 4)), (None, (11, 3, 4, 4)), ("relu", (1, 3, 1, 1))],
)
def test_a_batch_is_a_call_for_each_ghost(memory, activation, residual):
    torch.manual_seed(0)
    x = torch.randn(11, 3, 4, 4).to(memory_format=memory).requires_grad_()
    added = None if residual is None else torch.randn(residual)
    layer = bnext.torch.BatchNorm2d(3, ghost_batch_size=4, activation=activation)
    plain = bnext.torch.BatchNorm2d(3, activation=activation)
    results = []
    for y in (layer(x) if added is None else layer(x, added), each_of(plain, x, added)):
        assert y.is_contiguous(memory_format=memory)
        gradient, *_ = torch.autograd.grad(y.square().sum(), [x])
        results.append((y, gradient))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert layer.num_batches_tracked == 3
    assert torch.equal(layer.running_var, plain.running_var)


def test_compiled():
    torch.compiler.reset()
    layer, plain = bnext.torch.BatchNorm1d(3, ghost_batch_size=4), bnext.torch.BatchNorm1d(3)
    x = torch.randn(11, 3)
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, each_of(plain, x))
    torch.testing.assert_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == 3


def test_gradients_of_gradients():
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=3, dtype=torch.float64)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, [x])


def test_the_setting():
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=4)
    x = torch.randn(11, 3)
    assert "ghost_batch_size=4" in repr(layer)
    assert pickle.loads(pickle.dumps(layer)).ghost_batch_size == 4
    assert copy.deepcopy(layer).ghost_batch_size == 4
    assert list(layer.state_dict()) == list(torch.nn.BatchNorm1d(3).state_dict())
    plain = bnext.torch.BatchNorm1d(3)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    layer.train().ghost_batch_size = None
    assert torch.equal(layer(x), plain.train()(x))
    model = bnext.torch.convert(torch.nn.BatchNorm1d(3))
    model.ghost_batch_size = 4
    assert torch.equal(model(x), each_of(bnext.torch.BatchNorm1d(3), x))
    assert torch.equal(bnext.torch.revert(model)(x), torch.nn.BatchNorm1d(3)(x))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected"):
        bnext.torch.BatchNorm1d(3, ghost_batch_size=0)
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected None for SyncBatchNorm"):
        bnext.torch.SyncBatchNorm(3).ghost_batch_size = 4
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=4)
    with pytest.raises(TypeError, match=r"^input: expected a tensor"):
        torch.fx.symbolic_trace(layer)
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        layer(torch.randn(9, 3, 2, 2))
    assert layer.num_batches_tracked == 0
    bnext.torch.convert(layer, sync=bnext.sync.ThreadGroup(1))
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected None for a synchronized"):
        layer(torch.randn(9, 3))
