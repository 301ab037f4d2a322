"""Models in which layers have neighbours of other kinds: lazy, scripted, tied, and one another."""

import copy

import pytest

import bnext

from .support import assert_close, torch

nn = torch.nn
convert, report = bnext.torch.convert, bnext.torch.report
X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(4))


# --- what is added is itself what became of a layer -----------------------------------------------


class Branches(nn.Module):
    """The activation of one layer is added to another, before or behind it."""

    def __init__(self, order):
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv, self.order = nn.Conv2d(3, 3, 1), order

    def forward(self, x):
        if self.order == "activated first":
            return self.a(self.conv(x)).relu() + self.b(x)
        if self.order == "activated last":
            y = self.b(self.conv(x))
            return y + self.a(self.conv(x)).relu()
        y = self.a(self.conv(x)).relu()
        return torch.relu(self.b(self.conv(y)) + y)


@pytest.mark.parametrize("order", ["activated first", "activated last", "chain"])
@pytest.mark.parametrize("training", [True, False])
def test_layers_add_what_other_layers_have_activated(order, training):
    torch.manual_seed(3)
    reference = Branches(order)
    model = convert(copy.deepcopy(reference), fuse=True)
    assert len(report(model).fused) == 2
    for module in (reference, model):
        module.train(training)
    assert_close(model(X), reference(X), "y", 20.0)
    with torch.no_grad():
        assert_close(model(X), reference(X), "y", 20.0)


class Tied(nn.Module):
    """Layers that share parameters, and one that is in two places."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight
        self.listed = nn.ParameterList([self.a.weight, self.a.bias])
        self.named = nn.ModuleDict({"x": self.a, "y": nn.BatchNorm2d(3)})

    def forward(self, x):
        return self.b(self.a(x)).relu() + self.named["y"](x)


@pytest.mark.parametrize("fuse", [False, True])
def test_tied_parameters_stay_tied(fuse):
    reference = Tied()
    model = convert(copy.deepcopy(reference), fuse=fuse)
    assert model.listed[0] is model.a.weight is model.b.weight
    assert model.named["x"] is model.a
    for module in (reference, model):
        module(X).square().sum().backward()
    assert_close(model.a.weight.grad, reference.a.weight.grad, "dweight", 1000.0)
    for name, value in reference.state_dict().items():
        assert_close(model.state_dict()[name], value, name, 1.0)


# --- TorchScript ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("recompute", [False, True])
def test_models_with_scripted_parts_are_fused(recompute):
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    reference = nn.Sequential(scripted, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    model = convert(copy.deepcopy(reference), fuse=True, recompute=recompute)
    listed = report(model)
    assert [each.name for each in listed.fused] == ["2"]
    assert ["TorchScript" in each.reason for each in listed.left] == [True]
    assert_close(model(X), reference(X), "y", 20.0)
    folded = bnext.torch.fold(model)
    assert [each.name for each in folded.folded] == ["2"]
    assert_close(folded.model(X), reference.eval()(X), "y", 20.0)


class Headed(nn.Module):
    def __init__(self, activation=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), bnext.torch.BatchNorm2d(4, activation=activation)
        self.head, self.last = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, x):
        return self.last(self.head(self.norm(self.conv(x)).mean((2, 3))))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_folded_models_can_be_scripted(activation):
    model = Headed(activation)
    model(X)
    folded = bnext.torch.fold(model).model
    scripted = torch.jit.script(folded)
    assert_close(scripted(X), folded(X), "y", 20.0)
    assert_close(scripted(X), model.eval()(X), "y", 20.0)
    message = "expected 2D input"
    for last in (folded.last, torch.jit.script(folded.last)):
        with pytest.raises(Exception, match=message):
            last(torch.randn(3, 4, 2))


# --- lazy layers ----------------------------------------------------------------------------------


def lazy_model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5),
        nn.LazyBatchNorm1d(),
    )  # fmt: skip


@pytest.mark.parametrize("fuse", [False, True])
def test_layers_beside_lazy_convolutions_are_exchanged(fuse):
    assert len(report(lazy_model()).left) == 2
    model = convert(lazy_model(), fuse=fuse)
    assert len(report(model).exchanged) == 2
    waiting = [each.name for each in report(model).apart]
    assert waiting == (["1", "5"] if fuse else [])
    torch.manual_seed(5)
    y = model(X)
    reference = lazy_model()
    torch.manual_seed(5)
    assert_close(y, reference(X), "y", 20.0)
    assert type(model[1]) is bnext.torch.BatchNorm2d
    assert [each.name for each in report(convert(model, fuse=True)).fused] == ["1"]


def test_lazy_layers_are_frozen_and_folded_after_their_first_call():
    model = convert(lazy_model())
    with pytest.raises(ValueError, match=r"^model: expected layers that have been called, .* at 1"):
        bnext.torch.freeze(model)
    with pytest.raises(ValueError, match=r"^model: expected layers that have been called"):
        bnext.torch.fold(model)
    model(X)
    assert len(bnext.torch.fold(model).folded) == 2
    assert not bnext.torch.freeze(model)[1].training


def test_lazy_layers_of_other_packages_are_named():
    """As a lazy table of statistics would be: nothing is known of its parameters yet."""

    class TableBatchNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.UninitializedParameter()

    listed = report(nn.Sequential(TableBatchNorm()))
    assert [each.reason for each in listed.left] == ["no subclass of PyTorch's layers"]


# --- what stays of a model that was scripted ------------------------------------------------------


def kinds(model):
    return [(name, type(module)) for name, module in model.named_modules()]


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("how", [{}, {"fuse": True}, {"fuse": True, "recompute": True}], ids=str)
def test_scripted_models_keep_their_layers(how):
    """PyTorch puts the modules that it compiles into the model that it is given."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model.append(bnext.torch.BatchNorm2d(4, activation="silu", skip_nonfinite=True))
    model.tied = model[0][1]
    model = convert(model, **how)
    before, names = kinds(model), list(model.state_dict())
    scripted = torch.jit.script(model)
    assert kinds(model) == before
    assert list(model.state_dict()) == names
    assert model.tied is model[0][1]
    assert model[1].skip_nonfinite
    assert scripted[0][1].weight is model[0][1].weight
    expected = copy.deepcopy(model)(X)
    assert_close(scripted(X), expected, "y", 20.0)
    assert int(model[0][1].num_batches_tracked) == 2, "buffers are shared, and it is called twice"
    model.eval()
    scripted.eval()
    assert_close(scripted(X), model(X), "y", 20.0)


def test_tools_leave_layers_as_they_are():
    layer = bnext.torch.BatchNorm2d(4, skip_nonfinite=True)
    from bnext.torch.conversion import as_torch

    plain = as_torch(layer)
    assert type(plain) is nn.BatchNorm2d
    assert layer.skip_nonfinite
    assert list(dict(plain.named_buffers())) == [
        "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
