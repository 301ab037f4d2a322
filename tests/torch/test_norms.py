"""`bnext.torch`'s layers besides batch normalization, beside torch.nn's."""

import copy
import pickle
import warnings

import pytest

import bnext

from .norms import (  # noqa: F401
    CELLS,
    EVERY,
    NORMS,
    OF_ROWS,
    check,
    drawn,
    pair,
    row_pair,
    run,
    small,
)
from .support import (
    DTYPES,
    Failure,
    assert_close,
    bound_of,
    channels_last,
    name_of_dtype,
    outcome_of,
    torch,
)

from torch import nn  # isort: skip - of which there is nothing without PyTorch

from bnext.torch import cell_functional, cell_kernels  # isort: skip
from bnext.torch.cell_functional import group_norm, instance_norm  # isort: skip
from bnext.torch.cell_gradients import backward  # isort: skip

pytestmark = NORMS
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 4e-3, torch.bfloat16: 3e-2}
OF_CELLS = pytest.mark.parametrize("name", CELLS)


@pytest.fixture
def calls(monkeypatch):
    """How often the kernels ran."""
    counts = {"forward": 0, "backward": 0}
    for name in counts:
        function = getattr(cell_kernels, name)

        def counted(*given, _name=name, _function=function):
            counts[_name] += 1
            return _function(*given)

        monkeypatch.setattr(cell_kernels, name, counted)
    return counts


def step(layer, x, dy):
    return list(run(layer, x, dy).values())


def check_same(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@OF_CELLS
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_cells_do_what_torch_does(name, dtype, calls):
    theirs, ours, shape = pair(name, dtype)
    x, dy = torch.randn(2, *shape).to(dtype)
    check(theirs, ours, x, dy)
    expected = 1
    if (last := channels_last(x)) is not None:
        check(theirs, ours, last, dy)
        expected = 2
    assert calls == {"forward": expected, "backward": expected}
    check(theirs.eval(), ours.eval(), x, dy)
    with torch.no_grad():
        assert_close(ours(x), theirs(x), "y", bound_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
@OF_ROWS
def test_rows_do_what_torch_does(kind, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for shape, normalized in (((6, 5, 20), 20), ((3, 4, 7), (4, 7)), ((300, 33), (33,)), ((9,), 9)):
        for parameters in {dtype, wide}:
            x, dy = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
            other, layer = row_pair(kind, normalized, dtype=parameters)
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


def test_small_calls_are_torchs(monkeypatch):
    monkeypatch.undo()
    for name in ("group", "layer"):
        theirs, ours, shape = pair(name)
        x = torch.randn(shape) + 100
        assert torch.equal(ours(x), theirs(x))
    assert cell_functional.LEAST_VALUES == 32 * 1024
    theirs, ours, _ = pair("group")
    large = torch.randn(4, 6, 1366)
    assert not isinstance(ours(large.requires_grad_()).grad_fn, type(theirs(large).grad_fn))
    large = torch.randn(64, 512)
    expected = bnext.layer_norm_forward(large, 512)[0]
    with torch.no_grad():
        assert torch.equal(bnext.torch.LayerNorm(512)(large), expected)


@pytest.mark.parametrize("name", ["instance 1", "instance 2", "example"])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_running_statistics(name, momentum):
    theirs, ours, shape = pair(name, momentum=momentum, affine=True, track_running_stats=True)
    for training in (True, True, False, True):
        x, dy = torch.randn(2, *shape)
        check(theirs.train(training), ours.train(training), x + 1, dy)
    assert_close(ours.num_batches_tracked, theirs.num_batches_tracked, "counter", 0)
    theirs.load_state_dict(ours.state_dict())
    layer = {"instance 1": bnext.InstanceNorm1d}.get(name, bnext.InstanceNorm2d)(
        6, momentum=momentum, affine=True, track_running_stats=True
    )
    layer.load_state_dict(ours.state_dict())  # of the library of NumPy's layers, and back
    ours.load_state_dict({name: torch.as_tensor(v) for name, v in layer.state_dict().items()})


def test_running_statistics_of_a_repeated_call():
    """Checkpointing moves them once."""
    theirs, ours, shape = pair("instance 2", track_running_stats=True)
    x = torch.randn(shape, requires_grad=True)
    theirs(x)
    torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False).sum().backward()
    assert_close(ours.running_mean, theirs.running_mean, "running_mean", 4)


@EVERY
def test_second_derivatives(name, calls):
    _, ours, shape = pair(name, torch.float64)
    shape = shape if name in CELLS else shape[1:]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    named = dict(ours.named_parameters())

    def call(x, *parameters):
        return torch.func.functional_call(ours, dict(zip(named, parameters, strict=True)), (x,))

    inputs = (x, *named.values())
    fast = name in CELLS
    assert torch.autograd.gradcheck(call, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=fast)
    assert (calls["backward"] > 0) == fast


def test_formulas_are_the_kernels(calls):
    _, ours, shape = pair("group", torch.float64)
    x, dy = torch.randn(2, *shape, dtype=torch.float64)
    first = run(ours, x, dy)
    assert calls["backward"] == 1
    dx, dweight, dbias = backward(dy, x, ours.weight.detach(), groups=3, eps=ours.eps)
    for name, value in (("dx", dx), ("weight", dweight), ("bias", dbias)):
        assert_close(value, first[name], name, 64)


@EVERY
def test_compile_of_norms(name, calls):
    torch.compiler.reset()
    _, ours, shape = pair(name)
    for dynamic in (False, True) if name not in CELLS else (None,):
        torch._dynamo.reset()
        compiled = torch.compile(
            copy.deepcopy(ours), backend="aot_eager", fullgraph=True, dynamic=dynamic
        )
        for examples in (shape[0], shape[0] + (name not in CELLS)):
            x, dy = torch.randn(2, examples, *shape[1:])
            check(ours, compiled, x, dy, units=1)
    if name in CELLS:
        assert calls == {"forward": 4, "backward": 4}
        return
    names = []

    def backend(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(ours, backend=backend, fullgraph=True)(x)
    assert any("bnext" in name for name in names)


def test_compile_of_running_statistics():
    torch.compiler.reset()
    theirs, ours, shape = pair("instance 2", track_running_stats=True)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    check(theirs, compiled, *torch.randn(2, *shape))


@pytest.mark.parametrize("strict", [True, False])
def test_export_of_cells(strict):
    """The operators are PyTorch's."""
    model = torch.nn.Sequential(
        bnext.torch.GroupNorm(3, 6), bnext.torch.InstanceNorm2d(6, track_running_stats=True)
    ).eval()
    x = torch.randn(2, 6, 5, 3)
    program = torch.export.export(model, (x,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.group_norm.default", "aten.instance_norm.default"]
    assert_close(program.module()(x), model(x), "y", 16)


def test_cells_in_graphs_and_transforms():
    model = torch.nn.Sequential(bnext.torch.GroupNorm(3, 6), bnext.torch.InstanceNorm1d(6))
    nodes = [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
    assert nodes == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(5, 2, 6, 4)
    layer = model[0]
    assert_close(torch.vmap(layer)(x), torch.stack([layer(each) for each in x]), "y", 16)
    scripted = torch.jit.script(copy.deepcopy(layer))
    assert_close(scripted(x[0]), layer(x[0]), "y", 16)
    assert torch.fx.symbolic_trace(layer)(x[0]).shape == x[0].shape


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@OF_ROWS
def test_other_calls_are_left_to_torch(kind):
    other, layer = row_pair(kind, 4)
    x = torch.randn(3, 2, 4)
    mapped = torch.func.vmap(layer)(x)
    assert torch.allclose(mapped, other(x), atol=1e-6)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    assert torch.allclose(tangent, torch.func.jvp(other, (x,), (x,))[1], atol=1e-5)
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)])
    if kind == "LayerNorm":
        torch.testing.assert_close(
            layer(nested).to_padded_tensor(0), other(nested).to_padded_tensor(0)
        )
    y = layer(x.requires_grad_())
    batch = torch.randn(2, *y.shape)
    got = torch.autograd.grad(y, x, batch, is_grads_batched=True)[0]
    expected = torch.autograd.grad(other(x), x, batch, is_grads_batched=True)[0]
    assert torch.allclose(got, expected, atol=1e-5)


@OF_ROWS
def test_what_has_changed_is_noticed(kind):
    theirs, layer = row_pair(kind, 4)
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
    theirs(other).backward(x)
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
def test_operators_of_rows(centered):
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
@OF_ROWS
def test_rows_are_traced_and_exported(kind):
    network = nn.Sequential(row_pair(kind, 4)[1], nn.ReLU())
    x = torch.randn(3, 4)
    graph = torch.fx.symbolic_trace(network)
    assert [node.op for node in graph.graph.nodes].count("call_module") == 2
    assert torch.equal(graph(x), network(x))
    exported = torch.export.export(network, (x,))
    assert not any("bnext" in str(node.target) for node in exported.graph.nodes)
    assert torch.allclose(exported.module()(x), network(x), atol=1e-6)
    assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-6)


WRONG = {
    "rank": ("group", torch.randn(6)), "channels": ("group", torch.randn(2, 9, 4)),
    "divisor": ("group", torch.randn(2, 5)), "float64": ("group", torch.randn(2, 6, 3).double()),
    "integers": ("group", torch.ones(2, 6, 3, dtype=torch.int64)),
    "spatial": ("instance 1", torch.randn(2, 6, 1)),
    "ranks": ("instance 1", torch.randn(2, 6, 1, 1)),
    "parameters": ("instance 1 affine", torch.randn(2, 5, 3)),
    "statistics": ("instance 1 tracked", torch.randn(2, 5, 3)),
    "normalized": ("layer", torch.zeros(2, 4)), "normalized of rms": ("rms", torch.zeros(2, 4)),
    "fewer axes": ("layer", torch.zeros(3)), "integers of rows": ("layer", torch.zeros(5, 3).int()),
    "integers of rms": ("rms", torch.zeros(2, 9).int()),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_norms_refuse_what_torch_refuses(what):
    name, x = WRONG[what]
    given = {}
    if name.endswith("affine"):
        given = {"affine": True}
    elif name.endswith("tracked"):
        given = {"track_running_stats": True}
    theirs, ours, _ = pair(" ".join(name.split()[:2]), **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, actual = outcome_of(theirs, x), outcome_of(ours, x)
        assert isinstance(expected, Failure)
        assert actual == expected
        if name == "instance 1 tracked":
            assert outcome_of(ours.eval(), x) == outcome_of(theirs.eval(), x)
            assert not ours.running_mean.any()


def test_functions_of_cells():
    x, weight, bias = torch.randn(4, 6, 5), torch.rand(6), torch.rand(6)
    mean, var = torch.rand(6), torch.rand(6)
    theirs: object = torch.nn.functional
    for ours, name, given in (
        (group_norm, "group_norm", (3, weight, bias)), (group_norm, "group_norm", (2,)),
        (instance_norm, "instance_norm", (mean, var, weight, bias, False)),
        (instance_norm, "instance_norm", (None, None, None, bias)),
    ):  # fmt: skip
        assert_close(ours(x, *given), getattr(theirs, name)(x, *given), name, 16)
    with pytest.raises(ValueError, match="must be divisible by num_groups"):
        bnext.torch.GroupNorm(4, 6)


@OF_ROWS
def test_state_dicts_go_both_ways(kind):
    for options in ({}, {"elementwise_affine": False}, {"eps": 1e-3}):
        ours, theirs = getattr(bnext.torch, kind), getattr(nn, kind)
        (mine,), (other,) = drawn(ours((3, 4), **options)), drawn(theirs((3, 4), **options))
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


@OF_ROWS
def test_state_dicts_of_numpy_layers(kind):
    numpys, other = getattr(bnext, kind)(7), getattr(nn, kind)(7)
    (layer,) = drawn(getattr(nn, kind)(7))
    assert numpys.load_state_dict(layer.state_dict()) == ([], [])
    other.load_state_dict({k: torch.as_tensor(v) for k, v in numpys.state_dict().items()})
    x, dy = torch.randn(4, 7), torch.randn(4, 7)
    assert torch.allclose(numpys(x), other(x), atol=1e-6)
    dx = numpys.backward(dy)
    _, expected, *gradients = step(other, x, dy)
    assert torch.allclose(dx, expected, atol=1e-6)
    assert torch.allclose(torch.as_tensor(numpys.weight_grad), gradients[0], atol=1e-5)
