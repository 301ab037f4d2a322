"""convert and revert of classes that somebody has derived from PyTorch's layers."""

import copy
import io
import pickle
import re

import pytest

import bnext

from .known_forms import Activated
from .support import assert_close, torch

from bnext.torch import classes  # isort: skip - of which there is nothing without PyTorch

convert, revert = bnext.torch.convert, bnext.torch.revert
F = torch.nn.functional
told_of = []


class Defaults(torch.nn.BatchNorm2d):
    """Other defaults, another attribute and method, and nothing else."""

    def __init__(self, features):
        super().__init__(features, eps=1e-3, momentum=0.03)
        self.note = "mine"

    def doubled(self):
        return 2 * self.num_features


class Followed(torch.nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 3 - 1


class FollowedTwice(Followed):
    def forward(self, input):
        return super().forward(input).relu()


class Mixin:
    def forward(self, input):
        return super().forward(input).sigmoid()


class Mixed(Mixin, torch.nn.BatchNorm2d):
    def __init_subclass__(cls):
        raise AssertionError("a class of the user's is derived from")


class AnyRank(torch.nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input):
        pass


class Wrapped(torch.nn.BatchNorm2d):
    @torch.no_grad()
    def forward(self, input):
        return super().forward(input)


class Described(torch.nn.BatchNorm2d):
    def extra_repr(self):
        return "mine"


class Spread(torch.nn.SyncBatchNorm):
    def forward(self, input):
        return super().forward(input).relu()


class OfOurs(bnext.torch.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) + 1


class ByName(torch.nn.BatchNorm2d):
    def forward(self, x):
        return torch.nn.BatchNorm2d.forward(self, x)


KINDS = [
    Defaults, Followed, FollowedTwice, Mixed, AnyRank, Wrapped, Described, Spread, OfOurs, ByName,
]  # fmt: skip


class Itself(torch.nn.BatchNorm2d):
    """Calls the function as PyTorch's forward does, and adds to it."""

    def forward(self, x):
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps,
        )  # fmt: skip
        return y.relu()


class ActivatedTwice(Activated):
    def forward(self, x):
        return super().forward(x) * 2


EXCHANGED = [*KINDS, Activated, ActivatedTwice]


class Renewed(Activated):
    """A later version of it, which does something more."""

    def forward(self, x):
        x = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.1, self.eps)
        return self.act(self.drop(x)).clamp(0, 1)


def steps(layer, x):
    """Results of training and of evaluation, and the state after them."""
    leaf = x.clone().requires_grad_()
    y = layer.train()(leaf)
    if y.requires_grad:
        y.square().sum().backward()
    return [y, leaf.grad, layer.eval()(x), *layer.state_dict().values()]


def assert_same(ours, theirs, x):
    for mine, expected in zip(steps(ours, x), steps(theirs, x), strict=True):
        assert_close(mine, expected, "step", 20.0)


@pytest.mark.parametrize(
    "kind", [*KINDS, Activated, ActivatedTwice], ids=lambda kind: kind.__name__
)
def test_convert_exchanges_subclasses(kind, kernel_calls):
    layer = kind(4)
    reference = copy.deepcopy(layer)
    attributes = dict(vars(layer))
    assert convert(layer) is layer
    assert isinstance(layer, kind)
    assert classes.is_ours(layer)
    assert type(layer).__name__ == kind.__name__
    assert type(layer).__doc__ == kind.__doc__
    assert "kernels=bnext" in repr(layer)
    assert vars(layer) == attributes
    x = torch.randn(5, 4, 3, 3)
    assert_same(layer, reference, x)
    assert kernel_calls["forward"] >= 1
    assert kernel_calls["inference"] >= 1
    converted = type(layer)
    assert type(convert(layer)) is converted
    assert type(convert(kind(4))) is converted
    assert type(revert(layer)) is kind
    assert set(vars(layer)) == set(attributes)
    assert_same(layer, reference, x)


@pytest.mark.parametrize(
    "kind", [*KINDS, Activated, ActivatedTwice], ids=lambda kind: kind.__name__
)
def test_convert_makes_subclasses_synchronized(kind):
    group = bnext.sync.ThreadGroup(1)
    layer = kind(4)
    reference = copy.deepcopy(layer)
    before = set(vars(layer))
    convert(layer, sync=group)
    assert isinstance(layer, kind)
    assert isinstance(layer, bnext.torch.SyncBatchNorm)
    assert layer.process_group is group
    x = torch.randn(5, 4, 3, 3)
    with group.member(0):
        assert_same(layer, reference, x)
    converted = type(layer)
    assert type(convert(layer, sync=bnext.sync.ThreadGroup(2))) is converted
    layer.train()
    layer.process_group = bnext.sync.ThreadGroup(2, timeout=0.05)
    with pytest.raises(bnext.sync.GroupError), layer.process_group.member(0):
        layer(x)
    assert type(revert(layer)) is kind
    assert set(vars(layer)) == before
    assert_same(layer, reference, x)


@pytest.mark.parametrize("sync", [None, True])
@pytest.mark.parametrize(
    "kind", [*KINDS, Activated, ActivatedTwice], ids=lambda kind: kind.__name__
)
def test_converted_subclasses_are_copied_and_saved(kind, sync):
    layer = kind(4)
    convert(layer, sync)
    file = io.BytesIO()
    torch.save(torch.nn.Sequential(layer), file)
    file.seek(0)
    copies = [
        copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False)[0],
    ]  # fmt: skip
    x = torch.randn(5, 4, 3, 3)
    expected = steps(copy.deepcopy(layer), x)
    for other in copies:
        assert type(other) is type(layer)
        assert list(other.state_dict()) == list(layer.state_dict())
        assert set(vars(other)) == set(vars(layer))
        for actual, value in zip(steps(copy.deepcopy(other), x), expected, strict=True):
            assert actual is value is None or torch.equal(actual, value)
        assert type(revert(other)) is kind
    plain = kind(4)
    assert list(plain.state_dict()) == list(layer.state_dict())
    plain.load_state_dict(layer.state_dict(), strict=True)


def test_saved_layers_that_have_no_counterpart_any_more(monkeypatch):
    data = pickle.dumps(convert(Activated(4)))
    monkeypatch.setattr(classes, "form_of", lambda kind: None)
    monkeypatch.setattr(classes, "_MADE", {})
    with pytest.warns(bnext.torch.ConversionWarning, match="Activated stays as it is: Activated"):
        layer = pickle.loads(data)
    assert type(layer) is Activated


def test_subclasses_of_ours_get_their_group_back():
    class Spread(bnext.torch.SyncBatchNorm):
        pass

    own, other = bnext.sync.ThreadGroup(1), bnext.sync.ThreadGroup(1)
    layer = convert(Spread(4, process_group=own), sync=other)
    assert (type(layer), layer.process_group) == (Spread, other)
    assert (type(revert(layer)), layer.process_group) == (Spread, own)
    assert "_was" not in vars(layer)


def test_convert_keeps_what_a_subclass_has():
    layer = convert(Defaults(4))
    assert (layer.eps, layer.momentum, layer.note, layer.doubled()) == (1e-3, 0.03, "mine", 8)
    assert repr(convert(Described(4))) == "Described(mine, kernels=bnext)"
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.randn(4, 4))
    assert convert(AnyRank(4))(torch.randn(5, 4)).shape == (5, 4)
    assert isinstance(convert(Spread(4)), torch.nn.SyncBatchNorm)


# --- what stays, and is told ----------------------------------------------------------------------


def on_the_object(layer):
    layer.forward = lambda x: torch.nn.BatchNorm2d.forward(layer, x)
    return layer


LEFT = {
    "function": (lambda: Itself(4), "Itself.forward does not call super"),
    "object": (lambda: on_the_object(torch.nn.BatchNorm2d(4)), "its forward was set on the object"),
    "form": (lambda: Renewed(4), "Renewed.forward .* is of no known form"),
}


@pytest.mark.parametrize("sync", [None, True])
@pytest.mark.parametrize("case", LEFT)
def test_convert_tells_of_layers_that_stay(case, sync):
    new, reason = LEFT[case]
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Sequential(new(), new()))
    kind = type(model[1][0])
    with pytest.warns(bnext.torch.ConversionWarning) as said:
        convert(model, sync)
    assert len(said) == 1
    assert said[0].filename == __file__
    text = str(said[0].message)
    assert text.startswith("convert: 2 layers of batch normalization stay PyTorch's\n  2 x ")
    assert re.search(reason, text)
    assert "1.0, 1.1" in text
    assert "bnext.torch.report(model)" in text
    assert type(model[1][0]) is kind
    assert classes.is_ours(model[0])


def test_convert_says_nothing_where_nothing_stays(recwarn):
    convert(torch.nn.Sequential(Defaults(4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)))
    assert not recwarn


def test_layers_whose_class_cannot_be_derived_from_stay():
    class Once(type):
        def __new__(cls, name, bases, body, **more):
            if name in told_of:
                raise ValueError(f"there is a {name} already")
            told_of.append(name)
            return super().__new__(cls, name, bases, body)

    class Registered(torch.nn.BatchNorm2d, metaclass=Once):
        pass

    layer = Registered(4)
    with pytest.warns(bnext.torch.ConversionWarning, match="there is a Registered already"):
        convert(layer)
    assert type(layer) is Registered


@pytest.mark.parametrize("sync", [None, True])
@pytest.mark.parametrize("function", [convert, revert])
def test_convert_changes_all_or_nothing(function, sync):
    class Refusing(torch.nn.BatchNorm2d):
        refuses = False

        def __setattr__(self, name, value):
            if name == "__class__" and self.refuses:
                raise RuntimeError("stays")
            super().__setattr__(name, value)

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), Defaults(4), Refusing(4), Followed(4))
    if function is revert:
        convert(model, sync)
    Refusing.refuses = True
    before = [(type(module), dict(vars(module))) for module in model]
    with pytest.raises(RuntimeError, match="stays"):
        convert(model, sync) if function is convert else revert(model)
    assert [(type(module), dict(vars(module))) for module in model] == before


# --- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", EXCHANGED, ids=lambda kind: kind.__name__)
def test_converted_subclasses_are_compiled(kind, training):
    layer = convert(kind(4)).train(training)
    reference = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(5, 4, 3, 3)
    assert_close(compiled(x), reference(x), "y", 20.0)
    for name, value in reference.state_dict().items():
        assert_close(layer.state_dict()[name], value, name, 1.0)


def test_classes_of_known_form_are_one_node():
    model = convert(torch.nn.Sequential(Activated(4)))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.randn(5, 4, 3, 3)
    assert_close(traced(x), model(x), "y", 20.0)
