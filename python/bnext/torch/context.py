"""What is at work around a call: compilers, modes, transforms of functions, repetitions.

PyTorch has no public names for some of it. These are all looked up here; where a version lacks one,
what follows is the way that is right without: operators that can be traced, or PyTorch's own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "PLAIN", "count_write", "count_writes", "is_exported", "is_ordinary", "is_recomputed",
    "is_symbolic", "is_traced", "is_transformed", "is_watched",
]  # fmt: skip

# Tensors of which nothing is known to be special; subclasses may do anything with what they get.
PLAIN = (Tensor, torch.nn.Parameter)


def _known(module: Any, name: str, otherwise: Any) -> Any:
    return getattr(module, name, otherwise)


_dispatch_modes = _known(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_has_transforms = _known(torch._C, "_are_functorch_transforms_active", lambda: True)
_is_batch = _known(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda t: False
)
# Also of a transform that has ended.
_is_wrapped = _known(
    getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor", lambda t: True
)
_forward_ad = torch.autograd.forward_ad
_is_exporting = _known(torch.compiler, "is_exporting", None)
_is_scripted = _known(torch._C, "_is_tracing", lambda: True)
_backward_task = _known(torch._C, "_current_graph_task_id", lambda: -1)
_increment_version = _known(torch.autograd.graph, "increment_version", lambda tensor: None)


def is_ordinary(tensor: Tensor) -> bool:
    """Whether nothing of what follows is at work, nor has been on a tensor."""
    return not (
        torch.compiler.is_compiling()
        or _dispatch_modes() > 0
        or _has_transforms()
        or _is_wrapped(tensor)
        or getattr(_forward_ad, "_current_level", 0) >= 0
        or _is_scripted()
        or _backward_task() != -1
    )


def is_transformed() -> bool:
    """Whether functorch or forward-mode differentiation is at work, or a tracer of TorchScript.

    They know PyTorch's operators, and would lose derivatives at ours.
    """
    return (
        _has_transforms()
        or getattr(_forward_ad, "_current_level", 0) >= 0
        or (not torch.compiler.is_compiling() and _is_scripted())
    )


def is_traced() -> bool:
    """Whether a compiler or an exporter traces, or a dispatch mode wants to see operators.

    Such modes are fake tensors, counters of operations, selective activation checkpointing.
    """
    return torch.compiler.is_compiling() or _dispatch_modes() > 0


def is_exported() -> bool:
    """Whether an exporter traces (torch.export, ONNX), in either of its modes.

    The graph is to consist of PyTorch's operators, which other tools know and rewrite.
    """
    return torch.compiler.is_compiling() and _is_exported_now()


def _is_exported_now() -> bool:
    # The compiler runs this function when it traces a call, where it would not ask in PyTorch 2.7:
    # there `is_exporting` is always true to traced code, and otherwise of one mode only.
    if _is_exporting is not None and _is_exporting():
        return True
    translator = getattr(
        sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslator", None
    )
    try:
        trace: Any = translator.current_tx()  # type: ignore[union-attr]
    except AttributeError:
        trace = None
    if trace is None:  # Python runs the model; what else does so while it compiles is not as old
        return _is_exporting is None
    return bool(trace.export)


# As torch.compiler.assume_constant_result has it, which would import all of the compiler.
_is_exported_now._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_symbolic(*values: Any) -> bool:
    """Whether one of the values stands for a tensor of a graph that `torch.fx` makes."""
    return any(isinstance(value, torch.fx.Proxy) for value in values)


def is_watched(dy: Tensor) -> bool:
    """Whether something of `is_transformed` looks at a backward pass.

    Or it is of many outputs at once, and a gradient stands for a batch (``is_grads_batched``).
    """
    # Not by `is_transformed`, which asks for the compiler first, as the compiler needs when it
    # traces a forward pass: here that is two functions of Python, to save mostly one of C.
    return bool(
        _has_transforms()
        or getattr(_forward_ad, "_current_level", 0) >= 0
        or (_is_scripted() and not torch.compiler.is_compiling())
        or _is_batch(dy)
    )


def is_recomputed() -> bool:
    """Whether this forward pass runs within a backward pass, where it is a repetition."""
    # A compiler repeats no mutation, and would not know of the task.
    return not torch.compiler.is_compiling() and _backward_task() != -1


def count_write(tensor: Tensor) -> None:
    """Let autograd know that a kernel has written to `tensor`."""
    if not tensor.is_inference():  # which autograd does not count
        _increment_version(tensor)


def count_writes(*tensors: Tensor) -> None:
    """Do `count_write` for several."""
    if _increment_versions is not None:
        _increment_versions(tensors)
        return
    for tensor in tensors:
        count_write(tensor)


def _of_several() -> Any:
    """Find what counts writes to several tensors in one call; None if this PyTorch has none."""
    # Not the public function, which is Python, and takes longer than all that it does.
    increment = _known(torch._C, "_increment_version", None)
    try:
        increment((torch.empty(()),))
    except (TypeError, AttributeError, RuntimeError):
        return None
    return increment


_increment_versions = _of_several()
