"""Results in the place of a layer's input, where nobody could tell.

The graph of a fused forward pass knows where its values come from and who uses them. In evaluation
without gradients, the output of a convolution that goes to a layer of batch normalization, and
nowhere else, is read no more behind it: the layer writes its result there. That saves the page
faults of an array, which may cost more than the layer, and a stream of memory.

It is done where all of this holds, as every call asks:

- The input is new memory that PyTorch's own code has made: a module of a class of PyTorch's, with
  no hooks and nothing set on the object, over functions that nobody has exchanged; or `torch.cat`.
- The graph uses it once, and no other object refers to the tensor.
- No mode, transform, tracer or profiler watches operations (`context.is_watched`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from bnext.torch.context import function_modes
from bnext.torch.epilogues import made
from bnext.torch.modules import Forward
from bnext.torch.patterns import Chain, has_hooks, own_activation

__all__ = [
    "FUNCTIONS", "MODULES", "call_over", "count_holders", "lone_chains", "overwriting_chains",
    "settle_usual_holders",
]  # fmt: skip

# Modules whose result is new memory, by these functions.
MODULES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
_NAMES = (
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear",
)  # fmt: skip
FUNCTIONS: dict[str, Any] = {name: getattr(functional, name) for name in _NAMES}


def lone_chains(graph: fx.Graph, chains: Iterable[Chain], modules: dict[str, Any]) -> list[Chain]:
    """Find calls of layers that no chain has, as chains of one call."""
    known = {chain.norm for chain in chains}
    found = []
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if node in known or len(node.args) != 1 or node.kwargs:
            continue
        applied = _applied_by(layer) if isinstance(layer, Forward) else None
        if applied is not None and isinstance(node.args[0], fx.Node):
            found.append(Chain(node, None, None, None, *applied))
    return found


def _applied_by(layer: Forward) -> tuple[str | None, float] | None:
    """Find what a layer's own call applies; None if it does something else besides normalizing."""
    if has_hooks(layer) or layer._activation[0] is not None:
        return None
    own = own_activation(layer)
    kind: Any = type(layer)
    known: Any = next(each for each in kind.__mro__ if "_after" in vars(each) or each is Forward)
    if kind.forward is not known.forward or (own is None and getattr(known, "_after", ()) != ()):
        return None
    return own or (None, 0.01)


def overwriting_chains(
    chains: Iterable[Chain], modules: dict[str, Any]
) -> tuple[list[Chain], list[str]]:
    """Find the chains that may write over their input; and the modules that this rests on."""
    found, names = [], []
    for chain in chains:
        name = str(chain.norm.target)
        layer, sources = modules[name], _sources_of(chain.norm.args[0], modules)
        if sources is None or not isinstance(layer, Forward):
            continue
        found.append(chain)
        names += [*sources, name, *(f"{name}.{after}" for after in getattr(layer, "_after", ()))]
    return found, names


def _sources_of(node: Any, modules: dict[str, Any]) -> list[str] | None:
    """Name the modules that have made a value which one call alone uses; None of other values."""
    if len(node.users) != 1:
        return None
    if node.op == "call_module":
        name = str(node.target)
        return [name] if type(modules.get(name)) in MODULES else None
    is_new = node.op == "call_function" and node.target in (torch.cat, *FUNCTIONS.values())
    return [] if is_new else None


def call_over(
    layer: Any, input: Tensor, residual: Any, activation: str | None, negative_slope: float,
    holders: int,
) -> Any:  # fmt: skip
    """Call a layer that may write over its input: a layer without hooks, as `call_fused` does.

    `holders` counts the references to the input, as the graph sees them (`count_holders`).
    """
    epilogue = None
    if residual is not None or activation is not None:
        epilogue = made((residual, activation, negative_slope))
    over = holders <= _usual[0] and not function_modes() and not layer._recompute
    return layer._normalized(input, epilogue, over=over)


_usual = [0]


def count_holders(graph: fx.Graph, value: Any) -> fx.Node:
    """Add the count of references to a value to a graph.

    The graph itself calls what counts, which is compiled: a function of Python's would add a
    reference more or less, by whether something evaluates frames in Python's place (`torch.compile`
    does, and goes on after some errors).
    """
    return graph.call_function(sys.getrefcount, (value,))


def settle_usual_holders(function_of: Callable[[fx.Graph], Callable[..., Any]]) -> None:
    """Count the references to a value that a graph has made and nothing else refers to.

    Python's versions differ. `function_of` makes functions of graphs.
    """
    if not _usual[0]:
        graph = fx.Graph()
        graph.output(count_holders(graph, graph.call_function(object)))
        _usual[0] = function_of(graph)(None)
