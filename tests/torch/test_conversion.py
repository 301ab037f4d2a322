"""convert and revert: models keep what they have, and go back to what they were."""

import copy
import io

import pytest

import bnext

from .support import assert_close, torch

convert, revert = bnext.torch.convert, bnext.torch.revert


class Own(torch.nn.BatchNorm2d):
    """Somebody's subclass."""


def new_model():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), Own(4), torch.nn.SyncBatchNorm(4)),
        torch.nn.Unflatten(1, (4, 1)), torch.nn.BatchNorm3d(4), torch.nn.Flatten(2),
        torch.nn.BatchNorm1d(4), torch.nn.InstanceNorm1d(4), torch.nn.LayerNorm(16),
    )  # fmt: skip


def kinds(model):
    return [type(module) for module in model.modules()]


OURS = {
    torch.nn.BatchNorm1d: bnext.torch.BatchNorm1d,
    torch.nn.BatchNorm2d: bnext.torch.BatchNorm2d,
    torch.nn.BatchNorm3d: bnext.torch.BatchNorm3d,
    torch.nn.SyncBatchNorm: bnext.torch.SyncBatchNorm,
}


def assert_exchanged(model, before):
    """Every layer of batch normalization is bnext's; all the rest is as it was."""
    for module, kind in zip(model.modules(), before, strict=True):
        if kind is Own:
            assert isinstance(module, Own)
            assert isinstance(module, bnext.torch.BatchNorm2d)
        else:
            assert type(module) is OURS.get(kind, kind)


def test_convert_changes_classes_and_nothing_else():
    model = new_model()
    before, state = kinds(model), dict(model.state_dict(keep_vars=True))
    modules = list(model.modules())
    reference = copy.deepcopy(model)
    assert convert(model) is model
    assert_exchanged(model, before)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is state[name]
    x = torch.randn(5, 3, 6, 6)
    assert_close(model(x), reference(x), "y", 10.0)
    for name, value in reference.state_dict().items():
        assert_close(model.state_dict()[name], value, name, 1.0)
    assert kinds(convert(model)) == kinds(model)
    assert revert(model) is model
    assert kinds(model) == before
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in reference.modules()]
    assert repr(model) == repr(reference)
    assert_close(model(x), reference(x), "y", 1e3)
    assert kinds(revert(model)) == before


def test_convert_of_a_single_layer_and_of_one_used_twice():
    layer = torch.nn.BatchNorm1d(4)
    assert convert(layer) is layer
    assert type(layer) is bnext.torch.BatchNorm1d
    model = torch.nn.ModuleList([layer, layer, torch.nn.Sequential(layer)])
    assert type(revert(model)[2][0]) is torch.nn.BatchNorm1d


def test_convert_keeps_hooks_modes_and_optimizers():
    model = new_model()
    seen = []
    model[1].register_forward_hook(lambda module, x, y: seen.append(type(module)))
    model[1].register_full_backward_hook(lambda module, dx, dy: seen.append("backward"))
    model[1].weight.register_hook(lambda gradient: seen.append("weight"))
    model[7].eval()
    model[5].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    convert(model)
    before = model[1].weight.clone()
    model(torch.randn(5, 3, 6, 6)).square().sum().backward()
    optimizer.step()
    assert seen == [bnext.torch.BatchNorm2d, "backward", "weight"] or seen == [
        bnext.torch.BatchNorm2d, "weight", "backward",
    ]  # fmt: skip
    assert not torch.equal(model[1].weight, before)
    assert (model[7].training, model[1].training) == (False, True)
    assert model[7].num_batches_tracked == 0
    assert model[5].weight.grad is None
    revert(model)
    model(torch.randn(5, 3, 6, 6))
    assert seen[-1] is torch.nn.BatchNorm2d


def test_convert_to_a_group_and_back():
    group = bnext.sync.ThreadGroup(1)
    model = new_model()
    reference = copy.deepcopy(model)
    before = kinds(model)
    convert(model, sync=group)
    ours = [each for each in model.modules() if isinstance(each, bnext.torch.SyncBatchNorm)]
    assert len(ours) == 5
    assert isinstance(model[3][1], Own)
    assert all(module.process_group is group for module in ours)
    x = torch.randn(5, 3, 6, 6)
    with group.member(0):
        assert_close(model(x), reference(x), "y", 10.0)
    for name, value in reference.state_dict().items():
        assert_close(model.state_dict()[name], value, name, 1.0)
    other = bnext.sync.ThreadGroup(2)
    convert(model, sync=other)
    assert all(module.process_group is other for module in ours)
    converted = kinds(model)
    assert kinds(convert(model)) == converted
    assert kinds(revert(model)) == before
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in reference.modules()]
    assert model[3][2].process_group is None, "that which it had"


def test_convert_leaves_the_rank_to_the_layer():
    """A synchronized layer takes input of any rank, as torch.nn's does."""
    model = convert(torch.nn.Sequential(torch.nn.BatchNorm2d(4)), sync=True)
    x = torch.randn(5, 4)
    assert_close(model(x), torch.nn.BatchNorm1d(4)(x), "y")
    with pytest.raises(ValueError, match="expected 4D input"):
        revert(model)(x)


def test_convert_to_the_default_group_without_one():
    """Nobody to wait for: the layer is by itself."""
    model = convert(new_model(), sync=True)
    reference = new_model()
    x = torch.randn(5, 3, 6, 6)
    assert_close(model(x), reference(x), "y", 10.0)


def test_revert_refuses_groups_that_torch_does_not_know():
    layer = bnext.torch.SyncBatchNorm(4, process_group=bnext.sync.ThreadGroup(1))
    model = torch.nn.Sequential(bnext.torch.BatchNorm1d(4), layer)
    text = "^model: expected layers that PyTorch has as well, got a SyncBatchNorm in <bnext.sync.T"
    with pytest.raises(ValueError, match=text):
        revert(model)
    assert type(model[0]) is bnext.torch.BatchNorm1d, "nothing was changed"
    assert type(revert(bnext.torch.SyncBatchNorm(4))) is torch.nn.SyncBatchNorm


@pytest.mark.parametrize("function", [convert, revert])
def test_convert_takes_modules(function):
    for wrong in (torch.nn.BatchNorm1d, None, torch.ones(3)):
        text = f"^model: expected a torch.nn.Module, got {type(wrong).__name__}$"
        with pytest.raises(TypeError, match=text):
            function(wrong)


@pytest.mark.parametrize("wrong", [False, 3, "gloo"])
def test_convert_takes_groups(wrong):
    text = "expected a bnext.sync group or a torch.distributed.ProcessGroup, got"
    model = new_model()
    with pytest.raises(TypeError, match=f"^sync: {text}"):
        convert(model, sync=wrong)
    assert type(model[1]) is torch.nn.BatchNorm2d
    with pytest.raises(TypeError, match=f"^process_group: {text}"):
        bnext.torch.SyncBatchNorm(4, process_group=wrong)


def test_convert_sync_batchnorm_under_torch_s_name():
    model = new_model()
    weight = model[1].weight
    converted = bnext.torch.SyncBatchNorm.convert_sync_batchnorm(model)
    ours = [module for module in converted.modules() if type(module) is bnext.torch.SyncBatchNorm]
    assert len(ours) == 5  # subclasses too, as PyTorch does
    assert converted[1].weight is weight
    single = bnext.torch.SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm1d(3))
    assert type(single) is bnext.torch.SyncBatchNorm


def test_converted_models_are_saved_and_fused():
    """State dicts and whole models; convolutions take up reverted layers."""
    model = convert(new_model()).eval()
    for module in model.modules():
        if hasattr(module, "running_mean") and module.running_mean is not None:
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(5, 3, 6, 6)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert kinds(loaded) == kinds(model)
    assert torch.equal(loaded(x), expected)
    plain = new_model().eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert_close(plain(x), expected, "y", 10.0)
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    assert_close(fused(x), model[:2](x), "y", 10.0)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_fuse_modules_after_revert():
    from torch.ao.quantization import fuse_modules

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    convert(model)(torch.randn(5, 3, 6, 6))
    revert(model).eval()
    fused = fuse_modules(model, [["0", "1", "2"]])
    x = torch.randn(5, 3, 6, 6)
    assert type(fused[1]) is torch.nn.Identity
    assert_close(fused(x), model(x), "y", 10.0)
