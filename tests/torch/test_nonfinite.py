"""Batches that are not finite in bnext.torch: skip_nonfinite."""

import copy
import importlib
import pickle

import pytest

import bnext

from ..groups.support import new_group
from .support import torch

checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint
NAMES = ("running_mean", "running_var", "num_batches_tracked")


def batch_of(seed=0, dtype=torch.float32):
    return torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spoiled(value=float("nan"), seed=1, dtype=torch.float32):
    x = batch_of(seed, dtype)
    x[2, 1, 3] = value
    return x


def running_of(layer):
    return [getattr(layer, name).clone() for name in NAMES]


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_a_bad_batch_is_as_if_it_had_not_been(dtype, way, momentum):
    layer = bnext.torch.BatchNorm1d(3, momentum=momentum, skip_nonfinite=True, activation="relu")
    expected = bnext.torch.BatchNorm1d(3, momentum=momentum, activation="relu")
    call = layer
    if way == "compiled":
        torch.compiler.reset()
        call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        y = call(batch_of(seed, dtype).requires_grad_())
        assert y.requires_grad
        expected(batch_of(seed, dtype))
        call(spoiled(float("inf"), dtype=dtype))
    for one, other in zip(running_of(layer), running_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert layer.num_batches_skipped == 2


def test_a_call_that_raises_is_not_counted():
    layer = bnext.torch.BatchNorm1d(3, skip_nonfinite=True)
    for x in (batch_of(dtype=torch.complex64), torch.randn(1, 3)):
        with pytest.raises((RuntimeError, ValueError)):
            layer(x)
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (0, 0)


def test_modules_of_pytorch_agree_without_the_switch():
    ours, theirs = bnext.torch.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert ours.num_batches_skipped is None
    assert [name for name, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
    ours(spoiled())
    assert torch.isnan(ours.running_mean[1])


def test_the_switch():
    layer = bnext.torch.BatchNorm1d(3, skip_nonfinite=True)
    layer(spoiled())
    assert "skip_nonfinite=True" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.num_batches_skipped == 1
    assert list(layer.state_dict()) == list(torch.nn.BatchNorm1d(3).state_dict())
    assert layer.to(torch.float64).num_batches_skipped.dtype == torch.int64
    layer.reset_running_stats()
    assert layer.num_batches_skipped == 0
    layer.skip_nonfinite = False
    assert layer.num_batches_skipped is None
    with pytest.raises(ValueError, match=r"^skip_nonfinite: expected False"):
        bnext.torch.BatchNorm1d(3, track_running_stats=False, skip_nonfinite=True)


def test_convert_and_revert():
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 3, 1), torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    keys = list(model.state_dict())
    bnext.torch.convert(model, fuse=True, skip_nonfinite=True)
    before = running_of(model[1])
    model(spoiled()).nansum().backward()
    assert_same(before, running_of(model[1]))
    assert model[1].num_batches_skipped == 1
    assert list(model.state_dict()) == keys
    bnext.torch.revert(model)
    assert type(model[1]) is torch.nn.BatchNorm1d
    assert [name for name, _ in model[1].named_buffers()] == list(NAMES)


def test_a_pass_that_autograd_repeats_is_not_counted_again():
    layer = bnext.torch.BatchNorm1d(3, skip_nonfinite=True)
    checkpoint(layer, batch_of().requires_grad_(), use_reentrant=False).sum().backward()
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 0)
    checkpoint(layer, spoiled().requires_grad_(), use_reentrant=False).nansum().backward()
    assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)


@pytest.mark.parametrize("shared", [False, True])
def test_members_of_a_group_skip_together(shared):
    group = new_group(2)
    one = bnext.torch.SyncBatchNorm(3, process_group=group, skip_nonfinite=True)
    layers = [one, one if shared else copy.deepcopy(one)]
    before = running_of(one)
    group.run(lambda rank, shard: layers[rank](shard), torch.tensor_split(spoiled(), 2))
    for layer in layers:
        assert_same(before, running_of(layer))
        assert layer.num_batches_skipped == 1
    group.run(lambda rank, shard: layers[rank](shard), torch.tensor_split(batch_of(), 2))
    assert all(layer.num_batches_tracked == 1 for layer in layers)


def test_a_layer_that_is_traced_by_itself_is_refused():
    with pytest.raises(TypeError, match=r"^input: expected a tensor"):
        torch.fx.symbolic_trace(bnext.torch.BatchNorm1d(3, skip_nonfinite=True))
