"""How the forward of a module with fused layers runs, and whether its graphs hold for a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, is_grad_enabled
from torch.nn import functional
from torch.nn.modules import module as module_module

from bnext._core import unchanged
from bnext.torch.activating import ActivatingModule
from bnext.torch.context import is_exported, is_exported_now, is_traced_by_dynamo
from bnext.torch.frozen import FrozenForward
from bnext.torch.modules import Forward
from bnext.torch.overwriting import FUNCTIONS, MODULES
from bnext.torch.patterns import HOOKS

__all__ = ["LAYERS", "Functions", "FusedLayer", "Fusion", "facts_of"]

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


Functions = dict[tuple[bool, bool], Callable[..., Any]]  # by the mode, and whether all are tensors


class Fusion:
    """How a module's forward runs, by names only: copies of the module share it.

    Parameters
    ----------
    module : torch.nn.Module
    arguments : int
        How many the functions take.
    layers : tuple of FusedLayer
    variants : Functions
        For compilers.
    eager : Functions
        For calls that nothing traces.
    overwriting : Functions
        For evaluation without gradients: layers write over their inputs.
    watched : sequence of str
        Modules that have to be as they were for these.
    """

    def __init__(
        self, module: torch.nn.Module, arguments: int, layers: tuple[FusedLayer, ...],
        variants: Functions, eager: Functions, overwriting: Functions, watched: Iterable[str],
    ) -> None:  # fmt: skip
        self.arguments: int = arguments
        self.layers: tuple[FusedLayer, ...] = layers
        self.variants: Functions = variants
        self.eager: Functions = eager
        self.overwriting: Functions = overwriting
        self.holds_for: Callable[[Any], bool] = _check_of(module, layers)
        names = [name for each in layers for name in (each.name, each.act) if name is not None]
        self.facts: Any = (
            ((vars(module_module), _GLOBAL_HOOKS, ()),),
            (((), None, (), _settings_of(module)), *facts_of(module, names)),
            tuple(_children_of(module)),
        )
        functions = (vars(functional), (), tuple(FUNCTIONS.items()))
        self.facts_of_overwriting: Any = (
            (*self.facts[0], functions),
            tuple(dict.fromkeys((*self.facts[1], *facts_of(module, watched)))),
            self.facts[2],
        )

    def function_for(self, module: Any, inputs: tuple[Any, ...]) -> Callable[..., Any] | None:
        """Find the function for a call; None if the class's own forward is to take it."""
        if len(inputs) != self.arguments:
            return None
        compiles = is_traced_by_dynamo()  # it looks into Python, and not into what is compiled
        every = True if len(inputs) == 1 and type(inputs[0]) is Tensor else _are_tensors(inputs)
        if every is None:
            return None
        if compiles and is_exported_now():
            return None
        variant = module.training, every
        if not compiles:
            over = None if is_grad_enabled() else self.overwriting.get(variant)
            if over is not None and unchanged(module, *self.facts_of_overwriting):
                return over
            if unchanged(module, *self.facts):
                return self.eager.get(variant)
        if not self.holds_for(module):
            return None
        return (self.variants if compiles else self.eager).get(variant)

    def __deepcopy__(self, memo: Any) -> Fusion:
        return self

    def __reduce__(self) -> Any:  # functions that were made have no names to be found by
        return type(None), ()


_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
    "_global_backward_pre_hooks",
)  # fmt: skip


def _check_of(module: torch.nn.Module, layers: tuple[FusedLayer, ...]) -> Callable[[Any], bool]:
    """Make the function that tells whether a module, or a copy of it, is as it was.

    Compiled code checks before every call what Dynamo has read. So what the module is compared to
    are constants in the function's code, and not values that it would read as well.
    """
    of: dict[str, Any] = {"state": module_module, "LAYERS": LAYERS, "descendant": _descendant}
    lines = [f"if {' or '.join(f'state.{name}' for name in _GLOBAL_HOOKS)}: return False"]

    def compare(settings: Iterable[tuple[str, Any]]) -> None:
        for name, value in settings:
            is_literal = not isinstance(value, float) or math.isfinite(value)
            constant = repr(value) if is_literal else f"float({str(value)!r})"
            lines.append(f"if each.__dict__.get({name!r}) != {constant}: return False")

    lines.append("each = module")
    compare(_settings_of(module))
    children = "[name for name, child in module._modules.items() if child is not None]"
    lines.append(f"if {children} != {_children_of(module)!r}: return False")
    for layer in layers:
        lines.append(f"each = descendant(module, {layer.name!r})")
        lines.append(f"if not isinstance(each, LAYERS) or {_HAS_HOOKS}: return False")
        if layer.act is not None:
            act = module.get_submodule(layer.act)
            kind = f"Act{len(of)}"
            of[kind] = type(act)
            lines.append(f"each = descendant(module, {layer.act!r})")
            lines.append(f"if type(each) is not {kind} or {_HAS_HOOKS}: return False")
            compare((name, value) for name, value in _settings_of(act) if name != "inplace")
    text = "\n    ".join(["def holds_for(module):", *lines, "return True"])
    exec(compile(text, "<bnext.torch: fused check>", "exec"), of)
    function: Callable[[Any], bool] = of["holds_for"]
    return function


# Of `each`, as `has_hooks`. Dynamo makes no check for a name that is missing in a dict, but one for
# a method that is looked up.
*_OF_HOOKS, _OF_FORWARD = HOOKS
_HAS_HOOKS = " or ".join(
    [f"{_OF_FORWARD!r} in each.__dict__", f"each.{_OF_FORWARD} is None"]
    + [f"each.__dict__.get({name!r})" for name in _OF_HOOKS]
)


def _are_tensors(inputs: tuple[Any, ...]) -> bool | None:
    """Whether all are tensors, or none; None of others, and of values of a graph being made.

    The graph that torch.export makes is the one of the class's own forward, with its modules.
    """
    if any(type(each) is not Tensor for each in inputs) and is_exported():
        return None
    tensors = [isinstance(each, Tensor) for each in inputs]
    if any(tensors) != all(tensors) or any(isinstance(each, fx.Proxy) for each in inputs):
        return None
    return all(tensors)


def facts_of(module: torch.nn.Module, names: Iterable[str]) -> tuple[Any, ...]:
    """Give what `unchanged` is to find in descendants: their class, no hooks, their settings."""
    facts = []
    for name in dict.fromkeys(names):
        each = module.get_submodule(name)
        # No setting of a convolution has a part in what is done here.
        has_none = isinstance(each, LAYERS) or type(each) in MODULES
        settings = () if has_none else _settings_of(each)
        facts.append((tuple(name.split(".")), type(each), (*HOOKS, "_conv_forward"), settings))
    return tuple(facts)


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
