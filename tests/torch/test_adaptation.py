"""bnext.torch.adapt: blended statistics, what trains, and everything back as it was."""

import copy
import math

import pytest

import bnext

from .support import torch


def model_of(**options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Dropout(0.5),
        torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.BatchNorm1d(5),
    )  # fmt: skip
    bnext.torch.convert(model, **options)
    for seed in range(3):
        model(batch_of(seed))
    return model


def batch_of(seed=0, examples=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 2, 2, 2, generator=generator) * 2 + 1


@torch.no_grad()
def expected_of(model, x, prior):
    """The model's output by Schneider's formula, with PyTorch's functions."""
    for layer in model:
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            axes = [axis for axis in range(x.dim()) if axis != 1]
            var, mean = torch.var_mean(x, axes, correction=0)
            share = 0.0 if math.isinf(prior) else len(x) / (len(x) + prior)
            mean = layer.running_mean * (1 - share) + mean * share
            var = layer.running_var * (1 - share) + var * share
            x = torch.nn.functional.batch_norm(x, mean, var, layer.weight, layer.bias)
        elif not isinstance(layer, torch.nn.Dropout):
            x = layer(x)
    return x


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("prior", [0, 4, 16.5, math.inf])
def test_layers_normalize_by_blended_statistics(prior, fuse):
    model = model_of(fuse=fuse)
    before = copy.deepcopy(model.state_dict())
    plain = copy.deepcopy(model).eval()(batch_of(7))
    with bnext.torch.adapt(model, prior):
        y = model(batch_of(7))
        torch.testing.assert_close(y, expected_of(model, batch_of(7), prior))
        assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(module.training for module in model.modules())
    assert torch.equal(model.eval()(batch_of(7)), plain)
    if math.isinf(prior):
        torch.testing.assert_close(y, plain)


def test_one_example():
    model = model_of()
    with bnext.torch.adapt(model, prior=16):
        x = batch_of(3, examples=1)
        torch.testing.assert_close(model(x), expected_of(model, x, 16))
    with bnext.torch.adapt(model, prior=0), pytest.raises(ValueError, match="more than 1 value"):
        model(x)


def test_only_affine_parameters_train():
    model = model_of()
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    source = copy.deepcopy(model.state_dict())
    adaptation = bnext.torch.adapt(model, prior=0, train="affine")
    assert list(adaptation.trained) == ["1.weight", "1.bias", "6.weight", "6.bias"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(adaptation.trained)
    optimizer = torch.optim.SGD(adaptation.parameters(), lr=0.5)

    def entropy():
        y = model(batch_of(9))
        return -(y.softmax(1) * y.log_softmax(1)).sum(1).mean()

    first = entropy()
    for _ in range(5):
        loss = entropy()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert entropy() < first
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, source[n])}
    assert changed == set(adaptation.trained)
    text = str(adaptation)
    assert text.startswith("2 layers of Sequential normalize by the statistics of the batch")
    assert "4 parameters with 16 values train, and no others" in text
    adaptation.close()
    adaptation.close()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert str(adaptation).endswith("closed")
    assert not torch.equal(model[1].weight, source["1.weight"])
    adaptation.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source[name])


def test_a_snapshot_in_between():
    model = model_of()
    with bnext.torch.adapt(model, train="affine") as adaptation, torch.no_grad():
        model[1].weight.fill_(2)
        adaptation.snapshot()
        model[1].weight.fill_(3)
        adaptation.restore()
    assert (model[1].weight == 2).all()


def test_gradients_go_through_the_batch_for_prior_0():
    layer = bnext.torch.BatchNorm1d(3, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    with bnext.torch.adapt(layer, prior=0):
        assert torch.autograd.gradcheck(layer, [x])


def test_compiled():
    torch.compiler.reset()
    model = model_of()
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    with bnext.torch.adapt(model, prior=4):
        torch.testing.assert_close(call(batch_of(7)), expected_of(model, batch_of(7), 4))


def test_ghosts_come_back():
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=2)
    with bnext.torch.adapt(layer):
        assert layer.ghost_batch_size is None  # which calls now do nothing of
    assert layer.ghost_batch_size == 2


@pytest.mark.parametrize("size", [None, 4])
def test_ghosts_that_are_set_meanwhile_do_not_end_it(size):
    layer = bnext.torch.BatchNorm1d(3, ghost_batch_size=2)
    x = torch.randn(8, 3)
    with bnext.torch.adapt(layer, prior=4):
        blended = layer(x)
        layer.ghost_batch_size = size
        assert torch.equal(layer(x), blended)
        with pytest.raises(RuntimeError, match=r"^model: expected one that is not adapted"):
            bnext.torch.adapt(layer)
    assert layer.ghost_batch_size == size
    assert not torch.allclose(layer(x), blended)


def test_errors():
    model = model_of()
    with pytest.raises(TypeError, match=r"^model: expected"):
        bnext.torch.adapt(3)
    with pytest.raises(ValueError, match=r"^prior: expected a number of examples >= 0, got -1"):
        bnext.torch.adapt(model, -1)
    with pytest.raises(ValueError, match=r"^train: expected 'affine' or None, got 'all'"):
        bnext.torch.adapt(model, train="all")
    with pytest.raises(ValueError, match=r"^model: expected a layer with running statistics"):
        bnext.torch.adapt(torch.nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"^model: expected layers of bnext.torch .* BatchNorm1d at"
    ):
        bnext.torch.adapt(torch.nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"^train: expected None for layers without parameters"):
        bnext.torch.adapt(bnext.torch.BatchNorm1d(3, affine=False), train="affine")
    assert all(module.training for module in model.modules())
    with bnext.torch.adapt(model), pytest.raises(RuntimeError, match=r"^model: expected one that"):
        bnext.torch.adapt(model)
