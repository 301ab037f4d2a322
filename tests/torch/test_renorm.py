"""Batch renormalization in bnext.torch: bnext's layers, and autograd with r and d held."""

import copy
import importlib
import pickle

import numpy as np
import pytest

import bnext

from .support import torch

checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint
SHAPES = {(6, 3): "BatchRenorm1d", (3, 3, 2, 4): "BatchRenorm2d", (2, 3, 2, 3, 2): "BatchRenorm3d"}
LIMITS = {"r_max": bnext.Ramp(1, 2, 0, 3), "d_max": 0.7}
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def batch_of(shape, dtype=torch.float64):
    return (torch.randn(shape) * 2 + 1).to(dtype)


def pair(shape, **options):
    name = SHAPES[shape]
    ours = getattr(bnext.torch, name)(3, dtype=torch.float64, **LIMITS, **options)
    theirs = getattr(bnext, name)(3, dtype=np.float64, **LIMITS, **options)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_does_what_the_layer_for_numpy_does(shape, activation, momentum):
    torch.manual_seed(0)
    ours, theirs = pair(shape, activation=activation, momentum=momentum)
    close = {"rtol": 1e-11, "atol": 1e-11}
    for _ in range(4):
        x, dy = batch_of(shape).requires_grad_(), batch_of(shape)
        y = ours(x)
        np.testing.assert_allclose(y.detach(), theirs(x.detach().numpy()), **close)
        dx, dweight, dbias = torch.autograd.grad(y, (x, ours.weight, ours.bias), dy)
        np.testing.assert_allclose(dx, theirs.backward(dy.numpy()), **close)
        np.testing.assert_allclose(dweight, theirs.weight_grad, **close)
        np.testing.assert_allclose(dbias, theirs.bias_grad, **close)
        for name in RUNNING:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), **close)
    x = batch_of(shape)
    np.testing.assert_allclose(ours.eval()(x).detach(), theirs.eval()(x.numpy()), **close)


def test_second_derivatives_hold_r_and_d():
    torch.manual_seed(1)
    layer = bnext.torch.BatchRenorm1d(3, r_max=1, d_max=0, dtype=torch.float64)
    x = batch_of((5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(layer, [x])
    assert torch.autograd.gradgradcheck(layer, [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled(dtype):
    torch.compiler.reset()
    torch.manual_seed(2)
    layer = bnext.torch.BatchRenorm1d(3, r_max=bnext.Ramp(1, 2, 0, 2), skip_nonfinite=True)
    eager = copy.deepcopy(layer)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = batch_of((6, 3), dtype)
        close = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(call(x), eager(x), rtol=close, atol=close)
    x[0, 0] = float("nan")
    call(x)
    for name in RUNNING:
        torch.testing.assert_close(getattr(layer, name), getattr(eager, name))
    assert layer.num_batches_skipped == 1


def test_a_pass_that_autograd_repeats_moves_nothing():
    layer = bnext.torch.BatchRenorm1d(3)
    once = copy.deepcopy(layer)
    x = batch_of((6, 3), torch.float32)
    once(x)
    checkpoint(layer, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
    for name in RUNNING:
        assert torch.equal(getattr(layer, name), getattr(once, name))


def test_the_layer():
    layer = bnext.torch.BatchRenorm2d(3, affine=False)
    assert isinstance(layer, torch.nn.BatchNorm2d)
    assert list(layer.state_dict()) == list(torch.nn.BatchNorm2d(3, affine=False).state_dict())
    assert "r_max=3.0, d_max=5.0, kernels=bnext" in repr(layer)
    assert pickle.loads(pickle.dumps(layer)).d_max == 5.0
    y = layer(batch_of((4, 3, 2, 2), torch.float32))
    assert y.shape == (4, 3, 2, 2)
    assert layer.num_batches_tracked == 1


def test_errors():
    with pytest.raises(ValueError, match=r"^r_max: expected a number >= 1, got 0.5$"):
        bnext.torch.BatchRenorm1d(3, r_max=0.5)
    layer = bnext.torch.BatchRenorm1d(3, d_max=lambda step: -1)
    with pytest.raises(ValueError, match=r"^d_max: expected a number >= 0, got -1 at step 0$"):
        layer(torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"^ghost_batch_size: expected None for BatchRenorm1d"):
        layer.ghost_batch_size = 2
    with pytest.warns(bnext.torch.ConversionWarning, match="it renormalizes"):
        bnext.torch.convert(layer, sync=bnext.sync.ThreadGroup(1))
    assert type(layer) is bnext.torch.BatchRenorm1d
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bnext.torch.BatchRenorm1d(3)(torch.randn(1, 3))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("method", ["exact", "pooled", "average"])
def test_statistics_made_anew_are_of_whole_batches(method):
    torch.manual_seed(3)
    data = [batch_of((8, 3), torch.float32) for _ in range(3)]
    found = []
    for make in (
        lambda: bnext.torch.BatchNorm1d(3),
        lambda: bnext.torch.BatchNorm1d(3, ghost_batch_size=4),
        lambda: bnext.torch.BatchRenorm1d(3),
    ):
        model = torch.nn.Sequential(make(), make())
        special = [vars(layer).get("_special") for layer in model]
        bnext.torch.update_statistics(model, data, method)
        assert [vars(layer).get("_special") for layer in model] == special
        found.append(model[1].running_var)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=0)
