"""`bnext.torch.LayerNorm` and `RMSNorm`: as PyTorch's layers, in autograd, models and compilers."""

import copy
import pickle

import pytest

import bnext

from .support import torch

from torch import nn  # isort: skip - of which there is nothing without PyTorch

from bnext.torch import row_functional  # isort: skip
from bnext.torch.row_functional import layer_norm, rms_norm  # isort: skip

PAIRS = [(bnext.torch.LayerNorm, nn.LayerNorm), (bnext.torch.RMSNorm, nn.RMSNorm)]
pairs = pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["layer", "rms"])
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Calls of any size run the kernels."""
    monkeypatch.setattr(row_functional, "LEAST_VALUES", 0)


def drawn(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return layer


def step(layer, x, dy):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(each.grad for each in layer.parameters())]


def check_same(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@dtypes
@pairs
def test_a_step_is_as_pytorchs(ours, theirs, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for shape, normalized in (((6, 5, 20), 20), ((3, 4, 7), (4, 7)), ((300, 33), (33,)), ((9,), 9)):
        for parameters in {dtype, wide}:
            x, dy = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
            layer = drawn(ours(normalized, dtype=parameters))
            other = theirs(normalized, dtype=wide)
            other.load_state_dict(layer.state_dict())
            got = step(layer, x, dy)
            expected = step(other.to(wide), x.to(wide), dy.to(wide))
            kinds = [dtype, dtype, *[parameters] * (len(got) - 2)]
            check_same(
                got, [b.to(k) for b, k in zip(expected, kinds, strict=True)], TOLERANCE[dtype]
            )
            # What a transposed input, or a gradient that is no array of its own, gives.
            if len(shape) == 2:
                apart = step(layer, x.t().contiguous().t(), dy[:1].expand_as(dy))
                whole = step(layer, x, dy[:1].expand_as(dy).contiguous())
                check_same(apart, whole, 0)


@pairs
def test_state_dicts_go_both_ways(ours, theirs):
    for options in ({}, {"elementwise_affine": False}, {"eps": 1e-3}):
        mine, other = drawn(ours((3, 4), **options)), drawn(theirs((3, 4), **options), 1)
        assert isinstance(mine, theirs)
        assert repr(mine) == repr(other).replace(")", ", kernels=bnext)").replace(
            "4, kernels=bnext)", "4)"
        )
        state = other.state_dict()
        assert list(state) == list(mine.state_dict())
        mine.load_state_dict(state)
        theirs((3, 4), **options).load_state_dict(mine.state_dict())
        again = pickle.loads(pickle.dumps(copy.deepcopy(mine)))
        x = torch.randn(5, 3, 4)
        assert torch.equal(again(x), mine(x))
        assert torch.allclose(mine(x), other(x), atol=1e-5)


@pairs
def test_state_dicts_of_numpy_layers(ours, theirs):
    numpys = getattr(bnext, ours.__name__)(7)
    layer = drawn(theirs(7))
    assert numpys.load_state_dict(layer.state_dict()) == ([], [])
    other = theirs(7)
    other.load_state_dict({k: torch.as_tensor(v) for k, v in numpys.state_dict().items()})
    x, dy = torch.randn(4, 7), torch.randn(4, 7)
    assert torch.allclose(numpys(x), other(x), atol=1e-6)
    dx = numpys.backward(dy)
    _, expected, *gradients = step(other, x, dy)
    assert torch.allclose(dx, expected, atol=1e-6)
    assert torch.allclose(torch.as_tensor(numpys.weight_grad), gradients[0], atol=1e-5)


@pairs
def test_gradients_of_gradients(ours, theirs):
    layer = drawn(ours(5, eps=1e-2).double())
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def call(x, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        values = dict(zip(names, parameters, strict=True))
        form = (values["weight"], values["bias"]) if "bias" in values else (values["weight"],)
        return (layer_norm if "bias" in values else rms_norm)(x, (5,), *form, eps=1e-2)

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(call, (x, *parameters))


@pairs
def test_errors_are_pytorchs(ours, theirs):
    x = torch.zeros(2, 4)
    cases = [
        ({"normalized_shape": 3}, x), ({"normalized_shape": (2, 3, 4)}, x),
        ({"normalized_shape": 4}, x.int()),
    ]  # fmt: skip
    for given, value in cases:
        texts = []
        for kind in (ours, theirs):
            with pytest.raises((RuntimeError, ValueError)) as info:
                kind(**given)(value)
            texts.append(str(info.value))
        assert texts[0] == texts[1]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pairs
def test_other_calls_are_left_to_pytorch(ours, theirs):
    layer = drawn(ours(4))
    other = theirs(4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 2, 4)
    mapped = torch.func.vmap(layer)(x)
    assert torch.allclose(mapped, other(x), atol=1e-6)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    assert torch.allclose(tangent, torch.func.jvp(other, (x,), (x,))[1], atol=1e-5)
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    if ours is bnext.torch.LayerNorm:
        torch.testing.assert_close(
            layer(nested).to_padded_tensor(0), other(nested).to_padded_tensor(0)
        )
    y = layer(x.requires_grad_())
    batch = torch.randn(2, *y.shape)
    got = torch.autograd.grad(y, x, batch, is_grads_batched=True)[0]
    expected = torch.autograd.grad(other(x), x, batch, is_grads_batched=True)[0]
    assert torch.allclose(got, expected, atol=1e-5)


@pairs
def test_what_has_changed_is_noticed(ours, theirs):
    layer = ours(4)
    x = torch.randn(3, 4)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    with torch.no_grad():
        leaf.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    # Saved tensors that are brought back from elsewhere.
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = layer(leaf)
    y.backward(x)
    other = x.clone().requires_grad_()
    theirs(4)(other).backward(x)
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)


def test_small_calls_are_pytorchs(monkeypatch):
    monkeypatch.undo()
    x = torch.randn(64, 20) + 100
    assert torch.equal(bnext.torch.LayerNorm(20)(x), nn.LayerNorm(20)(x))
    large = torch.randn(64, 512)
    expected = bnext.layer_norm_forward(large, 512)[0]
    with torch.no_grad():
        assert torch.equal(bnext.torch.LayerNorm(512)(large), expected)


def model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.Sequential(nn.RMSNorm(8), nn.BatchNorm1d(8))
    )


def test_convert_and_revert_by_names():
    for norms, kinds in (
        ("batch", (nn.LayerNorm, nn.RMSNorm, bnext.torch.BatchNorm1d)),
        ("layer", (bnext.torch.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)),
        ({"layer", "rms"}, (bnext.torch.LayerNorm, bnext.torch.RMSNorm, nn.BatchNorm1d)),
        ("all", (bnext.torch.LayerNorm, bnext.torch.RMSNorm, bnext.torch.BatchNorm1d)),
    ):
        network = model()
        x, state = torch.randn(5, 6), copy.deepcopy(network.state_dict())
        expected = network(x)
        parameters = list(network.parameters())
        assert bnext.torch.convert(network, norms=norms) is network
        assert (type(network[1]), type(network[2][0]), type(network[2][1])) == kinds
        network.load_state_dict(state)
        assert torch.allclose(network(x), expected, atol=1e-5)
        bnext.torch.convert(network, norms=norms)
        bnext.torch.revert(network)
        kinds = (type(network[1]), type(network[2][0]), type(network[2][1]))
        assert kinds == (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert type(bnext.torch.convert(model())[1]) is nn.LayerNorm
    for norms, text in (("group_", "got 'group_'"), (("batch", 3), "got 3"), (7, "got 7")):
        with pytest.raises(ValueError, match=f"norms: expected 'all' or names among .*{text}"):
            bnext.torch.convert(model(), norms=norms)


def test_a_computation_of_its_own_stays_as_it_is():
    class Own(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, self.normalized_shape) + 1

    network = nn.Sequential(Own(3), nn.LayerNorm(3))
    with pytest.warns(bnext.torch.ConversionWarning, match="1 layer of normalization stays"):
        bnext.torch.convert(network, norms="all")
    assert type(network[0]) is Own
    assert type(network[1]) is bnext.torch.LayerNorm
    (left,) = bnext.torch.report(network).left
    assert (left.name, left.norm) == ("0", "layer")
    assert left.reason.endswith("Own has a computation of its own")


@pairs
def test_compiled(ours, theirs):
    layer = drawn(ours(8))
    other = theirs(8)
    other.load_state_dict(layer.state_dict())
    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        for rows in (5, 7):
            x, dy = torch.randn(rows, 8), torch.randn(rows, 8)
            check_same(step(compiled, x, dy), step(other, x, dy), 1e-5)
    names = []

    def backend(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(5, 8))
    assert any("bnext" in name for name in names)


@pairs
def test_operators(ours, theirs):
    centered = ours is bnext.torch.LayerNorm
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.rand(4, requires_grad=True)
    bias = torch.rand(4, requires_grad=True) if centered else None
    given = (x, [4], weight, bias, 1e-5, centered)
    torch.library.opcheck(torch.ops.bnext.forward_by_rows, [*map(detached, given)])
    torch.library.opcheck(
        torch.ops.bnext.rows_norm, given, test_utils=("test_schema", "test_faketensor")
    )
    y, rows = torch.ops.bnext.forward_by_rows(*map(detached, given))
    backward = (y, x, weight, rows, [4], 1e-5, centered)
    torch.library.opcheck(torch.ops.bnext.backward_by_rows, [*map(detached, backward)])


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pairs
def test_traced_and_exported(ours, theirs):
    network = nn.Sequential(drawn(ours(4)), nn.ReLU())
    x = torch.randn(3, 4)
    graph = torch.fx.symbolic_trace(network)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 2
    assert torch.equal(graph(x), network(x))
    exported = torch.export.export(network, (x,))
    assert not any("bnext" in str(node.target) for node in exported.graph.nodes)
    assert torch.allclose(exported.module()(x), network(x), atol=1e-6)
    assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-6)
