"""Graphs of make_fx, which may run where gradients are recorded: they have derivatives.

They leave the state of layers without gradients.
"""

import copy

import pytest

import bnext

from .norms import LAYERS, pair, small  # noqa: F401 - a fixture
from .support import torch

nn = torch.nn
# PyTorch's own, about what it uses itself, and where a graph runs for each example of a vmap.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def traced(function, *inputs, **options):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, **options)(*inputs)


def graph_of(model, *inputs, **options):
    return traced(lambda *given: model(*given), *inputs, **options)


def ours_in(graph):
    """The operators of bnext's in a graph, by name."""
    return {node.target.name() for node in graph.graph.nodes if "bnext" in str(node.target)}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("fuse", [False, True], ids=["not", "fused"])
def test_graphs_of_training_leave_running_statistics_without_gradients(fuse, momentum):
    torch.manual_seed(5)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(),
        nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, momentum=momentum),
    )  # fmt: skip
    ours = bnext.torch.convert(copy.deepcopy(theirs), fuse=fuse)
    x = torch.randn(5, 3, 6, 6)
    graph = graph_of(ours, x)
    assert any("bnext" in str(node.target) for node in graph.graph.nodes)
    theirs(x)
    if momentum is not None:  # the graph has the factor of the call that was traced
        torch.testing.assert_close(graph(x), theirs(x))
        torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    else:
        graph(x)
    assert not any(buffer.requires_grad for buffer in ours.buffers())
    ours.eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    ours(x).sum().backward()


def test_layers_that_wait_for_others_are_no_part_of_a_graph():
    """They are refused, also by exporters; their outputs would be constants."""
    group = bnext.sync.ThreadGroup(1)
    layer = bnext.torch.convert(nn.BatchNorm1d(5), sync=group)
    x = torch.randn(4, 5)
    before = copy.deepcopy(layer.state_dict())
    tracers = [
        lambda: graph_of(layer, x),
        lambda: graph_of(layer, x, tracing_mode="symbolic", _allow_non_fake_inputs=True),
        lambda: graph_of(layer, x, pre_dispatch=True),
        lambda: torch.export.export(layer, (x,), strict=False),
        lambda: torch.export.export(layer, (x,), strict=True),
    ]
    for trace in tracers:
        with group.member(0), pytest.raises(Exception, match="becomes part of a graph"):
            trace()
        group.reset()
    torch.testing.assert_close(layer.state_dict(), before)
    layer.eval()
    assert_same(graph_of(layer, x)(x + 1), layer(x + 1))


# --- derivatives ----------------------------------------------------------------------------------

BATCH = {
    "batch": lambda library: library.BatchNorm2d(6),
    "of the batch": lambda library: library.BatchNorm2d(6, track_running_stats=False),
    "without parameters": lambda library: library.BatchNorm2d(6, affine=False),
}
ACTIVATED = {
    "activated": lambda: bnext.torch.BatchNorm2d(6, activation="gelu"),
    "ghosts": lambda: bnext.torch.BatchNorm2d(6, ghost_batch_size=2),
    "renormalizing": lambda: bnext.torch.BatchRenorm2d(6),
}
SYMBOLIC = {"tracing_mode": "symbolic", "_allow_non_fake_inputs": True}
EVERY = [*LAYERS, *BATCH, *ACTIVATED]


def layer_of(name):
    """A layer in float64, and an input."""
    if name in LAYERS:
        _, layer, shape = pair(name, torch.float64)
        return layer, torch.randn(shape, dtype=torch.float64)
    layer = ACTIVATED[name]() if name in ACTIVATED else BATCH[name](bnext.torch)
    return layer.double(), torch.randn(4, 6, 5, 3, dtype=torch.float64) * 2 + 1


def leaves_of(layer, x):
    """New leaves of the values of the input and of the parameters."""
    given = [x, *(parameter for _, parameter in layer.named_parameters())]
    return [each.detach().clone().requires_grad_() for each in given]


def forward_of(layer):
    """The layer as a function of its input and parameters; its buffers stay as they are."""
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: value.clone() for name, value in layer.named_buffers()}

    def call(x, *parameters):
        state = {name: value.clone() for name, value in buffers.items()}
        state |= dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, state, (x,))

    return call


def weighed(*results):
    """A sum that makes a difference between values."""
    return sum((each * (each.detach() + 1).cos()).sum() for each in results)


def step_of(call, create_graph=False):
    """The loss and the gradients of a call, as a function."""

    def step(*leaves):
        loss = weighed(call(*leaves))
        return loss, *torch.autograd.grad(loss, leaves, create_graph=create_graph)

    return step


def derivatives(function, layer, x):
    leaves = leaves_of(layer, x)
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    loss = weighed(*(each for each in results if each.requires_grad))
    found = torch.autograd.grad(loss, leaves, create_graph=True)
    again = torch.autograd.grad(
        weighed(*(each for each in found if each.requires_grad)), leaves, allow_unused=True
    )
    return *found, *again


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("options", [{}, SYMBOLIC, {"pre_dispatch": True}],
                         ids=str)  # fmt: skip
def test_graphs_of_a_forward_pass_are_differentiated(name, options):
    """Twice, where the graph runs, and as the layer itself is; nothing in it is a constant."""
    layer, x = layer_of(name)
    call = forward_of(layer)
    graph = traced(call, *leaves_of(layer, x), **options)
    assert ours_in(graph)
    for other in (x, x.sin() * 3):
        assert_same(graph(*leaves_of(layer, other)), call(*leaves_of(layer, other)))
        assert_same(derivatives(graph, layer, other), derivatives(call, layer, other))


@pytest.mark.parametrize("name", EVERY)
def test_graphs_of_a_step_are_differentiated(name):
    """And may be traced again."""
    layer, x = layer_of(name)
    call = forward_of(layer)
    graph = traced(step_of(call), *leaves_of(layer, x))
    assert any("backward" in each for each in ours_in(graph))
    again = traced(graph, *leaves_of(layer, x))
    assert ours_in(again) == ours_in(graph)
    other = x.sin() * 3
    expected = step_of(call, create_graph=True)
    for each in (graph, again):
        assert_same(each(*leaves_of(layer, other)), expected(*leaves_of(layer, other)))
        assert_same(derivatives(each, layer, other), derivatives(expected, layer, other))


@pytest.mark.parametrize("name", ["of the batch", "group", "layer", "rms"])
def test_graphs_under_transforms_of_functions(name):
    """What PyTorch's operators make of them."""
    layer, x = layer_of(name)
    call = forward_of(layer)
    graph = traced(call, *leaves_of(layer, x))
    step = traced(step_of(call), *leaves_of(layer, x))
    parameters = [parameter.detach() for parameter in layer.parameters()]
    x, others = x.sin() * 3, torch.stack([x, 2 * x.cos()])

    def loss(function):
        return lambda x: weighed(function(x, *parameters))

    for of_graph, of_layer in ((graph, call), (lambda *given: step(*given)[1], None)):
        of_layer = of_layer or torch.func.grad(lambda x, *rest: weighed(call(x, *rest)))
        assert_same(torch.func.grad(loss(of_graph))(x), torch.func.grad(loss(of_layer))(x))
    for transformed in (
        lambda f: torch.func.jvp(lambda x: f(x, *parameters), (x,), (x.cos(),)),
        lambda f: torch.func.vmap(torch.func.grad(loss(f)))(others),
    ):
        assert_same(transformed(graph), transformed(call))


def step_of_model(model):
    """A step as a function of state and input."""

    def step(parameters, buffers, x):
        loss = weighed(torch.func.functional_call(model, (parameters, buffers), (x,)))
        return loss, torch.autograd.grad(loss, list(parameters.values()))

    return step


def state_of(model):
    parameters = {name: each.detach().requires_grad_() for name, each in model.named_parameters()}
    return parameters, {name: each.clone() for name, each in model.named_buffers()}


@pytest.mark.parametrize("fuse", [False, True], ids=["not", "fused"])
def test_graphs_of_a_step_of_a_model(fuse):
    """As with PyTorch's layers: the running statistics move, and gradients are differentiated."""
    torch.manual_seed(5)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    ).double()
    ours = bnext.torch.convert(copy.deepcopy(theirs), fuse=fuse)
    results = []
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    for model in (theirs, ours):
        graph = traced(step_of_model(model), *state_of(model), x)
        parameters, buffers = state_of(model)
        loss, gradients = graph(parameters, buffers, x + 1)
        leaves = list(parameters.values())
        second = torch.autograd.grad(weighed(*gradients), leaves, allow_unused=True)
        results.append((loss, gradients, second, buffers))
    assert_same(results[1], results[0])


# --- compilers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["of the batch", "group", "layer"])
def test_graphs_of_compilers_have_operators_that_do_not_record(name, small_by_kernels):
    """Nothing stands between the dispatcher and the kernels, also where a graph is compiled."""
    from functorch.compile import aot_function, make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch.compiler.reset()
    layer, x = layer_of(name)
    call = forward_of(layer)
    seen = set()

    def see(graph, _):
        seen.update(ours_in(graph))
        return make_boxed_func(graph.forward)

    graph = traced(call, *leaves_of(layer, x))
    assert all(each.endswith("_recorded") for each in ours_in(graph))
    expected = step_of(call)(*leaves_of(layer, x))
    for compiled in (
        torch.compile(call, backend=aot_autograd(fw_compiler=see, bw_compiler=see)),
        torch.compile(graph, backend=aot_autograd(fw_compiler=see, bw_compiler=see)),
        aot_function(call, fw_compiler=see, bw_compiler=see),
    ):
        seen.clear()
        assert_same(step_of(compiled)(*leaves_of(layer, x)), expected)
        assert len(seen) >= 2
        assert not any(each.endswith("_recorded") for each in seen)
