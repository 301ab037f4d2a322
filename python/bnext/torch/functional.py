"""`torch.nn.functional.batch_norm` over bnext's kernels: the one door of all calls."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from bnext.torch import epilogues, gradients, operators, repetition
from bnext.torch.compilers import revision
from bnext.torch.context import (
    compiled,
    in_a_range,
    is_compiling,
    is_exported_now,
    is_plain,
    is_recomputed,
    is_symbolic,
    is_traced_by_dynamo,
    is_transformed,
)
from bnext.torch.epilogues import Epilogue, made
from bnext.torch.kernels import NARROW, KernelRefusal, widened
from bnext.torch.registration import define
from bnext.torch.roads import (
    EXPORTED,
    FUSED,
    KERNELS,
    NODE,
    OPERATORS,
    fits_kernels,
    road_of,
)

__all__ = [
    "activated_batch_norm", "batch_norm", "counted_batch_norm", "weight_of_batch",
]  # fmt: skip

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
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does, with the same arguments and errors.

    With an activation or a residual the result is ``act(norm(input) + residual)``, by one pass over
    memory in each direction where kernels have it: for a residual of the shape and dtype of
    `input`. Elsewhere PyTorch's operators add and apply.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
        float32, float64, float16 or bfloat16; on the CPU, or on a GPU if bnext has its kernels
        there. In either memory format, which the result has as well.
    running_mean, running_var : Tensor, shape (C,), or None
        With `training`, they are moved in place (the variance with Bessel's correction); without,
        `input` is normalized by them.
    weight, bias : Tensor, shape (C,), or None
        Of the dtype of `input`; for 16-bit data also float32.
    training : bool
        Whether to normalize by the batch.
    momentum : float
        Weight of the new batch in the running statistics.
    eps : float
        Added to the variance.
    activation : str, optional
        "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh" (GELU's
        approximation), "sigmoid" or "tanh", as PyTorch defines them.
    residual : Tensor, optional
        Added before the activation.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`; or as the addition of the residual makes it.

    Raises
    ------
    ValueError, RuntimeError
        As PyTorch's; `activation` is not one of the names; `negative_slope` is not finite.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    Where autograd runs a forward pass again, as activation checkpointing does, running statistics
    are not moved a second time.
    """
    tensors = (input, running_mean, running_var, weight, bias)
    if momentum is None:  # an error, and PyTorch has its text
        return _by_pytorch(*tensors, training, momentum, eps, None)
    epilogue = epilogues.checked(residual, activation, negative_slope)
    if epilogue is not None:
        return activated_batch_norm(*tensors, training, momentum, eps, None, epilogue)
    return counted_batch_norm(*tensors, training, momentum, eps, None)


def counted_batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: Any, eps: float, counter: Tensor | None,
) -> Tensor:  # fmt: skip
    """Do `batch_norm` for a layer, and add one to its `counter` where running statistics move.

    With a `momentum` of None the running statistics are means over all batches counted.
    """
    traced = is_traced_by_dynamo()
    if traced and training is True:
        if repetition.repeats:  # by `is_recomputed` Dynamo would read more
            running_mean = running_var = counter = None
        if momentum is not None and _is_one_operator():
            of_layer: Tensor = torch.ops.bnext.batch_norm_of_layer(
                input, running_mean, running_var, weight, bias, counter, momentum, eps, revision()
            )
            return of_layer
    road = road_of(input, running_mean, running_var, weight, bias, training, momentum, eps, traced)
    if road is KERNELS:
        known = weight_of_batch(counter) if momentum is None else momentum
        try:
            running = running_mean, running_var, known, counter
            if profiler._is_profiler_enabled:
                of: Any = (input, weight, bias, eps, running, training)
                y: Tensor = in_a_range("batch_norm", gradients.batch_norm, *of)
                return y
            return gradients.batch_norm(input, weight, bias, eps, running, training)
        except KernelRefusal:
            pass
    tensors = (input, running_mean, running_var, weight, bias)
    if road is NODE:
        if counter is None and momentum is not None:
            return _node_of(batch_norm, *tensors, training, momentum, eps)
        return _node_of(counted_batch_norm, *tensors, training, momentum, eps, counter)
    if momentum is None:
        momentum = weight_of_batch(counter)
    if road is OPERATORS or road is FUSED:
        return operators.batch_norm(*tensors, momentum, eps, counter, road is FUSED)
    if road is EXPORTED and counter is not None:  # where PyTorch counts: the graphs are the same
        counter.add_(1)
        counter = None
    return _by_pytorch(*tensors, training, momentum, eps, counter)


def activated_batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: Any, eps: float, counter: Tensor | None,
    epilogue: Epilogue,
) -> Tensor:  # fmt: skip
    """Do `counted_batch_norm`, and what follows it."""
    traced = is_traced_by_dynamo()
    if traced and training is True:
        if repetition.repeats:
            running_mean = running_var = counter = None
        if momentum is not None and _is_one_operator():
            of_layer: Tensor = torch.ops.bnext.batch_norm_of_layer(
                input, running_mean, running_var, weight, bias, counter, momentum, eps, revision(),
                *epilogue,
            )  # fmt: skip
            return of_layer
    tensors = (input, running_mean, running_var, weight, bias)
    residual, activation, negative_slope = epilogue
    is_plain_call = type(input) is Tensor and (residual is None or type(residual) is Tensor)
    if not is_plain_call and is_symbolic(input, residual):
        if counter is None and momentum is not None:
            return _node_of(
                batch_norm, *tensors, training, momentum, eps, activation=activation,
                residual=residual, negative_slope=negative_slope,
            )  # fmt: skip
        return _node_of(activated_batch_norm, *tensors, training, momentum, eps, counter, epilogue)
    road = road_of(*tensors, training, momentum, eps, traced)
    if road is KERNELS and (residual is None or fits_kernels(input, residual)):
        known = weight_of_batch(counter) if momentum is None else momentum
        running = running_mean, running_var, known, counter
        of: Any = (input, weight, bias, eps, running, training, epilogue)
        try:
            if profiler._is_profiler_enabled:
                y: Tensor = in_a_range("batch_norm", gradients.batch_norm, *of)
                return y
            return gradients.batch_norm(*of)
        except KernelRefusal:
            pass
    elif road is FUSED and residual is None and activation is not None:
        if momentum is None:
            momentum = weight_of_batch(counter)
        return operators.batch_norm(*tensors, momentum, eps, counter, True, epilogue)
    # Apart. A compiler makes one loop of the addition and the activation and the second phase. The
    # gradient by z is the residual's, and made in any case.
    y = counted_batch_norm(*tensors, training, momentum, eps, counter)
    return epilogues.applied(y, epilogue)


def _is_one_operator() -> bool:
    """Whether Dynamo is to see one operator in place of a call by the batch.

    Compiled code checks before every call what Dynamo has read, so it is to read little.
    """
    return not is_transformed() and not is_exported_now()


# As `is_exported_now`: Dynamo runs it. (It checks transforms by itself.)
_is_one_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _of_compiler(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, counter: Tensor | None, momentum: float, eps: float, _: str,
    residual: Tensor | None = None, activation: str | None = None, negative_slope: float = 0.01,
) -> Tensor:  # fmt: skip
    """Do the work of the operator: what the call does that Dynamo did not look into."""
    tensors = (x, running_mean, running_var, weight, bias)
    with contextlib.nullcontext() if is_plain(x) else compiled():
        if activation is None and residual is None:
            return counted_batch_norm(*tensors, True, momentum, eps, counter)
        after = made((residual, activation, negative_slope))
        return activated_batch_norm(*tensors, True, momentum, eps, counter, after)


define(
    "batch_norm_of_layer",
    "(Tensor x, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, Tensor? bias, "
    "Tensor(c!)? counter, float momentum, float eps, str revision, Tensor? residual=None, "
    "str? activation=None, float negative_slope=0.01) -> Tensor",
    _of_compiler,
)


def _by_pytorch(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, training: bool, momentum: Any, eps: float, counter: Tensor | None,
) -> Tensor:  # fmt: skip
    recomputed = is_recomputed()
    if recomputed:  # copies, which may move; autograd is to keep as much as it did before
        running_mean, running_var = (
            None if buffer is None else buffer.clone() for buffer in (running_mean, running_var)
        )
    elif is_compiling() and isinstance(momentum, Tensor):
        momentum = float(momentum)  # made from a count that is traced
    if _is_sharded(input, running_mean, running_var, weight, bias):
        weight, bias = widened(input, weight), widened(input, bias)
    y: Tensor = _PYTORCHS(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if counter is not None and not recomputed:
        counter.add_(1)
    return y


def _is_sharded(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> bool:
    """Whether parameters have the 16 bits of x beside float32 statistics, as in a sharded model.

    PyTorch's operator takes them as float32.
    """
    if not isinstance(x, Tensor) or x.dtype not in NARROW:
        return False
    parameters = {each.dtype for each in (weight, bias) if each is not None}
    statistics = {each.dtype for each in (mean, var) if each is not None}
    return parameters == {x.dtype} and statistics == {torch.float32}


def weight_of_batch(counter: Tensor | None) -> Any:
    """Weigh the next batch like each of the batches counted; 0 if none is counted."""
    if counter is None:
        return 0.0
    # Traced, the count stays a tensor: to read it would break the graph.
    count: Any = counter.double() if is_compiling() else int(counter)
    return 1.0 / (count + 1)


def _node_of(function: Any, *arguments: Any, **named: Any) -> Any:
    """Make a call of `function` a node of the graph that one of the arguments belongs to."""
    proxy: Any = next(value for value in (*arguments, *named.values()) if is_symbolic(value))
    return proxy.tracer.create_proxy("call_function", function, arguments, named)
