"""torch.export, and what else makes a graph of a model: make_fx, TorchScript, torch.jit.trace."""

import copy
import io

import pytest

import bnext

from ..subprocesses import run_python
from .support import LIBRARIES, assert_close, layers, torch

from bnext.torch import context  # isort: skip - of which there is nothing without PyTorch

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


BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
STRICT = pytest.mark.parametrize("strict", [True, False], ids=["strict", "not-strict"])


def targets_of(program):
    """What a graph calls, by name."""
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@BOTH
@STRICT
def test_export_with_a_dynamic_batch(strict, training):
    """Buffers move as the model's do, and operators are PyTorch's."""
    model = new_model(bnext.torch, training)
    reference = new_model(torch.nn, training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        model, (torch.randn(4, 3, 6, 6),), dynamic_shapes=({0: batch},), strict=strict
    )
    assert targets_of(program).count("aten.batch_norm.default") == 2
    call = program.module()
    for size in (4, 2, 9):
        x = torch.randn(size, 3, 6, 6)
        assert_close(call(x), reference(x), "y", 10.0)
    state = reference.state_dict()
    for name, value in call.state_dict().items():
        assert_close(value, state[name], name, 1.0)


@STRICT
@pytest.mark.parametrize(
    "options", [{}, {"track_running_stats": False}, {"affine": False}], ids=str
)
def test_export_is_the_graph_of_torch_s_layers(options, strict):
    """Operator by operator and in order: whatever knows the one graph knows the other."""
    for training in (True, False):
        graphs = []
        for library in LIBRARIES.values():
            model = torch.nn.Sequential(
                torch.nn.Conv1d(3, 5, 2), library.BatchNorm1d(5, **options), torch.nn.ReLU()
            ).train(training)
            program = torch.export.export(model, (torch.randn(4, 3, 6),), strict=strict)
            graphs.append((targets_of(program), targets_of(program.run_decompositions())))
        assert graphs[1] == graphs[0]


class Block(torch.nn.Module):
    """A residual block: normalization, an addition, an activation."""

    def __init__(self, library, **options):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.bn = library.BatchNorm2d(3, **options)
        self.act = torch.nn.ReLU6()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)) + x)


class Own(torch.nn.BatchNorm2d):
    """A class of a user's."""


def new_network():
    """Of PyTorch's layers, with norms of every kind."""
    torch.manual_seed(4)
    return torch.nn.Sequential(
        Block(torch.nn), torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.SiLU(),
        torch.nn.Sequential(Own(4), torch.nn.ReLU()), torch.nn.GroupNorm(2, 4),
        torch.nn.InstanceNorm2d(4), torch.nn.LayerNorm(6), torch.nn.Flatten(),
        torch.nn.Linear(144, 5), torch.nn.BatchNorm1d(5, affine=False),
    )  # fmt: skip


FUSED = pytest.mark.parametrize(
    "options", [{}, {"fuse": True}, {"fuse": True, "recompute": True}], ids=str
)


def described(program, strict):
    """What a graph calls, and which module's forward each call is from."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            sources = node.meta.get("source_fn_stack")
            modules = list(node.meta["nn_module_stack"].values())
            found.append((str(node.target), modules, sources))
        if not strict:  # where Dynamo names tensors by how it has come to them
            found.append((node.name, str(node.args)))
    return found


@BOTH
@STRICT
@FUSED
def test_export_of_a_converted_model_is_the_graph_of_torch_s(options, strict, training):
    """With the modules that nodes are from, by which quantizers find layers."""
    x = torch.randn(4, 3, 6, 6)
    graphs = []
    for change in (lambda m: m, lambda m: bnext.torch.convert(m, norms="all", **options)):
        model = change(new_network()).train(training)
        program = torch.export.export(model, (x,), strict=strict)
        graphs.append(described(program, strict))
    assert graphs[1] == graphs[0]


@STRICT
def test_export_of_frozen_and_activated_layers(strict):
    """They have PyTorch's operators, and the results of the model, in every mode."""
    x = torch.randn(4, 3, 6, 6)
    model = torch.nn.Sequential(
        Block(bnext.torch), bnext.torch.BatchNorm2d(3, activation="gelu", recompute=True),
        bnext.torch.BatchNorm2d(3, activation="leaky_relu", negative_slope=0.2),
    )  # fmt: skip
    model(x)
    model = bnext.torch.freeze(model).train()
    program = torch.export.export(model, (x,), strict=strict)
    assert all(target.startswith("aten.") for target in targets_of(program))
    assert_close(program.module()(x), model(x), "y", 10.0)


@STRICT
@FUSED
def test_exported_models_are_trained_further(options, strict):
    """With batches of any size, step by step as PyTorch's."""
    states = []
    for change in (lambda m: m, lambda m: bnext.torch.convert(m, norms="all", **options)):
        batch = torch.export.Dim("batch", min=2)
        x = torch.randn(4, 3, 6, 6)
        program = torch.export.export(
            change(new_network()), (x,), dynamic_shapes=({0: batch},), strict=strict
        )
        graph = program.module()
        optimizer = torch.optim.SGD(graph.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(7)
        for size in (4, 7, 2, 16):
            optimizer.zero_grad()
            (graph(torch.randn(size, 3, 6, 6) * 2 + 1) + 1).square().mean().backward()
            optimizer.step()
        states.append(graph.state_dict())
    assert states[0]["2.num_batches_tracked"] == 4
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


@STRICT
@pytest.mark.parametrize("name", ["is_exporting", "none"])
def test_export_where_torch_does_not_tell(name, strict, monkeypatch):
    """As with versions without `torch.compiler.is_exporting`, or which set it in one mode only."""
    monkeypatch.setattr(context, "_is_exporting", None if name == "none" else lambda: not strict)
    model = new_model(bnext.torch, True)
    for _ in range(2):
        program = torch.export.export(model, (torch.randn(4, 3, 6, 6),), strict=strict)
        assert "aten.batch_norm.default" in targets_of(program)


@STRICT
def test_export_and_torch_compile_of_one_model(strict, kernel_calls, small_by_kernels):
    """Neither takes what the other has traced."""
    model = new_model(bnext.torch, True)
    x = torch.randn(4, 3, 6, 6)
    for _ in range(2):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)
        program = torch.export.export(model, (x,), strict=strict)
        assert not any("bnext" in target for target in targets_of(program))
    assert kernel_calls["forward"] == 4


@BOTH
def test_export_saved_and_loaded(training):
    model = new_model(bnext.torch, training)
    program = torch.export.export(model, (torch.randn(4, 3, 6, 6),))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = torch.randn(4, 3, 6, 6)
    assert_close(loaded(x), copy.deepcopy(model)(x), "y", 10.0)


@BOTH
def test_export_is_loaded_without_bnext(training, tmp_path):
    model = new_model(bnext.torch, training)
    x = torch.randn(4, 3, 6, 6)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save(x, tmp_path / "x.pt")
    program = f"""
        import sys
        import warnings
        warnings.simplefilter("ignore")
        sys.modules["bnext"] = None
        import torch
        model = torch.export.load({str(tmp_path / "model.pt2")!r}).module()
        torch.save(model(torch.load({str(tmp_path / "x.pt")!r})), {str(tmp_path / "y.pt")!r})
    """
    run_python(program).check_returncode()
    assert_close(torch.load(tmp_path / "y.pt"), new_model(torch.nn, training)(x), "y", 10.0)


@BOTH
def test_export_lowered_to_core_operators(training):
    program = torch.export.export(new_model(bnext.torch, training), (torch.randn(4, 3, 6, 6),))
    lowered = program.run_decompositions()
    assert not any("bnext" in target for target in targets_of(lowered))
    assert len(lowered.graph_signature.buffers_to_mutate) == (6 if training else 0)
    x = torch.randn(4, 3, 6, 6)
    assert_close(lowered.module()(x), new_model(torch.nn, training)(x), "y", 10.0)


@BOTH
def test_make_fx(training):
    """Real tensors, traced as they run: as the layer was, without what a layer keeps of it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    theirs, ours = (layer.train(training) for layer in layers("BatchNorm1d"))
    x = torch.randn(6, 5)
    graph = make_fx(lambda x: ours(x))(x)
    assert any("bnext" in str(node.target) for node in graph.graph.nodes) == training
    theirs(x)
    assert_close(graph(x), theirs(x), "y", 10.0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@BOTH
def test_jit_trace(training):
    """Has PyTorch's operator in it."""
    x = torch.randn(4, 3, 6, 6)
    results = []
    for library in LIBRARIES.values():
        traced = torch.jit.trace(new_model(library, training), x, check_trace=False)
        assert "aten::batch_norm" in str(traced.inlined_graph)
        y = traced(torch.ones_like(x).cumsum(-1).sin())
        results.append((y, traced.state_dict()))
    torch.testing.assert_close(results[1], results[0])


def test_jit_script():
    """TorchScript compiles PyTorch's layers in place of ours, with the same tensors."""
    model = new_model(bnext.torch, True)
    buffer = model[1].running_mean
    x = torch.randn(4, 3, 6, 6)
    expected = new_model(torch.nn, True)
    scripted = torch.jit.script(model)
    assert_close(scripted(x), expected(x), "y", 10.0)
    assert_close(buffer, expected[1].running_mean, "running_mean")
    assert torch.jit.script(bnext.torch.BatchNorm1d(5))(torch.randn(3, 5)).shape == (3, 5)
