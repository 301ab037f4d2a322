"""Forward passes of whole modules in which layers of bnext's do what follows them.

A module whose own forward calls a layer of normalization, then adds, then applies an
activation, gets a subclass of its class. The subclass runs a function made of the forward's graph,
with one call in place of the three. Modules, their names, hooks and state dicts stay. A call that
the graph does not hold for goes to the class's own forward: other arguments, hooks on one of the
fused modules, another activation in its place, changed settings. So do tracers and loaded pickles.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules import module as module_module

from bnext.torch.activating import ActivatingModule
from bnext.torch.disguises import Disguise, disguised, reduced
from bnext.torch.epilogues import Epilogue
from bnext.torch.frozen import FrozenForward
from bnext.torch.modules import Forward
from bnext.torch.patterns import (
    Apart,
    Chain,
    activation_of,
    chain_of,
    has_hooks,
    own_activation,
)
from bnext.torch.recomputation import note
from bnext.torch.tracing import Untraceable, arguments_of, traced

__all__ = ["Fusion", "fused_layers", "is_fused", "planned_fusions", "set_fusion", "unfused_class"]

# Graphs differ by the mode of the module, and by whether all arguments are tensors, or none.
_VARIANTS = tuple((training, tensors) for training in (True, False) for tensors in (True, False))
LAYERS = (Forward, FrozenForward, ActivatingModule)
_SIMPLE = (int, float, bool, str, type(None))


@dataclass(frozen=True)
class FusedLayer:
    """A layer within a module, and what it does there besides."""

    name: str  # in the module
    activation: str | None
    negative_slope: float
    residual: bool
    act: str | None  # name of the activation's module in the module, if it has one


class Fusion:
    """How a module's forward runs, by names only: copies of the module share it."""

    def __init__(
        self, module: torch.nn.Module, arguments: int, layers: tuple[FusedLayer, ...],
        variants: dict[tuple[bool, bool], Callable[..., Any]],
    ) -> None:  # fmt: skip
        self.arguments: int = arguments
        self.layers: tuple[FusedLayer, ...] = layers
        self.variants: dict[tuple[bool, bool], Callable[..., Any]] = variants
        self.settings: tuple[tuple[str, Any], ...] = _settings_of(module)
        self.children: list[str] = _children_of(module)

    def function_for(self, module: Any, inputs: tuple[Any, ...]) -> Callable[..., Any] | None:
        """Find the function for a call; None if the class's own forward is to take it."""
        if len(inputs) != self.arguments or not self._holds_for(module):
            return None
        tensors = [isinstance(each, Tensor) for each in inputs]
        if any(tensors) != all(tensors) or any(isinstance(each, fx.Proxy) for each in inputs):
            return None
        return self.variants.get((module.training, all(tensors)))

    def _holds_for(self, module: Any) -> bool:
        if (
            module_module._global_forward_hooks
            or module_module._global_forward_pre_hooks
            or module_module._global_backward_hooks
            or module_module._global_backward_pre_hooks
        ):
            return False
        of = vars(module)
        for name, value in self.settings:
            if of.get(name) != value:
                return False
        if _children_of(module) != self.children:
            return False
        for each in self.layers:
            layer = _descendant(module, each.name)
            if not isinstance(layer, LAYERS) or has_hooks(layer):
                return False
            if each.act is not None:
                act = _descendant(module, each.act)
                if has_hooks(act) or activation_of(act) != (each.activation, each.negative_slope):
                    return False
        return True

    def __deepcopy__(self, memo: Any) -> Fusion:
        return self

    def __reduce__(self) -> Any:  # functions that were made have no names to be found by
        return type(None), ()


def _settings_of(module: torch.nn.Module) -> tuple[tuple[str, Any], ...]:
    """Values that the forward of a module may have looked at."""
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE and type(value) in _SIMPLE
    )


_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))


def _descendant(module: Any, name: str) -> Any:
    for each in name.split("."):
        module = module._modules.get(each)
        if module is None:
            return None
    return module


def _children_of(module: torch.nn.Module) -> list[str]:
    return [name for name, child in module._modules.items() if child is not None]


def call_fused(
    layer: Any, input: Any, residual: Any, activation: str | None, negative_slope: float
) -> Any:
    """Call a layer without hooks; it adds the residual and applies the activation."""
    epilogue = Epilogue(residual, activation, negative_slope)
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
        if isinstance(module, LAYERS):
            if own_activation(module) is not None:
                done.add(module)
            reasons.setdefault(module, "no module's forward calls it")
            continue
        has_forward = type(module).forward is not torch.nn.Module.forward
        if not has_forward or not any(isinstance(child, LAYERS) for child in _near(module)):
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
    variants: dict[tuple[bool, bool], Callable[..., Any]] = {}
    every: list[tuple[FusedLayer, ...]] = []
    reasons: dict[torch.nn.Module, str] = {}
    errors = []
    for training, tensors in _VARIANTS:
        try:
            graph = traced(module, names, training, tensors)
        except Untraceable as error:
            errors.append(error)
            continue
        layers = _rewritten(graph, modules, reasons)
        if layers:
            every.append(layers)
            variants[training, tensors] = _function_of(graph)
    if not variants:
        if errors:
            raise errors[0]
        return None, reasons
    layers = tuple(dict.fromkeys(each for layers in every for each in layers))
    return Fusion(module, len(names), layers, variants), reasons


def _rewritten(
    graph: fx.Graph, modules: dict[str, Any], reasons: dict[torch.nn.Module, str]
) -> tuple[FusedLayer, ...]:
    """Make one call of each chain in a graph; note the reason where there is none."""
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
    for chain in chains:
        last = chain.nodes[-1]
        # Before anything that comes after the input, or what is added, is there.
        with graph.inserting_before(chain.add or chain.norm):
            layer = graph.get_attr(str(chain.norm.target))
            after = (chain.residual, chain.activation, chain.negative_slope)
            call = graph.call_function(call_fused, (layer, chain.norm.args[0], *after))
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)
    return tuple(_fused_layer(chain) for chain in chains)


def _fused_layer(chain: Chain) -> FusedLayer:
    act = chain.act
    return FusedLayer(
        str(chain.norm.target), chain.activation, chain.negative_slope, chain.add is not None,
        str(act.target) if act is not None and act.op == "call_module" else None,
    )  # fmt: skip


def _function_of(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<bnext.torch: fused forward>", "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function


# --- classes --------------------------------------------------------------------------------------


class _FusedForward(Disguise):
    """The forward of a module in which layers do what follows them."""

    _fuses: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as the class that can be found by its name, and made again."""
        how = super().__reduce_ex__(protocol)
        return reduced(how, type(self), self._fuses, _remade, self._fuses)

    def __prepare_scriptable__(self) -> Any:
        """Give TorchScript, which reads the code of forward, the module of its own class."""
        module: Any = copy.copy(self)
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
        fusion: Fusion | None = self.__dict__.get("_fusion")
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
