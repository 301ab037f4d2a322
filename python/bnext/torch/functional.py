"""`torch.nn.functional.batch_norm` over bnext's kernels, and which way a call takes.

Kernels by autograd functions    what runs eagerly on plain tensors
Registered operators             what is traced (torch.compile, torch.export), or watched by a
                                 dispatch mode, and normalizes by the batch
PyTorch's own                    all the rest: what is exported, for tools that know PyTorch's
                                 operators and run without bnext; dtypes and devices without
                                 kernels, tensors with nothing in them, transforms of functions
                                 (vmap, jvp), subclasses of tensors, inference that is compiled
                                 (where PyTorch fuses it with what is around), and what is wrong,
                                 so that the errors are PyTorch's

Values that stand for tensors while `torch.fx` traces make a node of the graph, which calls the
function here again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch import gradients, kernels, operators
from bnext.torch.context import (
    PLAIN,
    is_exported,
    is_recomputed,
    is_symbolic,
    is_traced,
    is_transformed,
)

__all__ = ["batch_norm", "counted_batch_norm"]

NUMBERS = (float, int)

# Kept as it is at import: programs may put `batch_norm` below under PyTorch's name, for layers that
# call it there.
_PYTORCHS: Any = torch.nn.functional.batch_norm


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
    if type(input) is not Tensor and is_symbolic(*tensors):
        return _node_of(batch_norm, *tensors, training, momentum, eps)
    return _normalized(*tensors, training, momentum, eps, None)


def counted_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: Any,
    eps: float,
    counter: Tensor | None,
) -> Tensor:
    """Do `batch_norm`, and add one to the `counter` of a layer whose running statistics move.

    A `momentum` of None is the weight that makes them means over all batches counted.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if type(input) is not Tensor and is_symbolic(*tensors):
        return _node_of(counted_batch_norm, *tensors, training, momentum, eps, counter)
    if momentum is None:
        momentum = weight_of_batch(counter)
    return _normalized(*tensors, training, momentum, eps, counter)


def _normalized(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: Any,
    eps: float,
    counter: Tensor | None,
) -> Tensor:
    tensors = (input, running_mean, running_var, weight, bias)
    y = None
    if is_transformed():
        pass
    elif is_traced():
        if is_exported():
            if counter is not None:  # where PyTorch counts, so that the graphs are the same
                counter.add_(1)
                counter = None
        elif training is True and eps > 0 and operators.takes(*tensors):
            return operators.batch_norm(*tensors, momentum, eps, counter)
    elif _are_plain(*tensors) and _are_numbers(training, momentum, eps):
        y = _by_kernels(*tensors, training, momentum, eps)
    if y is None:
        if torch.compiler.is_compiling() and isinstance(momentum, Tensor):
            momentum = float(momentum)  # made from a count that is traced
        if is_recomputed():  # copies, which may move; autograd is to keep as much as it did before
            running_mean, running_var = _copied(running_mean), _copied(running_var)
        y = _PYTORCHS(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if counter is not None and not is_recomputed():
        counter.add_(1)
    return y


def weight_of_batch(counter: Tensor | None) -> Any:
    """Weigh the next batch like each of those counted; 0 if none is."""
    if counter is None:
        return 0.0
    # Traced, the count stays a tensor: to read it would break the graph.
    count: Any = counter.double() if torch.compiler.is_compiling() else int(counter)
    return 1.0 / (count + 1)


def _node_of(function: Any, *arguments: Any) -> Any:
    """Make a call of `function` a node of the graph that one of the arguments belongs to."""
    proxy: Any = next(value for value in arguments if is_symbolic(value))
    return proxy.tracer.create_proxy("call_function", function, arguments, {})


def _copied(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()


def _are_plain(input: Tensor, *others: Tensor | None) -> bool:
    """Whether these are ordinary tensors, all in a place where there are kernels."""
    if type(input) not in PLAIN or not kernels.takes(input) or input.numel() == 0:
        return False
    device = input.device
    return all(
        tensor is None or (type(tensor) in PLAIN and tensor.device == device) for tensor in others
    )


def _are_numbers(training: bool, momentum: float, eps: float) -> bool:
    """Whether these are of types and values that PyTorch takes."""
    if type(training) is not bool or not isinstance(momentum, NUMBERS):
        return False
    return isinstance(eps, NUMBERS) and eps > 0


def _by_kernels(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor | None:
    """Normalize; None if something is wrong, which PyTorch then says in its own words."""
    if not kernels.agree(x, running_mean, running_var, weight, bias):
        return None
    weight, bias = kernels.widened(x, weight), kernels.widened(x, bias)
    try:
        if running_mean is None or running_var is None:
            if not training or running_mean is not running_var:
                return None
            return gradients.normalize_by_batch(x, weight, bias, None, eps)
        if not _are_buffers(running_mean, running_var, gradients.records(x, weight, bias)):
            return None
        mean, var = kernels.widened(x, running_mean), kernels.widened(x, running_var)
        if not training:
            return gradients.normalize_by_running(x, mean, var, weight, bias, eps)
        if is_recomputed():
            return gradients.normalize_by_batch(x, weight, bias, None, eps)
        running = kernels.Running(mean, var, momentum)
        y = gradients.normalize_by_batch(x, weight, bias, running, eps)
    except kernels.KernelRefusal:
        return None
    kernels.bring_back((running_mean, running_var), (mean, var))
    return y


def _are_buffers(mean: Tensor, var: Tensor, recorded: bool) -> bool:
    """Whether PyTorch takes these as running statistics; in a recorded call it would keep them."""
    if mean.requires_grad or var.requires_grad:
        return False
    return not recorded or not (mean.is_inference() or var.is_inference())
