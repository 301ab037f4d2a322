"""Graphs of torch.fx: layers within models, layers alone, functions; run, pickled and compiled."""

import copy
import pickle

import pytest

import bnext

from .support import LIBRARIES, assert_close, buffers_of, layers, torch

BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def new_body(library):
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), library.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 1), library.BatchNorm2d(4, affine=False),
    )  # fmt: skip


class Net(torch.nn.Module):
    def __init__(self, library):
        super().__init__()
        self.body = new_body(library)
        self.last = library.BatchNorm1d(4)

    def forward(self, x):
        return self.last(self.body(x).flatten(2)) + x.mean()


def nodes(graph):
    return [(node.op, str(node.target), str(node.args)) for node in graph.nodes]


def test_fx_layers_are_nodes():
    """As torch.nn's are; also within a module of the user's."""
    theirs, ours = (torch.fx.symbolic_trace(Net(library)) for library in LIBRARIES.values())
    assert nodes(ours.graph) == nodes(theirs.graph)
    assert type(ours.get_submodule("body.1")) is bnext.torch.BatchNorm2d
    x = torch.randn(4, 3, 6, 6)
    assert_close(ours(x), theirs(x), "y", 10.0)
    loaded = pickle.loads(pickle.dumps(ours))
    assert nodes(loaded.graph) == nodes(ours.graph)
    assert torch.equal(loaded(x), ours(x))
    group = bnext.sync.ThreadGroup(2)
    traced = torch.fx.symbolic_trace(bnext.torch.convert(new_body(torch.nn), sync=group))
    assert [node.op for node in traced.graph.nodes].count("call_module") == 5


@BOTH
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False},
                                     {"track_running_stats": False}], ids=str)  # fmt: skip
def test_fx_of_a_layer_alone(options, training, kernel_calls):
    """One node, over tensors that the graph shares with the layer."""
    _, layer = layers("BatchNorm1d", **options)
    layer.train(training)
    reference = copy.deepcopy(layer)
    graph = torch.fx.symbolic_trace(layer)
    assert set(graph.state_dict()) == set(layer.state_dict()) - (
        set() if training else {"num_batches_tracked"}
    )
    pickled = pickle.loads(pickle.dumps(graph))
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(graph), backend="aot_eager", fullgraph=True)
    for call in (graph, pickled, compiled):
        other = copy.deepcopy(reference)
        for _ in range(2):
            x = torch.randn(6, 5)
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            y, expected = call(leaves[0]), other(leaves[1])
            assert_close(y, expected, "y", 10.0)
            for result in (y, expected):
                result.square().sum().backward()
            assert_close(leaves[0].grad, leaves[1].grad, "dx", 10.0)
        for name, value in call.state_dict().items():
            assert_close(value, other.state_dict()[name.removeprefix("_orig_mod.")], name, 1.0)
    assert torch.equal(graph(x), layer(x)) or training
    assert kernel_calls["forward"] >= 10 or not training
    for name, value in buffers_of(layer).items():
        assert (
            value is None
            or name not in graph.state_dict()
            or (getattr(graph, name).data_ptr() == getattr(layer, name).data_ptr())
        )


def test_fx_of_the_function(kernel_calls, small_by_kernels):
    """A call is a node that calls the function again: also in a graph that was pickled."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(5))
            self.register_buffer("mean", torch.zeros(5))
            self.register_buffer("var", torch.ones(5))

        def forward(self, x):
            call = bnext.torch.functional.batch_norm
            return call(x.sin(), self.mean, self.var, weight=self.weight, training=True)

    model = Net()
    x = torch.randn(6, 5)
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets == [bnext.torch.functional.batch_norm]
    torch.compiler.reset()
    calls = (
        graph, pickle.loads(pickle.dumps(graph)),
        torch.compile(copy.deepcopy(graph), backend="aot_eager", fullgraph=True),
    )  # fmt: skip
    for call in calls:
        other = copy.deepcopy(model)
        assert_close(call(x), other(x), "y", 10.0)
        assert_close(call.mean, other.mean, "mean", 1.0)
    assert kernel_calls["forward"] == 6
    only_weight = torch.fx.symbolic_trace(
        lambda weight: bnext.torch.functional.batch_norm(x, None, None, weight, None, True)
    )
    y = only_weight(model.weight)
    assert_close(y, torch.nn.functional.batch_norm(x, None, None, model.weight, None, True), "y")
