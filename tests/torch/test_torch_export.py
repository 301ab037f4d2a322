"""torch.export, and what else makes a graph of a model: torch.fx, TorchScript, torch.jit.trace."""

import copy
import io

import pytest

import bnext

from .support import LIBRARIES, assert_close, layers, torch

# PyTorch's own, about what it uses itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.*is deprecated"),
]


def new_model(library, training):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), library.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 1), library.BatchNorm2d(4, affine=False),
    ).train(training)  # fmt: skip
    return model


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])
def test_torch_export_with_a_dynamic_batch(strict, training):
    """Buffers move as the model's do."""
    model = new_model(bnext.torch, training)
    reference = new_model(torch.nn, training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (torch.randn(4, 3, 6, 6),), dynamic_shapes=({0: batch},), strict=strict
    )
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("bnext.batch_norm" in target for target in targets) == training
    call = program.module()
    for size in (4, 2, 9):
        x = torch.randn(size, 3, 6, 6)
        assert_close(call(x), reference(x), "y", 10.0)
    state = reference.state_dict()
    for name, value in call.state_dict().items():
        assert_close(value, state[name], name, 1.0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_export_saved_and_loaded(training):
    model = new_model(bnext.torch, training)
    program = torch.export.export(model, (torch.randn(4, 3, 6, 6),))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(loaded(x), copy.deepcopy(model)(x))


def test_torch_export_lowered_to_core_operators():
    """Inference has none of ours, so that it runs where there is no bnext."""
    program = torch.export.export(new_model(bnext.torch, False), (torch.randn(4, 3, 6, 6),))
    lowered = program.run_decompositions()
    assert not any("bnext" in str(node.target) for node in lowered.graph.nodes)
    training = torch.export.export(new_model(bnext.torch, True), (torch.randn(4, 3, 6, 6),))
    lowered = training.run_decompositions()
    assert len(lowered.graph_signature.buffers_to_mutate) == 6
    x = torch.randn(4, 3, 6, 6)
    assert_close(lowered.module()(x), new_model(torch.nn, True)(x), "y", 10.0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_make_fx(training):
    """Real tensors, traced as they run: as the layer was, without what a layer keeps of it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    theirs, ours = (layer.train(training) for layer in layers("BatchNorm1d"))
    x = torch.randn(6, 5)
    graph = make_fx(lambda x: ours(x))(x)
    assert any("bnext" in str(node.target) for node in graph.graph.nodes) == training
    theirs(x)
    assert_close(graph(x), theirs(x), "y", 10.0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torch_jit_trace(training):
    """Has PyTorch's operator in it."""
    x = torch.randn(4, 3, 6, 6)
    results = []
    for library in LIBRARIES.values():
        traced = torch.jit.trace(new_model(library, training), x, check_trace=False)
        assert "aten::batch_norm" in str(traced.inlined_graph)
        y = traced(torch.ones_like(x).cumsum(-1).sin())
        results.append((y, traced.state_dict()))
    torch.testing.assert_close(results[1], results[0])


def test_torch_jit_script():
    """TorchScript compiles PyTorch's layers in place of ours, with the same tensors."""
    model = new_model(bnext.torch, True)
    buffer = model[1].running_mean
    x = torch.randn(4, 3, 6, 6)
    expected = new_model(torch.nn, True)
    scripted = torch.jit.script(model)
    assert_close(scripted(x), expected(x), "y", 10.0)
    assert_close(buffer, expected[1].running_mean, "running_mean")
    assert torch.jit.script(bnext.torch.BatchNorm1d(5))(torch.randn(3, 5)).shape == (3, 5)


def test_torch_fx_symbolic_trace():
    """Layers are nodes, as torch.nn's are; also within a module of the user's."""

    class Net(torch.nn.Module):
        def __init__(self, library):
            super().__init__()
            self.body = new_model(library, True)
            self.last = library.BatchNorm1d(4)

        def forward(self, x):
            return self.last(self.body(x).flatten(2)) + x.mean()

    def nodes(graph):
        return [(node.op, str(node.target), str(node.args)) for node in graph.nodes]

    torch.manual_seed(0)
    theirs, ours = (torch.fx.symbolic_trace(Net(library)) for library in LIBRARIES.values())
    assert nodes(ours.graph) == nodes(theirs.graph)
    assert type(ours.get_submodule("body.1")) is bnext.torch.BatchNorm2d
    x = torch.randn(4, 3, 6, 6)
    assert_close(ours(x), theirs(x), "y", 10.0)
    group = bnext.sync.ThreadGroup(2)
    traced = torch.fx.symbolic_trace(bnext.torch.convert(new_model(torch.nn, True), sync=group))
    assert [node.op for node in traced.graph.nodes].count("call_module") == 5
