"""Forward passes of whole modules in which layers of bnext's do what follows them.

A module whose own forward calls a layer of normalization, then adds, then applies an
activation, gets a subclass of its class. The subclass runs a function made of the forward's graph,
with one call in place of the three. Modules, their names, hooks and state dicts stay. A call that
the graph does not hold for goes to the class's own forward: other arguments, hooks on one of the
fused modules, another activation in its place, changed settings. So do tracers and loaded pickles.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import fx

from bnext.torch.copies import shallow_copy
from bnext.torch.disguises import Disguise, disguised, reduced
from bnext.torch.epilogues import made
from bnext.torch.fused import LAYERS, Functions, FusedLayer, Fusion
from bnext.torch.graph_code import eager_function_of, function_of, module_of
from bnext.torch.lazy import LazyForward
from bnext.torch.overwriting import (
    call_over,
    count_holders,
    lone_chains,
    overwriting_chains,
    settle_usual_holders,
)
from bnext.torch.patterns import Apart, Chain, chain_of, own_activation
from bnext.torch.recomputation import note
from bnext.torch.tracing import Untraceable, arguments_of, has_forward, traced

__all__ = ["Fusion", "fused_layers", "is_fused", "planned_fusions", "set_fusion", "unfused_class"]

# Graphs differ by the mode of the module, and by whether all arguments are tensors, or none.
_VARIANTS = tuple((training, tensors) for training in (True, False) for tensors in (True, False))


def call_fused(
    layer: Any, input: Any, residual: Any, activation: str | None, negative_slope: float
) -> Any:
    """Call a layer without hooks; it adds the residual and applies the activation."""
    epilogue = made((residual, activation, negative_slope))
    if layer._recompute:
        return note(layer._normalized(input, epilogue), input, residual)
    return layer._normalized(input, epilogue)


# --- plans ----------------------------------------------------------------------------------------


def planned_fusions(
    model: torch.nn.Module,
) -> tuple[list[tuple[torch.nn.Module, Fusion]], dict[torch.nn.Module, str]]:
    """Find what can be fused in a model; and for the other layers of bnext's, why they cannot."""
    plans: list[tuple[torch.nn.Module, Fusion]] = []
    reasons: dict[torch.nn.Module, str] = {}
    done: set[torch.nn.Module] = set()
    for module in model.modules():
        if isinstance(module, LazyForward) and not isinstance(module, LAYERS):
            reasons[module] = "it is lazy: fuse after its first call"
            continue
        if isinstance(module, LAYERS):
            if own_activation(module) is not None:
                done.add(module)
            reasons.setdefault(module, "no module's forward calls it")
            continue
        if not has_forward(module) or not any(isinstance(each, LAYERS) for each in _near(module)):
            continue
        if fused_layers(module):
            done.update(module.get_submodule(each.name) for each in fused_layers(module))
            continue
        set_fusion(module, None)  # one that was loaded has the class and no fusion
        try:
            fusion, why = _planned(module)
        except (Untraceable, Apart) as reason:
            fusion, why = None, {}
            for child in _near(module):
                if isinstance(child, LAYERS):
                    why[child] = f"{type(module).__name__}: {reason}"
        reasons.update(why)
        if fusion is not None:
            plans.append((module, fusion))
            done.update(module.get_submodule(each.name) for each in fusion.layers)
    return plans, {layer: why for layer, why in reasons.items() if layer not in done}


def _near(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules that the forward of a module may call: its children, and lists and dicts of them."""
    found = []
    for child in module.children():
        found.append(child)
        if isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            found += _near(child)
    return found


def _planned(module: torch.nn.Module) -> tuple[Fusion | None, dict[torch.nn.Module, str]]:
    """Plan one module: what is fused, and for each other layer that it calls the reason."""
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        raise Untraceable("it is a graph already")
    modules: dict[str, Any] = dict(module.named_modules(remove_duplicate=False))
    names = arguments_of(module)
    variants: Functions = {}
    eager: Functions = {}
    overwriting: Functions = {}
    layers: list[FusedLayer] = []
    watched: list[str] = []
    reasons: dict[torch.nn.Module, str] = {}
    errors = []
    settle_usual_holders(eager_function_of)
    for variant in _VARIANTS:
        try:
            graph = traced(module, names, *variant)
        except Untraceable as error:
            errors.append(error)
            continue
        chains = _chains_of(graph, modules, reasons)
        if chains:
            layers += map(_fused_layer, chains)
            graph = _rewritten(graph, chains)
            variants[variant] = function_of(graph)
            eager[variant] = eager_function_of(graph)
        if not variant[0]:
            graph = traced(module, names, *variant)
            chains = _chains_of(graph, modules, {})
            chains += lone_chains(graph, chains, modules)
            over, which = overwriting_chains(chains, modules)
            if over:
                watched += which
                overwriting[variant] = eager_function_of(_rewritten(graph, chains, over))
    if not variants and not overwriting:
        if errors:
            raise errors[0]
        return None, reasons
    fused = tuple(dict.fromkeys(layers))
    return Fusion(module, len(names), fused, variants, eager, overwriting, watched), reasons


def _chains_of(
    graph: fx.Graph, modules: dict[str, Any], reasons: dict[torch.nn.Module, str]
) -> list[Chain]:
    """Find the chains in a graph; note the reason where there is none."""
    chains: list[Chain] = []
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules.get(node.target), LAYERS):
            continue
        try:
            chain = chain_of(node, modules)
            if taken & {*chain.nodes}:
                raise Apart("its output is added to another layer's")
        except Apart as reason:
            reasons[modules[node.target]] = str(reason)
            continue
        taken.update(chain.nodes)
        chains.append(chain)
    return chains


def _rewritten(graph: fx.Graph, chains: Iterable[Chain], over: Collection[Chain] = ()) -> fx.Graph:
    """Make one call of each chain in a graph; a chain of `over` may overwrite its input."""
    calls: dict[fx.Node | None, fx.Node] = {}  # by the last node that each stands for
    for chain in chains:
        last = chain.nodes[-1]
        # Before anything that comes after the input, or what is added, is there.
        with graph.inserting_before(chain.add or chain.norm):
            layer = module_of(graph, str(chain.norm.target))
            source = chain.norm.args[0]
            residual = calls.get(chain.residual, chain.residual)
            after = (residual, chain.activation, chain.negative_slope)
            if chain in over:
                holders = count_holders(graph, source)
                call = graph.call_function(call_over, (layer, source, *after, holders))
            else:
                call = graph.call_function(call_fused, (layer, source, *after))
        last.replace_all_uses_with(call)
        calls[last] = call
        for node in reversed(chain.nodes):
            graph.erase_node(node)
    return graph


def _fused_layer(chain: Chain) -> FusedLayer:
    act = chain.act
    return FusedLayer(
        str(chain.norm.target), chain.activation, chain.negative_slope, chain.add is not None,
        str(act.target) if act is not None and act.op == "call_module" else None,
    )  # fmt: skip


# --- classes --------------------------------------------------------------------------------------


class _FusedForward(Disguise):
    """The forward of a module in which layers do what follows them."""

    _fuses: type
    _fusion: Fusion | None = None  # a loaded pickle has none

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as the class that can be found by its name, and made again."""
        how = super().__reduce_ex__(protocol)
        return reduced(how, type(self), self._fuses, _remade, self._fuses)

    def __prepare_scriptable__(self) -> Any:
        """Give TorchScript, which reads the code of forward, the module of its own class."""
        module: Any = shallow_copy(self)
        set_fusion(module, None)
        before = getattr(super(), "__prepare_scriptable__", None)
        return module if before is None else type(module).__prepare_scriptable__(module)


def _remade(function: Any, arguments: tuple[Any, ...], kind: type) -> Any:
    module = function(*arguments)
    module.__class__ = _class_for(kind)
    return module


def _forward_of(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.forward)  # tracers and users look at the arguments
    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        fusion: Fusion | None = self._fusion
        function = None if fusion is None or named else fusion.function_for(self, inputs)
        if function is None:
            return kind.forward(self, *inputs, **named)
        return function(self, *inputs)

    return forward


_MADE: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()


def _class_for(kind: Any) -> type:
    made = _MADE.get(kind)
    if made is None:
        made = disguised(kind, _FusedForward, _forward_of(kind), _fuses=kind)
        made = _MADE.setdefault(kind, made)
    return made


def is_fused(module: Any) -> bool:
    """Whether a module is of a class that was made here."""
    return isinstance(module, _FusedForward)


def fused_layers(module: Any) -> tuple[FusedLayer, ...]:
    """Layers that do more than normalize in the forward of a module."""
    fusion: Fusion | None = vars(module).get("_fusion")
    return () if fusion is None else fusion.layers


def unfused_class(module: Any) -> type:
    """Give the class that a module has without its fusion."""
    kind: type = type(module)._fuses if is_fused(module) else type(module)
    return kind


def set_fusion(module: Any, fusion: Fusion | None) -> None:
    """Have a module run a fusion, or none."""
    kind = unfused_class(module)
    vars(module).pop("_fusion", None)
    if fusion is None:
        module.__class__ = kind
    else:
        module.__class__ = _class_for(kind)
        vars(module)["_fusion"] = fusion
