"""Fused evaluation writes over the outputs of convolutions, and never over what others can see."""

import copy
import operator

import pytest

import bnext

from ..activations import ACTIVATIONS
from .architectures import ARCHITECTURES, IMAGE
from .support import outcome_of, torch

from bnext.torch import fused, fusion, graph_code, overwriting  # isort: skip

nn, functional = torch.nn, torch.nn.functional


@pytest.fixture
def evaluations(monkeypatch):
    """Whether each evaluation was allowed to write over its input, and did."""
    from bnext.torch import kernels

    seen, run = [], kernels.evaluate_layer

    def evaluate_layer(layer, x, epilogue, over):
        y = run(layer, x, epilogue, over)
        assert (y is x) == over
        seen.append(over)
        return y

    monkeypatch.setattr(kernels, "evaluate_layer", evaluate_layer)
    return seen


def evaluating(model, fuse=True):
    """A copy that is converted, with running statistics as after some batches."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return bnext.torch.convert(model, fuse=fuse).eval()


class Block(nn.Module):
    """A convolution, a layer and an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_overwriting_of_architectures(name, evaluations):
    """To the bit what calls give whose gradients are recorded."""
    build, shape, _, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = evaluating(build())
    layers = sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules())
    x = torch.randn(shape)
    expected, before = model(x), x.clone()
    assert not evaluations
    for context in (torch.no_grad, torch.inference_mode):
        evaluations.clear()
        with context():
            assert torch.equal(model(x), expected)
        assert torch.equal(x, before)
        assert 0 < sum(evaluations) <= len(evaluations) <= layers
    assert len(bnext.torch.report(model).fused) == ARCHITECTURES[name][2]


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 7), (1, 32, 112, 112), (7, 9), (4, 24, 40, 40), (3, 3, 1, 65)]
)
def test_overwriting_kernels(activation, residual, dtype, shape):
    """The same bits, in the memory of x, in each memory order; with an extreme channel."""
    from bnext import _core

    torch.manual_seed(1)
    row = [torch.rand(shape[1]) + 0.5 for _ in range(4)]
    if dtype in (torch.float32, torch.float64):
        row[1][0] = 1e-37  # the variance
        row = [each.to(dtype) for each in row]
    for memory_format in {torch.contiguous_format, torch.channels_last}:
        if len(shape) != 4 and memory_format is torch.channels_last:
            continue
        x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
        r = torch.randn_like(x) if residual else None
        epilogue = None if activation is None and r is None else (r, activation, 0.01)
        of = {
            "running_mean": row[0], "running_var": row[1], "weight": row[2], "bias": row[3],
            "eps": 1e-38, "channel_axis": 1, "plain": True, "epilogue": epilogue,
        }  # fmt: skip
        expected = _core.evaluate(x=x, **of)
        address = x.data_ptr()
        assert expected.data_ptr() != address
        y = _core.evaluate(x=x, **of, over=True)
        assert y is x
        assert y.data_ptr() == address
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()


def test_overwriting_of_strided_memory():
    """A tensor that kernels cannot walk is written through a copy."""
    from bnext import _core

    x = torch.randn(4, 6, 5, 5).transpose(2, 3)[:, :, ::2]
    rows = torch.rand(6) + 0.5
    of = {"running_mean": rows, "running_var": rows, "weight": None, "bias": None, "eps": 1e-5}
    expected = functional.batch_norm(x, rows, rows)
    y = _core.evaluate(x=x, **of, channel_axis=1, over=True)
    assert y is x
    torch.testing.assert_close(x, expected)


def used_by_another(self, x):
    y = self.conv(x)
    return self.act(self.bn(y)), y


def view_of_another(self, x):
    y = self.conv(x)
    return self.act(self.bn(y.view(y.shape))), y


def of_an_argument(self, x):
    return self.act(self.bn(x[:, :1].expand(-1, 4, -1, -1)) + self.conv(x)[:, :, :1, :1])


def of_a_container(self, x):
    return self.act(self.bn(self.more(x)))


def of_a_sum(self, x):
    return self.act(self.bn(operator.add(self.conv(x), 0)))


FORWARDS = [used_by_another, view_of_another, of_an_argument, of_a_container, of_a_sum]


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda each: each.__name__)
def test_overwriting_of_nothing_else(forward, evaluations):
    """Values that are used twice, views, arguments, what other modules return."""
    block = Block()
    block.more = nn.Sequential(copy.deepcopy(block.conv))
    kind = type("Other", (Block,), {"forward": forward})
    block.__class__ = kind
    plain = evaluating(block, fuse=False)
    model = bnext.torch.convert(copy.deepcopy(plain), fuse=True)
    x = torch.randn(IMAGE)
    evaluations.clear()
    with torch.no_grad():
        actual, expected = model(x), plain(x)
    assert not any(evaluations)
    if not isinstance(actual, tuple):
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_overwriting_of_joined_tensors(evaluations):
    """`torch.cat` makes new memory, of one tensor too."""

    class Joined(Block):
        def forward(self, x):
            return self.conv(self.act(self.bn(torch.cat(x, 1))))

    block = Joined()
    block.conv = nn.Conv2d(4, 3, 1)
    model = evaluating(block)
    for parts in ([torch.randn(2, 4, 5, 5)], [torch.randn(2, 1, 5, 5), torch.randn(2, 3, 5, 5)]):
        before = [each.clone() for each in parts]
        evaluations.clear()
        with torch.no_grad():
            y = model(parts)
        assert evaluations == [True]
        assert all(map(torch.equal, parts, before))
        torch.testing.assert_close(y, model(parts).detach())


def test_overwriting_ends_and_begins_again(evaluations):
    """With a hook on the source, and without; in training; after the layer is frozen."""
    model, x = evaluating(Block()), torch.randn(IMAGE)

    def overwrites():
        evaluations.clear()
        with torch.no_grad():
            model(x)
        return evaluations

    assert overwrites() == [True]
    hook = model.conv.register_forward_pre_hook(lambda module, inputs: None)
    assert overwrites() == [False]
    assert fusion.fused_layers(model)
    hook.remove()
    assert overwrites() == [True]
    model.train()
    assert overwrites() == []
    model.eval()
    model.bn.train()
    assert overwrites() == []
    model.eval()
    assert overwrites() == [True]
    model.conv = nn.Sequential(model.conv)
    assert overwrites() == [False]
    bnext.torch.revert(model)
    assert overwrites() == []


def test_overwriting_counts_references():
    """A call leaves a tensor alone that somebody holds, and only then."""
    model, x, held = evaluating(Block()), torch.randn(2, 4, 6, 6), []

    def held_by_others(value):
        held.append(value)

    for holds in (False, True):
        graph = torch.fx.Graph()
        graph.placeholder("self")
        made = graph.call_function(torch.neg, (graph.placeholder("x"),))
        if holds:
            graph.call_function(held_by_others, (made,))
        graph.output((overwriting.count_holders(graph, made), made))
        holders, value = graph_code.eager_function_of(graph)(None, x)
        assert holders == overwriting._usual[0] + holds
        before = value.clone()
        with torch.no_grad():
            y = overwriting.call_over(model.bn, value, None, "relu", 0.01, holders)
        torch.testing.assert_close(y, model.bn(before).relu().detach())
        assert (y.data_ptr() == value.data_ptr()) != holds
        assert torch.equal(value, before) == holds


def test_overwriting_after_failed_compilations(evaluations):
    """PyTorch goes on evaluating frames after some errors, which adds references to arguments."""
    torch.compiler.reset()
    failure = outcome_of(torch.compile(nn.BatchNorm1d(5), backend="eager"), torch.randn(1, 5))
    assert "more than 1 value per channel" in failure.text
    model = evaluating(Block())
    with torch.no_grad():
        model(torch.randn(IMAGE))
    assert evaluations == [True]


def test_overwriting_compiles():
    """A compiler finds a whole graph, in which nothing is written over."""
    model, x = evaluating(Block()), torch.randn(IMAGE)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), model(x))


# --- facts ----------------------------------------------------------------------------------------


def nested():
    return nn.Sequential(nn.Sequential(nn.ReLU(), nn.LeakyReLU(0.5)))


CHANGES = {
    "another class": lambda module: module[0].__setitem__(1, nn.ReLU()),
    "a hook": lambda module: module[0][1].register_forward_hook(print),
    "a forward": lambda module: setattr(module[0][1], "forward", print),
    "a setting": lambda module: setattr(module[0][1], "negative_slope", 0.25),
    "a setting of another type": lambda module: setattr(module[0][1], "negative_slope", None),
    "no such child": lambda module: module[0].__delitem__(1),
    "another child": lambda module: module.append(nn.ReLU()),
    "another name": lambda module: module._modules.update(x=module._modules.pop("0")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_unchanged(change):
    module = nested()
    of = (), fused.facts_of(module, ["0.1"]), ("0",)
    assert bnext._core.unchanged(module, *of)
    assert bnext._core.unchanged(copy.deepcopy(module), *of)
    CHANGES[change](module)
    assert not bnext._core.unchanged(module, *of)


def test_unchanged_elsewhere():
    empty, values = {}, {"a": 1.5}
    facts = ((empty, ("hooks",), ()), (values, (), (("a", 1.5),)))
    module = nn.ReLU()
    assert bnext._core.unchanged(module, facts, (), ())
    empty["hooks"] = {}
    assert bnext._core.unchanged(module, facts, (), ())
    empty["hooks"][1] = print
    assert not bnext._core.unchanged(module, facts, (), ())
    empty.clear()
    values["a"] = 1
    assert not bnext._core.unchanged(module, facts, (), ())
    assert not bnext._core.unchanged(object(), (), (), ())
    with pytest.raises(TypeError, match="within: expected a tuple, got list"):
        bnext._core.unchanged(module, (), [], ())
