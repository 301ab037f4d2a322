"""Short ways of small calls: which calls take them, and how much Python they run."""

import copy
import gc
import weakref

import pytest

import bnext

from ..python_work import functions_entered
from .support import torch

from torch import nn  # isort: skip
from bnext.torch import graph_code, kernels  # isort: skip - they need PyTorch

X = torch.randn(2, 4, 3, 3)


def evaluated_layer():
    layer = bnext.torch.BatchNorm2d(4).eval()
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer


# --- evaluation from a layer's dicts --------------------------------------------------------------


@pytest.mark.parametrize("epilogue", [None, (None, "relu", 0.01), (X.flip(0), "silu", 0.01)])
def test_layers_are_evaluated_from_their_dicts(epilogue):
    """To the bit as the call with all operands, over x or not."""
    layer, x = evaluated_layer(), X.clone()
    expected = bnext._core.evaluate(
        x=X, running_mean=layer.running_mean, running_var=layer.running_var, weight=layer.weight,
        bias=layer.bias, eps=layer.eps, channel_axis=1, plain=True, epilogue=epilogue,
    )  # fmt: skip
    y = kernels.evaluate_layer(layer, x, epilogue, False)
    assert torch.equal(y, expected)
    assert torch.equal(x, X)
    assert kernels.evaluate_layer(layer, x, epilogue, True) is x
    assert torch.equal(x, expected)


def changed(**what):
    layer = evaluated_layer()
    vars(layer).update(what)
    return layer


def without(name):
    layer = evaluated_layer()
    (layer._buffers if name in layer._buffers else layer._parameters).pop(name)
    return layer


OTHERS = {
    "training": lambda: (evaluated_layer().train(), X),
    "ghosts": lambda: (changed(_special=print), X),
    "no statistics": lambda: (bnext.torch.BatchNorm2d(4, track_running_stats=False).eval(), X),
    "a parametrized weight": lambda: (without("weight"), X),
    "missing statistics": lambda: (without("running_var"), X),
    "eps that is no float": lambda: (changed(eps=torch.tensor(1e-5)), X),
    "eps of 0": lambda: (changed(eps=0.0), X),
    "momentum that is no number": lambda: (changed(momentum="0.1"), X),
    "another dtype": lambda: (evaluated_layer(), X.double()),
    "other channels": lambda: (evaluated_layer(), X[:, :3]),
    "a subclass": lambda: (evaluated_layer(), X.as_subclass(type("S", (torch.Tensor,), {}))),
    "no values": lambda: (evaluated_layer(), X[:0]),
    "the meta device": lambda: (evaluated_layer(), X.to("meta")),
    "no tensor": lambda: (evaluated_layer(), None),
    "an object without a dict": lambda: (1.0, X),
    "another module": lambda: (nn.ReLU(), X),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_not(name):
    """Nothing is computed, nothing is raised: the layer's long way has the result or the error."""
    layer, x = OTHERS[name]()
    before = None if x is None or x.is_meta else x.clone()
    assert kernels.evaluate_layer(layer, x, None, True) is None
    assert before is None or torch.equal(x, before)


def test_errors_of_the_interpreter_pass():
    """Only what says that kernels do not take the tensors is taken for that."""

    class Interrupted(tuple):
        def __getitem__(self, place):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, TypeError, SystemError)):
        kernels.evaluate_layer(evaluated_layer(), X, None)
    residual = torch.randn(1, 4, 1, 1)  # which PyTorch broadcasts
    assert kernels.evaluate_layer(evaluated_layer(), X, (residual, "relu", 0.01), False) is None


# --- Python in calls ------------------------------------------------------------------------------


class Block(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))


def test_evaluation_runs_less_python():
    """Fewer functions of Python than with PyTorch's layers: between convolutions these are cold."""
    theirs = Block().eval()
    converted = bnext.torch.convert(copy.deepcopy(theirs))
    fused = bnext.torch.convert(copy.deepcopy(theirs), fuse=True)
    with torch.no_grad():
        of_theirs, of_converted, of_fused = (
            functions_entered(lambda m=m: m(X)) for m in (theirs, converted, fused)
        )
        alone = functions_entered(lambda: theirs[0](X))
    assert of_converted < of_theirs
    assert of_fused < of_converted
    assert of_fused - alone <= 0.6 * (of_theirs - alone)


def test_steps_with_an_activation_run_little_python():
    """Recording act(norm(x)) runs hardly more functions than recording norm(x) does."""
    plain = bnext.torch.BatchNorm2d(4)
    active = bnext.torch.BatchNorm2d(4, activation="relu6")
    x, dy = X.clone().requires_grad_(), torch.ones_like(X)
    assert functions_entered(lambda: active(x)) <= functions_entered(lambda: plain(x)) + 2
    back = [
        functions_entered(lambda m=m: torch.autograd.grad(m(x), x, dy)) for m in (plain, active)
    ]
    assert back[1] <= back[0] + 3


# --- what autograd keeps --------------------------------------------------------------------------


def test_residuals_are_not_kept_where_flags_are():
    """The node of a call holds no residual that the backward pass does not read."""
    layer, residual = bnext.torch.BatchNorm2d(4, activation="relu"), torch.randn_like(X)
    y = layer(X.clone().requires_grad_(), residual=residual)
    seen = weakref.ref(residual)
    del residual
    gc.collect()
    assert seen() is None
    y.sum().backward()


# --- functions of graphs --------------------------------------------------------------------------


class Nested(nn.Module):
    """Modules in lists, and one by a name that the class has too."""

    size = 3

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))])
        self.scale = nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x):
        return self.layers[0][1](self.layers[0][0](x)) * self.scale


@pytest.mark.parametrize("make", [graph_code.function_of, graph_code.eager_function_of])
def test_functions_of_graphs(make):
    """They find descendants and parameters of the module that they are called with."""
    model = Nested()
    function = make(torch.fx.Tracer().trace(model))
    x = torch.randn(5, 3)
    assert torch.equal(function(model, x), model(x))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[0][1].weight.mul_(3)
        other.scale.add_(1)
    assert torch.equal(function(other, x), other(x))


def test_eager_functions_do_not_ask_for_attributes():
    """Modules come from the dicts of children."""
    model = Nested()
    function = graph_code.eager_function_of(torch.fx.Tracer().trace(model))
    names = []

    class Spied(Nested):
        def __getattr__(self, name):
            names.append(name)
            return super().__getattr__(name)

    model.__class__ = Spied
    function(model, torch.randn(5, 3))
    assert names == ["scale"]
