"""bnext.torch.fold: whole models without their batch normalization."""

import copy

import pytest

import bnext

from .architectures import ARCHITECTURES
from .known_forms import Activated
from .support import assert_close, layers, torch

nn = torch.nn
fold = bnext.torch.fold

# Layers whose input is no result of a convolution or a linear layer.
LEFT = {"dense": 3, "preactivated": 1}


def trained(model, shape):
    """Statistics and parameters that are no defaults."""
    for module in model.modules():
        if hasattr(module, "running_mean") and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    for _ in range(3):
        model(torch.randn(shape, dtype=next(model.parameters()).dtype) * 2 + 1)
    return model


@pytest.mark.parametrize("way", ["torch.nn", "bnext.torch", "fused"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_folded(name, way):
    build, shape, *_ = ARCHITECTURES[name]
    model = build().double()
    if way != "torch.nn":
        bnext.torch.convert(model, fuse=way == "fused")
    trained(model, shape)
    before, kinds = copy.deepcopy(model.state_dict()), [type(each) for each in model.modules()]
    done = fold(model)
    assert len(done.left) == LEFT.get(name, 0), str(done)
    count = sum(hasattr(each, "running_mean") for each in model.modules())
    assert len(done.folded) == count - len(done.left) > 0
    assert not any(
        hasattr(done.model.get_submodule(each.name), "running_mean") for each in done.folded
    )
    x = torch.randn(shape).double()
    torch.testing.assert_close(done.model(x), model.eval()(x))
    assert [type(each) for each in model.modules()] == kinds
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not done.model.training


CASES = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), "BatchNorm1d", (5, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), "BatchNorm2d", (5, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, padding=1), "BatchNorm3d", (2, 4, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), "BatchNorm2d", (5, 4, 5, 5)),
    "transposed in groups": (
        lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), "BatchNorm1d", (5, 4, 5),
    ),
    "linear": (lambda: nn.Linear(4, 6), "BatchNorm1d", (5, 4)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_before_is_folded(case, options, dtype):
    build, name, shape = CASES[case]
    for norm in layers(name, 6, **options):
        model = nn.Sequential(build(), norm).to(dtype)
        done = fold(model)
        assert [(each.name, each.into) for each in done.folded] == [("1", "0")]
        assert {each.dtype for each in done.model.state_dict().values()} == {dtype}
        x = torch.randn(shape).to(dtype)
        assert_close(done.model(x), model.eval()(x), "y", 30.0)


def test_own_activations_stay_when_folded():
    ours = bnext.torch.BatchNorm2d(6, activation="leaky_relu", negative_slope=0.3)
    for norm in (ours, Activated(6, nn.ReLU()), bnext.torch.convert(Activated(6, nn.ELU()))):
        model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), norm), (5, 4, 7, 7)).eval()
        done = fold(model)
        assert len(done.folded) == 1
        x = torch.randn(5, 4, 7, 7)
        assert_close(done.model(x), model(x), "y", 30.0)


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class Given(nn.Module):
    def __init__(self, forward, conv=None, norm=None):
        super().__init__()
        self.conv, self.bn = conv or nn.Conv2d(3, 3, 1), norm or nn.BatchNorm2d(3)
        self.other, self.given = nn.BatchNorm2d(3), (forward,)

    def forward(self, x):
        return self.given[0](self, x)


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def shared():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.ReLU()))


def tied():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    return model


def forward(m, x):
    return m.bn(m.conv(x))


SKIPPED = {
    "the input": (lambda: Given(lambda m, x: m.bn(x)), "what it gets is not the result"),
    "a sum": (lambda: Given(lambda m, x: m.bn(m.conv(x) + x)), "what it gets is not the result"),
    "two users": (
        lambda: Given(lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x))), "goes elsewhere as well",
    ),
    "twice": (lambda: Given(lambda m, x: m.bn(m.conv(m.bn(x)))), "it is called more than once"),
    "conv twice": (lambda: Given(lambda m, x: m.bn(m.conv(m.conv(x)))), "before it is called more"),
    "values": (lambda: Given(lambda m, x: forward(m, x) if x.sum() > 0 else x), "Given: "),
    "a subclass": (lambda: Given(forward, norm=Own(3)), "Own, may do more than normalize"),
    "untracked": (
        lambda: Given(forward, norm=nn.BatchNorm2d(3, track_running_stats=False)),
        "it has no running statistics",
    ),
    "hooks": (lambda: Given(forward, norm=hooked(nn.BatchNorm2d(3))), "it has hooks"),
    "hooks before": (lambda: Given(forward, conv=hooked(nn.Conv2d(3, 3, 1))), "or has hooks"),
    "parametrized": (
        lambda: Given(forward, nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))),
        "is parametrized",
    ),
    "pooling": (lambda: Given(forward, conv=nn.MaxPool2d(1)), "behind MaxPool2d"),
    "shared": (shared, "used in several places"),
    "tied": (tied, "used in several places"),
}  # fmt: skip


@pytest.mark.parametrize("case", SKIPPED)
def test_layers_that_are_not_folded_are_told(case):
    build, reason = SKIPPED[case]
    model = build()
    done = fold(model)
    assert reason in str({each.name: each.reason for each in done.left})
    assert not done.folded
    assert reason in str(done)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(done.model(x), model.eval()(x))


def test_folded_linear_layers_refuse_what_they_would_normalize_by_another_axis():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))
    with pytest.raises(ValueError, match=r"expected 2D input \(N, C\)"):
        fold(model).model(torch.randn(2, 6, 3))


def test_fold_takes_modules():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        fold(3)
    assert str(fold(nn.ReLU())) == "0 of 0 layers of batch normalization are folded"
