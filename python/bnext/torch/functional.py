"""`torch.nn.functional.batch_norm` over bnext's kernels, and which way a call takes.

Kernels by autograd functions    what runs eagerly on plain tensors
Registered operators             what is traced (torch.compile, torch.export), or watched by a
                                 dispatch mode, and normalizes by the batch
PyTorch's own                    all the rest: dtypes and devices without kernels, transforms of
                                 functions (vmap, jvp), subclasses of tensors, inference that is
                                 compiled (where PyTorch fuses it with what is around), and what
                                 is wrong, so that the errors are PyTorch's
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch import gradients, kernels, operators

__all__ = ["batch_norm"]

PLAIN = (Tensor, torch.nn.Parameter, type(None))
NARROW = (torch.float16, torch.bfloat16)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does, with the same arguments and errors.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
        float32, float64, float16 or bfloat16; on the CPU, or on a GPU if bnext has its kernels
        there. In either memory format, which the result has as well.
    running_mean, running_var : Tensor, shape (C,), or None
        With `training`, they are moved in place (the variance with Bessel's correction); without,
        they are what normalizes.
    weight, bias : Tensor, shape (C,), or None
        Of the dtype of `input`; for 16-bit data also float32.
    training : bool
        Whether to normalize by the batch.
    momentum : float
        Weight of the new batch in the running statistics.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError, RuntimeError
        As PyTorch's.

    Notes
    -----
    Where autograd runs a forward pass again, as activation checkpointing does, running statistics
    are not moved a second time.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if torch.compiler.is_compiling() or _is_watched():
        if training and operators.takes(*tensors):
            return operators.batch_norm(*tensors, momentum, eps)
    elif all(type(tensor) in PLAIN for tensor in tensors) and not _is_transformed():
        try:
            if kernels.takes(input):
                return _by_kernels(*tensors, training, momentum, eps)
        except (TypeError, ValueError):
            pass  # nothing was changed; PyTorch says it in its own words, or takes it
    return torch.nn.functional.batch_norm(
        input, running_mean, running_var, weight, bias, training, float(momentum), eps
    )


def _is_watched() -> bool:
    """Whether a dispatch mode wants to see operators: fake tensors, counters of operations."""
    return torch._C._len_torch_dispatch_stack() > 0


def _is_transformed() -> bool:
    """Whether functorch or forward-mode differentiation is at work, or a tracer of TorchScript."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def is_recomputed() -> bool:
    """Whether this forward pass runs within a backward pass, where it is a repetition."""
    # A compiler repeats no mutation, and would not know of the task.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _by_kernels(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    if x.dtype in NARROW:  # kernels compute with float32 parameters; casts are autograd's
        weight, bias = widened(weight), widened(bias)
    if (running_mean is None) != (running_var is None):
        raise TypeError("running_var: expected it with running_mean")
    if not training:
        if running_mean is None or running_var is None:
            raise TypeError("running_mean: expected a tensor, got None")
        if x.dtype in NARROW:
            running_mean, running_var = running_mean.float(), running_var.float()
        return gradients.normalize_by_running(x, running_mean, running_var, weight, bias, eps)
    if running_mean is None or running_var is None or is_recomputed():
        return gradients.normalize_by_batch(x, weight, bias, None, eps)
    wide_mean, wide_var = running_mean, running_var
    if x.dtype in NARROW:
        wide_mean, wide_var = running_mean.float(), running_var.float()
    running = kernels.Running(wide_mean, wide_var, momentum)
    y = gradients.normalize_by_batch(x, weight, bias, running, eps)
    for buffer, value in ((running_mean, wide_mean), (running_var, wide_var)):
        if value is not buffer:
            buffer.copy_(value)
        elif not buffer.is_inference():
            torch.autograd.graph.increment_version(buffer)  # a kernel has written to it
    return y


def widened(tensor: Tensor | None) -> Any:
    """Cast parameters to what kernels have beside 16-bit data."""
    return None if tensor is None else tensor.float()
