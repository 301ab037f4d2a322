"""The state of PyTorch around a call: compilers, modes, transforms of functions, repetitions.

Some of this state has no public names. They are all looked up here. Where a version of PyTorch
lacks one, calls take the road that is right without it: operators that can be traced, or PyTorch's
own operator.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from bnext.torch import repetition

__all__ = [
    "compiled", "function_modes", "in_a_range", "is_compiled", "is_compiling",
    "is_drawn", "is_exported", "is_exported_now", "is_in_a_graph", "is_plain",
    "is_plain_in_python", "is_plain_or_none", "is_recomputed", "is_symbolic", "is_traced",
    "is_traced_by_dynamo", "is_transformed", "is_watched",
]  # fmt: skip

# Subclasses may do anything with the operations on them.
_PLAIN = (Tensor, torch.nn.Parameter)
_PLAIN_OR_NONE = (*_PLAIN, type(None))
_PARAMETER_OR_NONE = (torch.nn.Parameter, Tensor, type(None))  # the most likely one first

_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)
_is_included = getattr(torch._C, "_dispatch_tls_is_dispatch_key_included", lambda _: False)
_infra_mode = getattr(torch._C, "_get_dispatch_mode", lambda _: None)
_INFRA_MODES = getattr(torch._C, "_TorchDispatchModeKey", SimpleNamespace(PROXY=0, FUNCTIONAL=0))
_has_transforms = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_forward_ad: Any = torch.autograd.forward_ad
if not hasattr(_forward_ad, "_current_level"):
    _forward_ad = SimpleNamespace(_current_level=0)
is_compiling = torch.compiler.is_compiling
# Other compilers and exporters have a dispatch mode, and `is_compiling` takes longer.
is_traced_by_dynamo = torch.compiler.is_dynamo_compiling
_is_exporting = getattr(torch.compiler, "is_exporting", None)
_is_scripted = getattr(torch._C, "_is_tracing", lambda: True)


def is_plain(
    tensor: Any, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None
) -> bool:
    """Whether a tensor, and others that may be None, are what their memory holds, and no more.

    Nothing observes the operations on them, and kernels may read memory in their place. They refuse
    a tensor whose memory does not hold its values (`kernels.KernelRefusal`): a wrapper that a
    transform has left behind, a batch of gradients, zeros without memory.
    """
    return not is_traced_by_dynamo() and is_plain_in_python(tensor, mean, var, weight, bias)


def is_plain_in_python(
    tensor: Any, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None
) -> bool:
    """Answer `is_plain` where Dynamo does not trace: a call has asked that before."""
    return not (
        _dispatch_modes()
        or (function_modes() and _is_pre_dispatched())
        or _has_transforms()
        or _forward_ad._current_level >= 0
        or _is_scripted()
        or type(tensor) not in _PLAIN
        or type(mean) not in _PLAIN_OR_NONE
        or type(var) not in _PLAIN_OR_NONE
        or type(weight) not in _PARAMETER_OR_NONE
        or type(bias) not in _PARAMETER_OR_NONE
    )


def is_watched() -> bool:
    """Whether a compiler, a mode, a transform, a tracer or a profiler is to see operations."""
    return bool(
        is_traced_by_dynamo()
        or _dispatch_modes()
        or (function_modes() and _is_pre_dispatched())
        or _has_transforms()
        or _forward_ad._current_level >= 0
        or _is_scripted()
        or profiler._is_profiler_enabled
    )


def is_plain_or_none(tensor: Any) -> bool:
    """Whether a tensor is plain, if it is one."""
    return tensor is None or is_plain(tensor)


def is_transformed() -> bool:
    """Whether functorch, forward-mode differentiation or a tracer of TorchScript is active.

    They know PyTorch's operators, and would lose derivatives at bnext's.
    """
    return (
        _has_transforms()
        or _forward_ad._current_level >= 0
        or (not is_compiling() and _is_scripted())
    )


def is_traced() -> bool:
    """Whether a compiler or an exporter traces, or a dispatch mode observes operators.

    Such modes are fake tensors, counters of operations, selective activation checkpointing.
    """
    return is_compiling() or _dispatch_modes() > 0 or _is_pre_dispatched()


def _is_pre_dispatched() -> bool:
    """Whether ``make_fx(pre_dispatch=True)`` traces, before autograd; it has a function mode too.

    Modes of operations do not count it.
    """
    return bool(_is_included(torch._C.DispatchKey.PreDispatch))


_COMPILED = threading.local()


@contextmanager
def compiled() -> Iterator[None]:
    """Mark a call that a compiler traces behind Dynamo, which has seen one operator instead."""
    before = _is_marked()
    _COMPILED.is_marked = True
    try:
        yield
    finally:
        _COMPILED.is_marked = before


def is_compiled() -> bool:
    """Whether a compiler traces this call, by itself or by the operator in its place."""
    return is_compiling() or _is_marked()


def _is_marked() -> bool:
    return getattr(_COMPILED, "is_marked", False)


def is_drawn() -> bool:
    """Whether make_fx draws a graph of this call outside a compiler, for somebody to run.

    Compilers draw graphs by make_fx as well, of tensors that they have made functional.
    """
    return (
        _infra_mode(_INFRA_MODES.PROXY) is not None
        and _infra_mode(_INFRA_MODES.FUNCTIONAL) is None
        and not is_compiled()
    )


def is_in_a_graph() -> bool:
    """Whether eager Python is run for a graph, in which kernels would leave constants."""
    return is_exported() or is_drawn() or _is_pre_dispatched()


def is_exported() -> bool:
    """Whether an exporter traces (torch.export, ONNX), in either of its modes.

    The graph is to consist of PyTorch's operators, which other tools know and rewrite.
    """
    return is_compiling() and is_exported_now()


def is_exported_now() -> bool:
    """Whether an exporter traces, for code that Dynamo traces, which runs this function."""
    # In PyTorch 2.7 `is_exporting` is always true in traced code, and elsewhere it knows one of the
    # two modes.
    if _is_exporting is not None and _is_exporting():
        return True
    translator = getattr(
        sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslator", None
    )
    try:
        trace: Any = translator.current_tx()  # type: ignore[union-attr]
    except AttributeError:
        trace = None
    if trace is None:  # Python runs the model, which only exporters of old versions do
        return _is_exporting is None
    return bool(trace.export)


# As torch.compiler.assume_constant_result has it, which would import all of the compiler.
is_exported_now._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_a_range(name: str, call: Any, *arguments: Any) -> Any:
    """Do a call as one event of a profiler, which sees only PyTorch's operators by itself.

    The event has the shapes of the tensors among the arguments.
    """
    with _event(f"bnext::{name}", [each for each in arguments if isinstance(each, Tensor)]):
        return call(*arguments)


def _event(name: str, tensors: list[Tensor]) -> Any:
    try:
        return torch._C._profiler._RecordFunctionFast(name, tensors, {})
    except (AttributeError, TypeError):
        return profiler.record_function(name)


def is_symbolic(*values: Any) -> bool:
    """Whether one of the values stands for a tensor of a graph that `torch.fx` makes."""
    return any(isinstance(value, torch.fx.Proxy) for value in values)


def is_recomputed() -> bool:
    """Whether this forward pass runs within a backward pass, where it is a repetition."""
    if is_traced_by_dynamo():
        return repetition.repeats
    return repetition.backward_task() != -1 and not _is_marked()  # Dynamo asked
