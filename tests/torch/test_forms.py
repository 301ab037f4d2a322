"""Forward passes of known form are found by what they do; frozen layers are exchanged."""

import copy
import pickle

import pytest

import bnext

from .known_forms import FROZEN, Activated, ByType, Frozen, FrozenActivated, Split
from .support import assert_close, torch

from bnext.torch.forms import Form, form_of, looks_frozen  # isort: skip - needs PyTorch

nn, functional = torch.nn, torch.nn.functional
convert, report, revert = bnext.torch.convert, bnext.torch.report, bnext.torch.revert


class Otherwise(Activated):
    def forward(self, x):
        return self.drop(self.act(functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum or 0.0, self.eps,
        )))  # fmt: skip


class Clamped(Activated):
    def forward(self, x):
        return Activated.forward(self, x).clamp(max=6.0)


class Counting(Activated):
    def forward(self, x):
        if self.calls:
            return x
        return Activated.forward(self, x)


class BySize(Activated):
    def forward(self, x):
        return x if x.shape[0] == 1 else Activated.forward(self, x)


class Doubled(Frozen):
    def forward(self, x):
        return super().forward(x) * 2


class ByMode(Frozen):
    def forward(self, x):
        return super().forward(x) if self.training else x


class Swapped(Frozen):
    def forward(self, x):
        scale, shift = self.constants(self.eps)
        return x * shift + scale


class ByValue(Frozen):
    def forward(self, x):
        return x if bool(x.sum() == 0) else super().forward(x)


class InPlace(Frozen):
    def forward(self, x):
        scale, shift = self.constants(self.eps)
        return x.mul_(scale).add_(shift)


KNOWN = {
    Activated: Form(False, None, ("drop", "act")),
    Frozen: Form(True, None, ()),
    FROZEN[1]: Form(True, 1e-3, ()),
    FROZEN[2]: Form(True, None, ()),
    FrozenActivated: Form(True, None, ("drop", "act")),
}
UNKNOWN = [Otherwise, Clamped, Counting, BySize, Doubled, ByMode, Swapped, ByValue, InPlace]


@pytest.mark.parametrize("kind", KNOWN, ids=lambda kind: kind.__name__)
def test_forms_are_known_by_what_they_do(kind):
    assert form_of(kind) == KNOWN[kind]


@pytest.mark.parametrize("kind", UNKNOWN, ids=lambda kind: kind.__name__)
def test_forms_that_do_something_else_are_not_known(kind):
    assert form_of(kind) is None


def test_frozen_layers_have_four_buffers_and_are_no_layers_of_pytorch_s():
    assert looks_frozen(Frozen(3))
    others = [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, True, True), nn.Conv2d(3, 3, 1), ByType(3, 2)]
    assert not any(map(looks_frozen, others))


# --- frozen layers --------------------------------------------------------------------------------


def step(layer, x):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.square().sum().backward()
    return y, leaf.grad, layer(x), layer.eval()(x)


@pytest.mark.parametrize("kind", FROZEN, ids=lambda kind: kind.__name__)
def test_frozen_layers_are_exchanged(kind, kernel_calls):
    layer = kind(4)
    reference, state = copy.deepcopy(layer), list(layer.state_dict())
    assert convert(layer) is layer
    assert isinstance(layer, kind)
    assert list(layer.state_dict()) == state
    (listed,) = report(layer).exchanged
    assert listed.kind.endswith(kind.__name__)
    assert not report(layer).left
    x = torch.randn(5, 4, 3, 3)
    for actual, expected in zip(step(layer, x), step(reference, x), strict=True):
        assert_close(actual, expected, kind.__name__, 20.0)
    assert kernel_calls["inference"] == 3
    assert kernel_calls["backward_constant"] == 1
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))
    assert type(revert(layer)) is kind
    assert_close(layer(x), reference.eval()(x), "reverted", 20.0)


@pytest.mark.parametrize("kind", [Doubled, ByMode, Swapped], ids=lambda kind: kind.__name__)
def test_frozen_layers_of_another_form_stay_and_are_told(kind):
    model = nn.Sequential(kind(4))
    with pytest.warns(bnext.torch.ConversionWarning, match="no frozen layer of a known form"):
        convert(model)
    assert type(model[0]) is kind
    assert report(model).left[0].name == "0"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_frozen_layers_promote_as_they_did(dtype):
    """Their buffers are float32, and a product with them is of the wider dtype."""
    layer = Frozen(4)
    reference = copy.deepcopy(layer)
    x = torch.randn(5, 4, 3, 3).to(dtype)
    actual = convert(layer)(x)
    assert torch.equal(actual, reference(x))
    assert actual.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(layer(x[0]), reference(x[0])), "without the axis of examples"


def test_frozen_layers_keep_no_input():
    layer = convert(Frozen(4))
    kept = []
    x = torch.randn(5, 4, 3, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x)
    assert x.shape not in kept


def test_frozen_layers_are_not_synchronized():
    model = nn.Sequential(nn.BatchNorm2d(4), Frozen(4))
    convert(model, sync=bnext.sync.ThreadGroup(2))
    assert [each.synchronized for each in report(model).exchanged] == [True, False]
    assert not hasattr(model[1], "process_group")
    assert [type(each) for each in revert(model)] == [nn.BatchNorm2d, Frozen]


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("kind", FROZEN[:2], ids=lambda kind: kind.__name__)
def test_frozen_layers_are_traced_compiled_and_exported(kind):
    model = nn.Sequential(kind(4), nn.ReLU())
    reference = copy.deepcopy(model)
    convert(model)
    x = torch.randn(5, 4, 3, 3)
    for way in (
        torch.fx.symbolic_trace(model), torch.compile(model, backend="eager", fullgraph=True),
        torch.export.export(model, (x,)).module(), torch.jit.script(model),
    ):  # fmt: skip
        assert_close(way(x), reference(x), "y", 20.0)


# --- fused ----------------------------------------------------------------------------------------


class Block(nn.Module):
    """As torchvision's ResNet of a detector: frozen layers, addition, ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(4, 4, 1), Frozen(4), FROZEN[1](4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv(x)))
        y = self.bn2(y)
        y += x
        return self.relu(y)


@pytest.mark.parametrize(
    ("build", "fused"),
    [
        (Block, {"bn1": ("relu", False), "bn2": ("relu", True)}),
        (lambda: nn.Sequential(FrozenActivated(4)), {"0": ("relu", False)}),
        (lambda: nn.Sequential(Activated(4)), {"0": ("leaky_relu", False)}),
        (lambda: nn.Sequential(Activated(4, nn.SiLU())), {"0": ("silu", False)}),
        (lambda: nn.Sequential(Activated(4, nn.ELU())), {}),
        (lambda: nn.Sequential(Activated(4, drop=nn.Dropout(0.0))), {}),
    ],
    ids=["block", "frozen", "activated", "silu", "elu", "drop"],
)
@pytest.mark.parametrize("training", [True, False])
def test_own_activations_are_fused(build, fused, training):
    model = build().train(training)
    reference = copy.deepcopy(model)
    convert(model, fuse=True)
    listed = report(model)
    assert {each.name: (each.activation, each.residual) for each in listed.fused} == fused
    x = torch.randn(5, 4, 3, 3)
    for _ in range(2):
        for actual, expected in zip(step(model, x), step(reference, x), strict=True):
            assert_close(actual, expected, "y", 50.0)
    for actual, expected in zip(model.buffers(), reference.buffers(), strict=True):
        assert_close(actual, expected, "buffer", 1.0)
    revert(model)
    assert not any({"_acts", "_fusion", "_apart"} & {*vars(each)} for each in model.modules())


def test_own_activations_with_hooks_or_exchanged_run_by_themselves():
    model = convert(nn.Sequential(Activated(4, nn.ReLU())), fuse=True)
    x = torch.randn(5, 4, 3, 3)
    seen = []
    handle = model[0].act.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    assert seen == [1]
    handle.remove()
    model(x)
    assert seen == [1]
    model[0].act = nn.ELU()
    assert (model(x) < 0).any()
    assert not report(model).fused


def test_report_names_layers_by_type_and_lists_wrapped_ones_once():
    class BatchNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.BatchNorm1d(3)

    model = convert(nn.Sequential(ByType(3, 2), BatchNorm(), Split(3)))
    ByType.__name__ = "HeteroBatchNorm"
    try:
        listed = report(model)
    finally:
        ByType.__name__ = "ByType"
    assert [each.name for each in listed.exchanged] == ["1.module", "2", "2.aux_bn.0"]
    assert [(each.name, each.reason.partition(",")[0]) for each in listed.left] == [
        ("0", "its statistics or parameters are a table")
    ]
