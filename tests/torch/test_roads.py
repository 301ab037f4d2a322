"""The road of every kind of call, by the one function that decides; and the order of imports."""

import ast
import contextlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bnext

from .support import torch

from torch._subclasses.fake_tensor import FakeTensorMode  # isort: skip
from bnext.torch import kernels, roads  # isort: skip - of which there is nothing without PyTorch
from bnext.torch.context import is_plain  # isort: skip

X = torch.randn(4, 5)
VECTOR = torch.ones(5)
CALL = {
    "x": X, "running_mean": None, "running_var": None, "weight": None, "bias": None,
    "training": True, "momentum": 0.1, "eps": 1e-5,
}  # fmt: skip


class Subclass(torch.Tensor):
    pass


class Proxy(torch.fx.Proxy):
    def __init__(self):
        tracer = torch.fx.Tracer()
        tracer.graph = torch.fx.Graph()
        super().__init__(tracer.graph.placeholder("x"), tracer)


@contextlib.contextmanager
def transformed():
    """A level of functorch."""
    level = torch._C._functorch._grad_increment_nesting()
    try:
        yield level
    finally:
        torch._C._functorch._grad_decrement_nesting()


OBSERVERS = {
    "mode": FakeTensorMode,
    "transform": transformed,
    "dual level": torch.autograd.forward_ad.dual_level,
}


EAGER = {
    "the batch": ({}, roads.KERNELS),
    "16 bits": ({"x": X.bfloat16(), "weight": VECTOR}, roads.KERNELS),
    "momentum None": ({"momentum": None}, roads.KERNELS),
    "whole numbers": ({"momentum": 1, "eps": 1}, roads.KERNELS),
    "evaluation": (
        {"training": False, "running_mean": VECTOR, "running_var": VECTOR}, roads.KERNELS
    ),
    "a parameter": ({"weight": torch.nn.Parameter(VECTOR)}, roads.KERNELS),
    "a subclass": ({"x": X.as_subclass(Subclass)}, roads.PYTORCH),
    "weight a subclass": ({"weight": VECTOR.as_subclass(Subclass)}, roads.PYTORCH),
    "bias a list": ({"bias": [1.0]}, roads.PYTORCH),
    "training 1": ({"training": 1}, roads.PYTORCH),
    "momentum a tensor": ({"momentum": torch.tensor(0.1)}, roads.PYTORCH),
    "eps 0": ({"eps": 0.0}, roads.PYTORCH),
    "eps None": ({"eps": None}, roads.PYTORCH),
    "nothing": ({"x": None}, roads.PYTORCH),
    "a proxy": ({"x": Proxy()}, roads.NODE),
    "weight a proxy": ({"x": [], "weight": Proxy()}, roads.NODE),
}  # fmt: skip
OBSERVED = {
    "the batch": ({}, roads.OPERATORS),
    "running statistics": ({"running_mean": VECTOR, "running_var": VECTOR}, roads.OPERATORS),
    "no variance": ({"running_mean": VECTOR}, roads.PYTORCH),
    "wide weight": ({"weight": VECTOR.double()}, roads.PYTORCH),
    "short weight": ({"weight": VECTOR[:3]}, roads.PYTORCH),
    "integers": ({"x": X.int()}, roads.PYTORCH),
    "empty": ({"x": X[:0]}, roads.PYTORCH),
    "evaluation": ({"training": False}, roads.PYTORCH),
    "eps 0": ({"eps": 0.0}, roads.PYTORCH),
}


@pytest.mark.parametrize("name", EAGER)
def test_road_of_an_eager_call(name):
    given, road = EAGER[name]
    assert roads.road_of(**CALL | given) is road


@pytest.mark.parametrize("name", OBSERVED)
def test_road_of_a_call_that_a_mode_observes(name):
    given, road = OBSERVED[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert roads.road_of(**CALL | given) is road


@pytest.mark.parametrize("training", [True, False])
def test_road_of_a_compiled_and_an_exported_call(training, monkeypatch):
    seen = []
    road_of = roads.road_of

    def watched(*arguments):
        road = road_of(*arguments)
        seen.append(road)
        return road

    monkeypatch.setattr("bnext.torch.functional.road_of", watched)
    layer = bnext.torch.BatchNorm1d(5).train(training)
    torch.compiler.reset()
    torch.compile(layer, backend="eager")(X)
    traced = roads.FUSED if kernels.fuses(X) else roads.OPERATORS
    # In training the compiler sees one operator, which decides when it is traced, and when it runs.
    assert seen == ([traced, roads.KERNELS] if training else [roads.PYTORCH])
    seen.clear()
    torch.export.export(layer, (X,))
    assert set(seen) == {roads.EXPORTED}


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_is_plain_where_operations_are_observed(name):
    assert is_plain(X, VECTOR, None, torch.nn.Parameter(VECTOR))
    with OBSERVERS[name]():
        assert not is_plain(X)
    assert is_plain(X)


def test_nothing_is_plain_but_tensors_of_pytorchs_own_types():
    for other in (None, [1.0], X.numpy(), X.as_subclass(Subclass), torch.nn.Buffer):
        assert not is_plain(other)
        assert is_plain(X, other) == (other is None)


def test_imports_point_downward():
    """No circle among the modules of bnext.torch, those inside functions left out."""
    folder = Path(bnext.torch.__file__).parent
    graph = {}
    for path in folder.glob("*.py"):
        if path.stem == "__init__":
            continue
        below = graph.setdefault(path.stem, set())
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module == "bnext.torch":
                below.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("bnext.torch."):
                below.add(node.module.removeprefix("bnext.torch."))
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("kernels") < order.index("roads") < order.index("functional")
    decisions = [name for name, below in graph.items() if "roads" in below]
    assert sorted(decisions) == ["cell_functional", "functional", "row_functional", "sync"]
