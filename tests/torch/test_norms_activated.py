"""Layer, RMS, group and instance norms of PyTorch with an activation, of their own or fused."""

import copy
import pickle

import pytest

import bnext

from . import norms
from .norms import SLOPE, small  # noqa: F401
from .support import DTYPES, assert_close, bound_of, channels_last, name_of_dtype, torch

from bnext.torch import epilogues, row_functional, row_gradients  # isort: skip
from bnext.torch import cell_functional, cell_kernels  # isort: skip

nn = torch.nn
pytestmark = norms.NORMS
ACTIVATIONS = tuple(epilogues.ACTIVATIONS)
RUNNING = {"affine": True, "track_running_stats": True}
LAYERS = {
    "layer": ("layer", {}), "rms": ("rms", {}), "group": ("group", {}),
    "instance": ("instance 2", {"affine": True}), "running": ("instance 1", RUNNING),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", LAYERS)


def pair(name, activation, dtype=torch.float64):
    """Ours with an activation, PyTorch's before the same activation, and an input's shape."""
    of_pair, options = LAYERS[name]
    theirs, ours, shape = norms.pair(of_pair, dtype, **options)
    given = {"activation": activation, "negative_slope": SLOPE}
    ours = norms.LAYERS[of_pair][0](bnext.torch, dtype=dtype, **options, **given)
    ours.load_state_dict(theirs.state_dict())
    apply = epilogues.ACTIVATIONS[activation] if activation else lambda z, _: z

    def reference(x, residual=None):
        z = theirs(x)
        return apply(z if residual is None else z + residual, SLOPE)

    return ours, theirs, reference, shape


@pytest.fixture
def applied(monkeypatch):
    """What kernels have applied besides normalizing."""
    seen = []
    for module, name in ((cell_kernels, "forward"), (row_gradients, "forward_of_rows")):
        run = getattr(module, name)

        def noted(*given, _run=run):
            of = next((each[1] for each in given if isinstance(each, tuple) and len(each) == 3
                       and (each[1] is None or isinstance(each[1], str))), None)  # fmt: skip
            seen.append(of)
            return _run(*given)

        monkeypatch.setattr(module, name, noted)
    return seen


def gradients(function, layer, x, dy, *residual):
    leaves = [x.detach().clone().requires_grad_(), *(r.detach().requires_grad_() for r in residual)]
    y = function(*leaves)
    found = torch.autograd.grad(y, [*leaves, *layer.parameters()], dy)
    return [y.detach(), *found]


@EVERY
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_norm_and_activation_are_one_pass(name, activation, applied):
    ours, theirs, reference, shape = pair(name, activation)
    x, dy = torch.randn(2, *shape, dtype=torch.float64)
    inputs = [x] + ([channels_last(x)] if channels_last(x) is not None else [])
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        for each in inputs:
            expected, actual = (
                gradients(reference, theirs, each, dy),
                gradients(ours, ours, each, dy),
            )
            for one, two in zip(actual, expected, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    for one, two in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, two)
    assert set(applied) == {activation}
    assert f"activation={activation}" in repr(ours)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_dtypes(name, dtype):
    ours, _, _, shape = pair(name, "silu", dtype)
    x, dy = torch.randn(2, *shape).to(dtype)
    exact = copy.deepcopy(ours).double()
    expected = gradients(exact, exact, x.double(), dy.double())
    for one, two in zip(gradients(ours, ours, x, dy), expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, two.to(dtype), name, 8 * bound_of(dtype))


@EVERY
@pytest.mark.parametrize("activation", ["relu", "gelu", None])
def test_residuals(name, activation, applied):
    ours, theirs, reference, shape = pair(name, activation)
    x, dy, r = torch.randn(3, *shape, dtype=torch.float64)
    expected = gradients(reference, theirs, x, dy, r)
    actual = gradients(ours, ours, x, dy, r)
    strided = gradients(ours, ours, x, dy, r.transpose(0, 1).contiguous().transpose(0, 1))
    for found in (actual, strided):
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-10)
    assert set(applied) == {activation}
    applied.clear()
    # PyTorch's operators add one of another shape or dtype.
    torch.testing.assert_close(ours(x, r[:1]), reference(x, r[:1]))
    torch.testing.assert_close(ours(x, r.float()), reference(x, r.float()))
    assert applied == [None] * 2
    last = channels_last(x)
    if last is not None and name in ("group", "instance"):
        assert ours(last, channels_last(r)).is_contiguous(memory_format=torch.channels_last)


@EVERY
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "tanh"])
def test_gradients_of_gradients(name, activation):
    ours, _, _, shape = pair(name, activation)
    x = torch.randn(2, *shape[1:], dtype=torch.float64, requires_grad=True)
    residual = [torch.randn_like(x, requires_grad=True)]
    parameters = dict(ours.named_parameters())

    def call(x, *others):
        given = dict(zip(parameters, others, strict=False))
        return torch.func.functional_call(ours, given, (x, *others[len(given) :]))

    inputs = (x, *parameters.values(), *residual)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@EVERY
def test_a_residual_alone_twice(name):
    ours, _, reference, shape = pair(name, None)
    x, r = torch.randn(2, *shape, dtype=torch.float64).unbind()
    found = []
    for function in (ours, reference):
        leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@EVERY
def test_hooks_on_saved_tensors(name):
    """Copies of what was saved, close to it and elsewhere, give the same gradients."""
    ours, _, _, shape = pair(name, "silu")
    x, dy, r = torch.randn(3, *shape, dtype=torch.float64)
    given = (x, dy, r)
    expected = gradients(ours, ours, *given)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        for one, two in zip(gradients(ours, ours, *given), expected, strict=True):
            torch.testing.assert_close(one, two)


@EVERY
def test_a_parameter_that_changed_is_noticed(name):
    ours, _, _, shape = pair(name, "relu")
    y = ours(torch.randn(shape, dtype=torch.float64, requires_grad=True))
    with torch.no_grad():
        ours.weight.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@EVERY
def test_tools(name):
    """torch.compile, torch.fx, TorchScript, export, pickles, vmap, and batches of gradients."""
    ours, _, _, shape = pair(name, "leaky_relu")
    ours.eval()
    x = torch.randn(shape, dtype=torch.float64)
    y = ours(x)
    whole = torch.fx.symbolic_trace(nn.Sequential(ours, nn.Identity()))
    assert [n.op for n in whole.graph.nodes][1] == "call_module"
    others = [
        copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), whole,
        torch.jit.script(nn.Sequential(ours)), torch.compile(ours, backend="aot_eager"),
        torch.export.export(ours, (x,)).module(),
    ]  # fmt: skip
    if not isinstance(ours, nn.modules.instancenorm._InstanceNorm):  # whose checks are none of fx's
        graph = torch.fx.symbolic_trace(ours)
        others += [graph, pickle.loads(pickle.dumps(graph))]
    for other in others:
        torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(torch.vmap(ours)(x[None])[0], y)
    leaf = x.requires_grad_()
    many = torch.eye(y.numel(), dtype=torch.float64)[:7].reshape(7, *shape)
    batched = torch.autograd.grad(ours(leaf), leaf, many, is_grads_batched=True)[0]
    for one, dy in zip(batched, many, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(ours(leaf), leaf, dy)[0])


def test_scripted_batch_normalization_has_its_activation():
    layer = bnext.torch.BatchNorm2d(3, activation="relu").eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(torch.jit.script(nn.Sequential(layer))(x), layer(x))


def test_small_calls_and_single_examples(monkeypatch, applied):
    ours, _, reference, shape = pair("instance", "gelu")
    x = torch.randn(shape[1:], dtype=torch.float64)
    torch.testing.assert_close(ours(x), reference(x))
    monkeypatch.setattr("bnext.torch.cell_functional.LEAST_VALUES", 1 << 15)
    monkeypatch.setattr("bnext.torch.row_functional.LEAST_VALUES", 1 << 15)
    applied.clear()
    for name in ("layer", "group"):
        ours, _, reference, shape = pair(name, "gelu")
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(ours(x), reference(x))
    assert applied == []


class Block(nn.Module):
    """Each norm before an activation, rows after an addition."""

    def __init__(self):
        super().__init__()
        self.group, self.layer, self.rms = nn.GroupNorm(2, 6), nn.LayerNorm(8), nn.RMSNorm(8)
        self.instance, self.last = nn.InstanceNorm1d(6, affine=True), nn.GroupNorm(3, 6)
        self.act = nn.GELU()

    def forward(self, x):
        h = torch.relu(self.group(x))
        h = self.act(self.layer(h) + x)
        h = nn.functional.silu(self.rms(h))
        h = torch.tanh(self.instance(h))
        return torch.relu(self.last(h) + x)


def test_fusion(applied):
    model = Block().double()
    before, kinds = copy.deepcopy(model), [type(each) for each in model.modules()]
    bnext.torch.convert(model, norms="all", fuse=True)
    report = bnext.torch.report(model)
    assert [(each.name, each.activation, each.residual) for each in report.fused] == [
        ("group", "relu", False), ("layer", "gelu", True), ("rms", "silu", False),
        ("instance", "tanh", False), ("last", "relu", True),
    ]  # fmt: skip
    assert not report.apart
    x, dy = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    for mode in (True, False):
        model.train(mode), before.train(mode)
        expected, actual = gradients(before, before, x, dy), gradients(model, model, x, dy)
        for one, two in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)
    assert applied == ["relu", "gelu", "silu", "tanh", "relu"] * 2
    seen = []
    model.layer.register_forward_hook(lambda *_: seen.append(1))  # which is to see its output
    torch.testing.assert_close(model(x), before(x))
    assert seen == [1]
    bnext.torch.revert(model)
    assert [type(each) for each in model.modules()] == kinds


@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(("module", "name", "given"), [
    (row_functional, "layer_norm", ((8,),)), (row_functional, "rms_norm", ((8,),)),
    (cell_functional, "group_norm", (3,)), (cell_functional, "instance_norm", ()),
])  # fmt: skip
def test_functions(module, name, given, added):
    x, r = torch.randn(2, 4, 6, 8)
    residual = r if added else None
    y = getattr(module, name)(x, *given, activation="silu", residual=residual)
    z = getattr(nn.functional, name)(x, *given)
    torch.testing.assert_close(y, nn.functional.silu(z + r if added else z))


@pytest.mark.parametrize("make", [
    lambda **given: bnext.torch.LayerNorm(4, **given),
    lambda **given: bnext.torch.RMSNorm(4, **given),
    lambda **given: bnext.torch.GroupNorm(2, 4, **given),
    lambda **given: bnext.torch.InstanceNorm3d(4, **given),
])  # fmt: skip
def test_errors(make):
    with pytest.raises(ValueError, match="activation: expected "):
        make(activation="swish")
    with pytest.raises(TypeError, match="activation: "):
        make(activation=3)
    with pytest.raises(ValueError, match="negative_slope: expected a finite number"):
        make(activation="leaky_relu", negative_slope=float("inf"))
