"""bnext.torch.freeze: constants in every mode, until unfreeze."""

import copy
import pickle

import pytest

import bnext

from .support import assert_close, buffers_of, torch

nn = torch.nn
freeze, unfreeze = bnext.torch.freeze, bnext.torch.unfreeze


def network():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model.append(nn.Sequential(nn.BatchNorm2d(2)))
    for _ in range(3):
        model(torch.randn(6, 3, 4, 4) + 1)
    return model


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_frozen_models_are_constants_in_every_mode(affine, fuse):
    model = network()
    reference = copy.deepcopy(model).eval()
    bnext.torch.convert(model, fuse=fuse)
    assert freeze(model, affine=affine) is model
    model.train()
    assert model[0].training
    assert not model[1].training
    assert model[1].weight.requires_grad is not affine
    before = buffers_of(model[1])
    x = torch.randn(6, 3, 4, 4, requires_grad=True)
    y = model(x)
    assert_close(y, reference(x), "y", 20.0)
    gradient, expected = (
        torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, reference)
    )
    assert_close(gradient, expected, "dx", 100.0)
    y.sum().backward()
    assert (model[1].weight.grad is None) == affine
    assert all(torch.equal(value, before[name]) for name, value in buffers_of(model[1]).items())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.train()[1].training
    assert unfreeze(model) is model
    assert model[1].training
    assert model[1].weight.requires_grad
    model(x)
    assert model[1].num_batches_tracked == 4


def test_unfreeze_gives_back_what_trained():
    model = bnext.torch.convert(network())
    model[1].weight.requires_grad_(False)
    freeze(freeze(model, affine=False))
    assert not any(p.requires_grad for p in model[1].parameters())
    unfreeze(freeze(model))
    assert [p.requires_grad for p in model[1].parameters()] == [False, True]
    unfreeze(model)
    assert [p.requires_grad for p in model[1].parameters()] == [False, True]
    layer = bnext.torch.BatchNorm1d(3)
    assert not freeze(layer).train().training
    assert unfreeze(layer).training
    unfreeze(freeze(model).eval())
    assert not model[1].training


def test_revert_lets_frozen_layers_follow_the_model_s_mode():
    model = bnext.torch.revert(freeze(bnext.torch.convert(network()))).train()
    assert model[1].training
    assert not {"_frozen"} & {*vars(model[1])}


def test_freeze_takes_layers_of_ours_with_statistics():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        freeze(3)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        unfreeze(3)
    with pytest.raises(ValueError, match=r"got BatchNorm2d at 1: bnext\.torch\.convert exch"):
        freeze(network())
    with pytest.raises(ValueError, match="at least one layer of batch normalization, got none"):
        freeze(nn.ReLU())
    model = nn.Sequential(bnext.torch.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    bnext.torch.convert(model)
    with pytest.raises(ValueError, match="in every layer, got none in 1"):
        freeze(model)
    assert model.train()[0].training
