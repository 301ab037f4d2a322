"""convert(model, fuse=True): what is fused, what is not and why, and that nothing else changes."""

import copy
import io
import pickle
import random

import pytest

import bnext

from .architectures import ARCHITECTURES, IMAGE, Basic, DenseLayer
from .support import outcome_of, torch

nn = torch.nn


def train(model, batches):
    """Losses of steps; gradients, and the state after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for x in batches:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": torch.stack(losses), **gradients, **model.state_dict()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-7, atol=1e-8, msg=name)


def fused(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return bnext.torch.convert(model, fuse=True)


def names_of(report):
    return [each.name for each in report.fused]


@pytest.fixture
def epilogues(monkeypatch):
    """What kernels have applied besides normalizing."""
    from bnext.torch import kernels

    seen, run = [], kernels.forward

    def forward(*arguments):
        seen.append(arguments[7] if len(arguments) > 7 else None)
        return run(*arguments)

    monkeypatch.setattr(kernels, "forward", forward)
    return seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fusion_of_architectures(name, epilogues):
    """Training and evaluation beside the model as it was; then back."""
    build, shape, count, rest = ARCHITECTURES[name]
    model = build().double()
    reference, kinds = copy.deepcopy(model), [type(each) for each in model.modules()]
    ours = fused(model)
    assert ours is model
    batches = [torch.randn(shape).double() for _ in range(3)]
    assert_same(train(ours, batches), train(reference, batches))
    report = bnext.torch.report(ours)
    assert (len(report.fused), len(report.apart)) == (count, rest), str(report)
    assert all(each.reason for each in report.apart)
    assert sum(each is not None for each in epilogues) == 3 * count
    x = torch.randn(shape).double()
    for layers in (ours.eval(), copy.deepcopy(ours)):
        torch.testing.assert_close(layers(x), reference.eval()(x))
    assert sum(each is not None for each in epilogues) == 5 * count
    assert [type(each).__name__ for each in ours.modules()] == [each.__name__ for each in kinds]
    assert bnext.torch.revert(ours) is ours
    assert [type(each) for each in ours.modules()] == kinds
    assert not any({"_fusion", "_apart"} & {*vars(each)} for each in ours.modules())
    torch.testing.assert_close(ours(x), reference(x))


def test_fusion_keeps_the_module_tree():
    model = ARCHITECTURES["residual"][0]()
    before = [(name, id(each)) for name, each in model.named_modules()]
    keys = [*model.state_dict()]
    fused(model)
    assert [(name, id(each)) for name, each in model.named_modules()] == before
    assert [*model.state_dict()] == keys
    assert isinstance(model.layer1[0], Basic)
    assert names_of(bnext.torch.report(model)) == [
        "bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2",
    ]  # fmt: skip
    assert "3 x relu: bn1" in str(bnext.torch.report(model))
    assert "2 x addition and relu" in str(bnext.torch.report(model))


def chain(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *layers)


class Forward(nn.Module):
    """A layer, an activation, and a forward pass that is given."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.bn, self.act, self.other = nn.BatchNorm2d(3), nn.ReLU(), nn.Identity()
        self.given = (forward,)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.given[0](self, x)


def used_twice(self, x):
    y = self.bn(x)
    return self.act(y) + y


def random_branch(self, x):
    y = self.bn(x)
    return self.act(y) if random.random() < 2 else y


def without_gradients(self, x):
    with torch.no_grad():
        scale = self.bn(x).relu()
    return scale * x


def checkpointed(self, x):
    run = lambda x: self.act(self.bn(x))  # noqa: E731
    return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)


def sets_attributes(self, x):
    self.latest = self.act(self.bn(x))
    return self.latest


def by_values(self, x):
    y = self.bn(x)
    return self.act(y) if x.sum() > -1e9 else y


def adds_in_place(self, x):
    y = x * 1
    y += self.bn(x)
    return self.act(y)


def adds_a_number(self, x):
    return self.act(self.bn(x) + 1.0)


def adds_itself(self, x):
    y = self.bn(x)
    return self.act(y + y)


def tensor_of_its_own(self, x):
    return self.act(self.bn(x)) * torch.linspace(0, 1, x.shape[-1] if False else 10)


def changes_its_input(self, x):
    y = self.bn(x)
    return self.act(y + x.mul_(2.0))


NOT_FUSED = {
    "output is used 2 times": lambda: Forward(used_twice),
    "calls random": lambda: Forward(random_branch),
    "switches gradients": lambda: Forward(without_gradients),
    "checkpoints activations": lambda: Forward(checkpointed),
    "sets attributes": lambda: Forward(sets_attributes),
    "cannot be traced": lambda: Forward(by_values),
    "to another tensor in place": lambda: Forward(adds_in_place),
    "adds a number": lambda: Forward(adds_a_number),
    "to itself": lambda: Forward(adds_itself),
    "input is used by others before": lambda: Forward(changes_its_input),
    "goes to ELU": lambda: chain(nn.ELU()),
    "goes to the end": chain,
    "no module's forward": lambda: Forward(lambda self, x: self.act(x)),
}


@pytest.mark.parametrize("reason", NOT_FUSED)
def test_fusion_says_what_is_apart(reason):
    model = NOT_FUSED[reason]()
    reference = copy.deepcopy(model)
    report = bnext.torch.report(fused(model))
    (layer,) = report.apart
    assert reason in layer.reason, layer.reason
    assert not report.fused
    assert reason in str(report)
    x = torch.randn(IMAGE)
    torch.testing.assert_close(model(x.clone()), reference(x.clone()))


def test_fusion_is_off_by_default():
    model = bnext.torch.convert(ARCHITECTURES["residual"][0]())
    report = bnext.torch.report(model)
    assert not report.fused
    assert not report.apart
    fused(model)  # later, of a model that is converted already
    assert len(bnext.torch.report(model).fused) == 5


@pytest.mark.parametrize("on", ["bn", "act", "everywhere"])
def test_fusion_yields_to_hooks(on, epilogues):
    """Before and after it: hooks see what they saw, and once they are gone it is fused again."""
    for when in ("before", "after"):
        model = chain(nn.ReLU())
        expected = copy.deepcopy(model)
        seen = []

        def hook(module, inputs, y, seen=seen):
            seen.append((type(module).__name__, y.clone()))

        if when == "after":
            fused(model)
        if on == "everywhere":
            handle = nn.modules.module.register_module_forward_hook(hook)
        else:
            handle = model[1 if on == "bn" else 2].register_forward_hook(hook)
        if when == "before":
            fused(model)
        x = torch.randn(IMAGE)
        epilogues.clear()
        y = model(x)
        assert epilogues == [None]
        handle.remove()
        torch.testing.assert_close(y, expected(x))
        if on == "bn":
            ((_, normalized),) = seen
            assert float(normalized.detach().min()) < 0
        if on != "everywhere":
            is_fused_at_once = when == "after"
            epilogues.clear()
            model(x)
            assert (epilogues[0] is not None) == is_fused_at_once
            assert len(bnext.torch.report(model).fused) == is_fused_at_once
            if when == "before":
                assert "hooks" in bnext.torch.report(model).apart[0].reason


def test_fusion_yields_to_changes(epilogues):
    """Another activation, another child, another setting, other arguments."""
    x = torch.randn(IMAGE)
    model = fused(chain(nn.ReLU()))
    model[2] = nn.SiLU()
    assert float(model(x).detach().min()) < 0
    assert epilogues == [None]
    model = fused(chain(nn.ReLU()))
    model.append(nn.Hardtanh(-0.5, 0.5))
    assert float(model(x).detach().max()) == 0.5
    model = fused(chain(nn.LeakyReLU(0.1)))
    expected = model(x)
    model[2].negative_slope = -1.0
    assert float(model(x).detach().min()) >= 0
    model[2].negative_slope = 0.1
    torch.testing.assert_close(model(x), expected)
    block = fused(Basic(3, 3))
    block.downsample = nn.Conv2d(3, 3, 1)
    plain = bnext.torch.revert(copy.deepcopy(block))
    torch.testing.assert_close(block(x), plain(x))
    layer = DenseLayer(3, 4)
    plain = copy.deepcopy(layer)
    fused(layer)
    for inputs in (x, [x], [x[:, :1], x[:, 1:]]):
        epilogues.clear()
        torch.testing.assert_close(layer(inputs), plain(inputs))
        assert [each.activation for each in epilogues] == ["relu"] * 2
        torch.testing.assert_close(layer(input=inputs), plain(inputs))
    layer.drop_rate = 1.0
    assert float(layer(x).detach().abs().max()) == 0
    assert float(layer.eval()(x).detach().abs().max()) > 0
    layer.memory_efficient = True
    assert outcome_of(layer, x).type is NotImplementedError


def test_fusion_modes_may_differ(epilogues):
    """A forward pass that does something else in training."""

    def forward(self, x):
        y = self.bn(x)
        if self.training:
            y = self.other(y)
        return self.act(y)

    model = Forward(forward, other=nn.Dropout(0.5))
    fused(model)
    x = torch.randn(IMAGE)
    zeros = float((model(x) == 0).double().mean())
    assert zeros > 0.6
    assert epilogues == [None]
    torch.testing.assert_close(model.eval()(x), model.bn(x).relu())
    assert epilogues[1].activation == "relu"


def test_fusion_leaves_tracing_as_it_was():
    """Tracing calls no forward's effects twice, and restores what it finds."""

    def forward(self, x):
        self.count = getattr(self, "count", 0) + 1
        return self.act(self.bn(x))

    model = fused(Forward(forward))
    assert not hasattr(model, "count")
    model(torch.randn(IMAGE))
    assert model.count == 1
    block = fused(Basic(3, 3)).eval()
    assert not block.training
    graph = torch.fx.symbolic_trace(block)  # of the block's own forward
    x = torch.randn(IMAGE)
    torch.testing.assert_close(graph(x), block(x))
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"].count("relu") == 2


def test_fusion_of_copies_and_pickles():
    model = fused(ARCHITECTURES["residual"][0]()).eval()
    x = torch.randn(IMAGE)
    expected = model(x)
    other = copy.deepcopy(model)
    assert len(bnext.torch.report(other).fused) == 5
    assert torch.equal(other(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded.layer1[0]).__name__ == "Basic"
    torch.testing.assert_close(loaded(x), expected)
    assert len(bnext.torch.report(loaded).fused) == 0
    assert len(bnext.torch.report(fused(loaded)).fused) == 5
    torch.testing.assert_close(loaded(x), expected)
    assert type(pickle.loads(pickle.dumps(bnext.torch.revert(loaded))).layer1[0]) is Basic


def test_fusion_in_a_group():
    """Synchronized layers do what follows them too."""
    group = bnext.sync.ThreadGroup(2, timeout=60)
    model = Basic(3, 3)
    x = torch.randn(6, 3, 5, 5)
    reference = copy.deepcopy(model)
    expected = reference(x)
    bnext.torch.convert(model, sync=group, fuse=True)
    assert len(bnext.torch.report(model).fused) == 2
    parts = group.run(lambda rank, shard: model(shard), [x[:2], x[2:]])
    torch.testing.assert_close(torch.cat(parts), expected)
    torch.testing.assert_close(model.bn2.running_var, reference.bn2.running_var)


def test_fusion_of_subclasses_with_a_forward():
    class Scaled(nn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input) * 2

    class Named(nn.BatchNorm2d):
        pass

    model = nn.Sequential(Scaled(3), nn.ReLU(), Named(3), nn.ReLU())
    reference = copy.deepcopy(model)
    report = bnext.torch.report(fused(model))
    assert names_of(report) == ["2"]
    assert "forward of its own" in report.apart[0].reason
    x = torch.randn(IMAGE)
    torch.testing.assert_close(model(x), reference(x))


@pytest.mark.parametrize("name", ["1", "2"])
def test_compiled_modules_see_a_forward_that_is_put_on(name):
    """After they were compiled, on the layer or on the activation behind it."""
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.LeakyReLU(0.2)
    )
    model = bnext.torch.convert(model, fuse=True)
    call = torch.compile(model, backend="eager")
    x = torch.randn(11, 5)
    torch.testing.assert_close(call(x), model(x))
    child = model.get_submodule(name)
    child.forward = lambda y: y * 0 + 3
    torch.testing.assert_close(call(x), model(x))
    assert (call(x) == 3).all()
    del child.forward
    torch.testing.assert_close(call(x), model(x))


@pytest.mark.parametrize("setting", [("negative_slope", 0.7), ("negative_slope", float("nan"))])
def test_compiled_modules_see_settings_that_change(setting):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(7), torch.nn.LeakyReLU(0.2))
    model = bnext.torch.convert(model, fuse=True)
    call = torch.compile(model, backend="eager")
    x = torch.randn(11, 7)
    for _ in range(2):
        torch.testing.assert_close(call(x), model(x), equal_nan=True)
        setattr(model[1], *setting)
    bnext.torch.convert(model, fuse=True)  # made with the setting
    torch.testing.assert_close(call(x), model(x), equal_nan=True)
