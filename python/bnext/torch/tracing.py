"""Graphs of a module's own forward pass, whose children are single nodes.

Such a graph is what `forward` did once. `traced` refuses what it may do otherwise another time:
conditions on values, random numbers, contexts (which a graph loses), attributes that it sets.
"""

from __future__ import annotations

import inspect
import operator
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["Untraceable", "arguments_of", "has_forward", "traced"]


class Untraceable(Exception):  # noqa: N818
    """A forward pass of which there is no graph that holds for every call; its text says why."""


def has_forward(module: torch.nn.Module) -> bool:
    """Whether a module has a forward pass that Python runs: no list, nothing of TorchScript's."""
    if isinstance(module, torch.jit.ScriptModule):  # whose classes have no attribute of that name
        return False
    return type(module).forward is not torch.nn.Module.forward


def arguments_of(module: torch.nn.Module) -> list[str]:
    """Name the arguments that a forward pass needs; Untraceable if it takes any number."""
    if "forward" in vars(module):
        raise Untraceable("its forward was set on the object")
    function: Any = type(module).forward
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        raise Untraceable("its forward is no plain function")
    _, *parameters = inspect.signature(function).parameters.values()
    if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        raise Untraceable("its forward takes any number of arguments, or some by name only")
    return [each.name for each in parameters if each.default is each.empty]


def traced(module: torch.nn.Module, names: list[str], training: bool, tensors: bool) -> fx.Graph:
    """Trace the forward pass of a module in one of its modes; Untraceable if that may not hold.

    Parameters
    ----------
    module : torch.nn.Module
        Its state is afterwards what it was before.
    names : list of str
        Arguments that stand for unknown values; others have their defaults.
    training : bool
        The mode of the module itself.
    tensors : bool
        Whether ``isinstance(argument, Tensor)`` holds.
    """
    before, modules = dict(vars(module)), dict(module._modules)
    watcher = _Watcher()
    try:
        module.training = training
        graph = _Tracer(names, tensors).trace_watched(module, watcher)
        after = {**vars(module), "training": before["training"]}
        if after.keys() != before.keys() or any(after[k] is not before[k] for k in before):
            raise Untraceable("its forward sets attributes")
        return graph
    except Untraceable:
        raise
    except Exception as error:
        if watcher.found:
            raise Untraceable(watcher.found) from None
        text = str(error).strip().partition("\n")[0]
        raise Untraceable(f"its forward cannot be traced: {text or type(error).__name__}") from None
    finally:
        vars(module).clear()
        vars(module).update(before)
        module._modules.clear()
        module._modules.update(modules)


class _Proxy(fx.Proxy):
    """A proxy that knows writing in place, which PyTorch's takes for making a new tensor."""


def _in_place(name: str) -> Any:
    function = getattr(operator, name)

    def record(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift",
              "rshift", "and", "xor", "or"):  # fmt: skip
    setattr(_Proxy, f"__i{_name}__", _in_place(f"__i{_name}__"))


class _TensorProxy(_Proxy):
    """A proxy of which ``isinstance(proxy, Tensor)`` holds."""

    _is_param = False  # not even a parameter
    __class__ = property(lambda self: torch.Tensor)


class _Tracer(fx.Tracer):
    def __init__(self, names: list[str], tensors: bool) -> None:
        super().__init__()
        self.names, self.tensors = names, tensors

    def trace_watched(self, module: torch.nn.Module, watcher: _Watcher) -> fx.Graph:
        self.watcher = watcher
        graph = self.trace(module)
        if watcher.found:
            raise Untraceable(watcher.found)
        return graph

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        def watched(*arguments: Any) -> Any:
            with self.watcher:
                return root_fn(*arguments)

        nodes = [self.create_node("placeholder", name, (), {}) for name in self.names]
        kind = _TensorProxy if self.tensors else _Proxy
        return watched, [self.root, *(kind(node, self) for node in nodes)]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _TensorProxy else super().create_arg(a)


def _file(*parts: str) -> str:
    return os.path.join(os.path.dirname(torch.__file__), *parts)


# Functions of these files do something that is no node of a graph.
_CONTEXTS = {
    _file("utils", "checkpoint.py"): "checkpoints activations",
    _file("autograd", "grad_mode.py"): "switches gradients on or off",
    _file("amp", "autocast_mode.py"): "switches autocast on or off",
    _file("autograd", "graph.py"): "hooks into autograd",
    _file("autograd", "profiler.py"): "names ranges for the profiler",
}
_CONDITIONS = frozenset(
    {
        "is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "random",
        "getrandbits", "rand", "randn", "randint", "randperm", "bernoulli", "uniform", "normal",
    }
)  # fmt: skip


class _Watcher:
    """Notices, while Python runs a forward pass, what its graph would not have."""

    context = condition = ""

    def __enter__(self) -> None:
        self.before = sys.getprofile()
        sys.setprofile(self.see)

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(self.before)

    def see(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            reason = _CONTEXTS.get(frame.f_code.co_filename)
            if reason is not None:
                self.context = self.context or f"its forward {reason}"
        elif event == "c_call" and getattr(argument, "__name__", "") in _CONDITIONS:
            self.condition = self.condition or f"its forward calls {argument.__name__}"

    @property
    def found(self) -> str:
        """What was noticed; empty if nothing was."""
        return self.context or self.condition
