"""PyTorch's GroupNorm and InstanceNorm1d/2d/3d over bnext's kernels, beside torch.nn's."""

import copy
import pickle
import warnings

import pytest

import bnext

from .support import (
    DTYPES,
    LIBRARIES,
    Failure,
    assert_close,
    bound_of,
    channels_last,
    name_of_dtype,
    outcome_of,
    torch,
)

from bnext.torch import cell_functional, cell_kernels  # isort: skip - of which there is nothing without PyTorch
from bnext.torch.cell_functional import group_norm, instance_norm  # isort: skip
from bnext.torch.cell_gradients import backward  # isort: skip

# PyTorch's own, when it first loads inductor, and about what it uses itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.*is deprecated"),
]

LAYERS = {
    "group": (lambda library, **given: library.GroupNorm(3, 6, **given), (4, 6, 5, 3)),
    "group of 2 axes": (lambda library, **given: library.GroupNorm(2, 6, **given), (5, 6)),
    "group of channels": (lambda library, **given: library.GroupNorm(6, 6, **given), (2, 6, 7)),
    "instance 1": (lambda library, **given: library.InstanceNorm1d(6, **given), (4, 6, 9)),
    "instance 2": (lambda library, **given: library.InstanceNorm2d(6, **given), (4, 6, 5, 3)),
    "instance 3": (lambda library, **given: library.InstanceNorm3d(6, **given), (2, 6, 5, 3, 2)),
    "example": (lambda library, **given: library.InstanceNorm2d(6, **given), (6, 5, 3)),
}
EVERY = pytest.mark.parametrize("name", LAYERS)


def pair(name, dtype=torch.float32, **given):
    """torch.nn's layer and ours, with the same random parameters, and the shape of an input."""
    make, shape = LAYERS[name]
    theirs, ours = (make(library, dtype=dtype, **given) for library in LIBRARIES.values())
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, shape


def run(layer, x, dy):
    layer.zero_grad()
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    named = {"y": y.detach(), "dx": leaf.grad}
    named |= {n.removeprefix("_orig_mod."): p.grad for n, p in layer.named_parameters()}
    return named | {n.removeprefix("_orig_mod."): b.clone() for n, b in layer.named_buffers()}


def check(theirs, ours, x, dy, units=None):
    expected, actual = run(theirs, x, dy), run(ours, x, dy)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, name, units or 4 * bound_of(x.dtype))
        if name in ("y", "dx") and x.is_contiguous():
            assert actual[name].stride() == value.stride()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Kernels take small calls as well."""
    monkeypatch.setattr("bnext.torch.cell_functional.LEAST_VALUES", 0)


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


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of_dtype)
def test_torch_cells_do_what_torch_does(name, dtype, calls):
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


def test_torch_small_calls_are_torchs(monkeypatch):
    monkeypatch.undo()
    theirs, ours, shape = pair("group")
    x = torch.randn(shape)
    assert torch.equal(ours(x), theirs(x))
    assert cell_functional.LEAST_VALUES == 32 * 1024
    large = torch.randn(4, 6, 1366)
    assert not isinstance(ours(large.requires_grad_()).grad_fn, type(theirs(large).grad_fn))


@pytest.mark.parametrize("name", ["instance 1", "instance 2", "example"])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_torch_running_statistics(name, momentum):
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


def test_torch_running_statistics_of_a_repeated_call():
    """Checkpointing moves them once."""
    theirs, ours, shape = pair("instance 2", track_running_stats=True)
    x = torch.randn(shape, requires_grad=True)
    theirs(x)
    torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False).sum().backward()
    assert_close(ours.running_mean, theirs.running_mean, "running_mean", 4)


@EVERY
def test_torch_second_derivatives(name, calls):
    _, ours, shape = pair(name, torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    named = dict(ours.named_parameters())

    def call(x, *parameters):
        return torch.func.functional_call(ours, dict(zip(named, parameters, strict=True)), (x,))

    inputs = (x, *named.values())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    assert calls["backward"] > 0


def test_torch_formulas_are_the_kernels(calls):
    _, ours, shape = pair("group", torch.float64)
    x, dy = torch.randn(2, *shape, dtype=torch.float64)
    first = run(ours, x, dy)
    assert calls["backward"] == 1
    dx, dweight, dbias = backward(dy, x, ours.weight.detach(), groups=3, eps=ours.eps)
    for name, value in (("dx", dx), ("weight", dweight), ("bias", dbias)):
        assert_close(value, first[name], name, 64)


@EVERY
def test_torch_compile_of_cells(name, calls):
    torch.compiler.reset()
    _, ours, shape = pair(name)
    compiled = torch.compile(copy.deepcopy(ours), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        x, dy = torch.randn(2, *shape)
        check(ours, compiled, x, dy, units=1)
    assert calls == {"forward": 4, "backward": 4}


def test_torch_compile_of_running_statistics():
    torch.compiler.reset()
    theirs, ours, shape = pair("instance 2", track_running_stats=True)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    check(theirs, compiled, *torch.randn(2, *shape))


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_of_cells(strict):
    """The operators are PyTorch's."""
    model = torch.nn.Sequential(
        bnext.torch.GroupNorm(3, 6), bnext.torch.InstanceNorm2d(6, track_running_stats=True)
    ).eval()
    x = torch.randn(2, 6, 5, 3)
    program = torch.export.export(model, (x,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.group_norm.default", "aten.instance_norm.default"]
    assert_close(program.module()(x), model(x), "y", 16)


def test_torch_cells_in_graphs_and_transforms():
    model = torch.nn.Sequential(bnext.torch.GroupNorm(3, 6), bnext.torch.InstanceNorm1d(6))
    nodes = [node.op for node in torch.fx.symbolic_trace(model).graph.nodes]
    assert nodes == ["placeholder", "call_module", "call_module", "output"]
    x = torch.randn(5, 2, 6, 4)
    layer = model[0]
    assert_close(torch.vmap(layer)(x), torch.stack([layer(each) for each in x]), "y", 16)
    scripted = torch.jit.script(copy.deepcopy(layer))
    assert_close(scripted(x[0]), layer(x[0]), "y", 16)
    assert torch.fx.symbolic_trace(layer)(x[0]).shape == x[0].shape


WRONG = {
    "rank": ("group", torch.randn(6)), "channels": ("group", torch.randn(2, 9, 4)),
    "divisor": ("group", torch.randn(2, 5)), "float64": ("group", torch.randn(2, 6, 3).double()),
    "integers": ("group", torch.ones(2, 6, 3, dtype=torch.int64)),
    "spatial": ("instance 1", torch.randn(2, 6, 1)),
    "ranks": ("instance 1", torch.randn(2, 6, 1, 1)),
    "parameters": ("instance 1 affine", torch.randn(2, 5, 3)),
    "statistics": ("instance 1 tracked", torch.randn(2, 5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_torch_cells_refuse_what_torch_refuses(what):
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


def test_torch_functions_of_cells():
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


def test_torch_convert_cells():
    def model():
        return torch.nn.Sequential(
            torch.nn.GroupNorm(3, 6), torch.nn.InstanceNorm2d(6, track_running_stats=True),
            torch.nn.BatchNorm2d(6), torch.nn.InstanceNorm1d(6), torch.nn.InstanceNorm3d(6),
        )  # fmt: skip

    ours = [
        bnext.torch.GroupNorm, bnext.torch.InstanceNorm2d, bnext.torch.BatchNorm2d,
        bnext.torch.InstanceNorm1d, bnext.torch.InstanceNorm3d,
    ]  # fmt: skip
    theirs = [type(layer) for layer in model()]

    def kinds(model):
        return [type(layer) for layer in model]

    assert kinds(bnext.torch.convert(model(), norms="all")) == ours
    assert kinds(bnext.torch.convert(model(), norms="group")) == [ours[0], *theirs[1:]]
    some = bnext.torch.convert(model(), norms=("instance",))
    assert kinds(some) == [theirs[0], ours[1], theirs[2], *ours[3:]]
    assert kinds(bnext.torch.convert(model())) == [*theirs[:2], ours[2], *theirs[3:]]
    assert kinds(bnext.torch.revert(bnext.torch.convert(model(), norms="all"))) == theirs
    assert "kernels=bnext" in repr(some)
    state = bnext.torch.convert(model(), norms="all").state_dict()
    model().load_state_dict(state)


@pytest.mark.parametrize("norm", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"])
def test_torch_lazy_instance_norms_become_ours(norm):
    """At their first call, whose result is ours as well; and back."""
    x = torch.randn(2, 3, *(4,) * int(norm[-2]))
    lazy = getattr(torch.nn, f"Lazy{norm}")
    network = torch.nn.Sequential(lazy(affine=True), lazy())
    assert bnext.torch.convert(network, norms="instance") is network
    assert [type(layer) for layer in network] == [getattr(bnext.torch, f"Lazy{norm}")] * 2
    assert "kernels=bnext" in repr(network[0])
    y = network(x)
    assert [type(layer) for layer in network] == [getattr(bnext.torch, norm)] * 2
    torch.testing.assert_close(y, network(x))
    bnext.torch.revert(network)
    assert [type(layer) for layer in network] == [getattr(torch.nn, norm)] * 2
    torch.testing.assert_close(y, network(x))
    back = bnext.torch.revert(bnext.torch.convert(torch.nn.Sequential(lazy()), norms="all"))
    assert type(back[0]) is lazy


class Named(torch.nn.GroupNorm):
    """A subclass that inherits PyTorch's forward."""

    def __init__(self, channels):
        super().__init__(3, channels)


class Scaled(torch.nn.InstanceNorm2d):
    """One that calls it."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_torch_subclasses_of_cells_are_converted():
    network = torch.nn.Sequential(Named(6), Scaled(6, affine=True))
    x = torch.randn(2, 6, 5, 5)
    expected = network(x)
    bnext.torch.convert(network, norms="all")
    assert isinstance(network[0], Named)
    assert isinstance(network[0], bnext.torch.GroupNorm)
    assert isinstance(network[1], bnext.torch.InstanceNorm2d)
    assert type(network[0]).__name__ == "Named"
    torch.testing.assert_close(network(x), expected)
    again = pickle.loads(pickle.dumps(network))
    assert type(again[0]) is type(network[0])
    report = bnext.torch.report(network)
    assert [each.norm for each in report.exchanged] == ["group", "instance"]
    assert str(report).startswith("2 of 2 layers of normalization are bnext's")
    bnext.torch.revert(network)
    assert [type(layer) for layer in network] == [Named, Scaled]
    assert [each.reason for each in bnext.torch.report(network).left] == [
        f"not converted yet: bnext.torch.convert(norms={name!r}) exchanges it"
        for name in ("group", "instance")
    ]
