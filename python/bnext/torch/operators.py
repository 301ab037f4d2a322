"""The two passes as registered operators: what torch.compile, torch.export and dispatch modes see.

``bnext::batch_norm``           x, weight, bias, eps -> y, statistics, first
``bnext::batch_norm_backward``  dy, x, weight, statistics, eps -> dx, dweight, dbias

`statistics` has mean, m2, biased variance and rstd of each channel as rows, in float64. The
operators are functional: running statistics are moved from these, by operations that a compiler can
fuse. `first` is the integer 1, or 0 where the pass repeats one in a backward pass: what is compiled
finds that out when it runs. The backward operator has a backward pass in turn, by `formulas`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bnext.torch import formulas, kernels
from bnext.torch.context import is_recomputed

__all__ = ["batch_norm", "takes"]


def takes(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> bool:
    """Whether a traced call is one for the operators; PyTorch says what is wrong with others."""
    others = (running_mean, running_var, weight, bias)
    if not kernels.takes(x) or x.dim() < 2 or not kernels.agree(x, *others):
        return False
    if (running_mean is None) != (running_var is None):
        return False
    if any(buffer is not None and buffer.requires_grad for buffer in others[:2]):
        return False
    shape = (x.size(1),)
    return all(
        tensor is None or (tensor.shape == shape and tensor.device == x.device) for tensor in others
    )


def parameter_dtype(x: Tensor) -> torch.dtype:
    """Name the dtype that kernels have parameters of."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: Any,
    eps: float,
    counter: Tensor | None,
) -> Tensor:
    """Normalize by the batch, move running statistics and a counter, in ways that can be traced."""
    functional: Any = torch.nn.functional
    functional._verify_batch_size(x.size())
    weight, bias = kernels.widened(x, weight), kernels.widened(x, bias)
    y, statistics, first = torch.ops.bnext.batch_norm(x, weight, bias, eps)
    if not is_recomputed():  # none of it is differentiated, since neither output of the operator is
        count = math.prod(x.shape) // max(x.shape[1], 1)
        if running_mean is not None and running_var is not None and count > 1:
            mean, m2, _, _ = statistics.unbind()
            _move(running_mean, mean, momentum, first)
            _move(running_var, m2 / (count - 1), momentum, first)
        if counter is not None:
            counter.add_(first)
    result: Tensor = y
    return result


def _move(running: Tensor, batch: Tensor, momentum: Any, first: Tensor) -> None:
    moved = (1 - momentum) * running.double() + momentum * batch
    running.copy_(torch.where(first > 0, moved, running))


# Types are spelled as PyTorch's schemas are read from them.


@torch.library.custom_op("bnext::batch_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y, saved = kernels.forward(x, weight, bias, None, eps)
    first = torch.full((), 0 if is_recomputed() else 1, device=x.device)
    return y, kernels.rows_of(saved), first


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((4, x.size(1)), dtype=torch.float64)
    return _like(x), statistics, x.new_empty((), dtype=torch.int64)


@torch.library.custom_op("bnext::batch_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = kernels.saved_of(x, statistics, eps)
    return kernels.backward(dy, x, saved, weight)


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dbias = (x.new_empty(x.size(1), dtype=parameter_dtype(x)) for _ in range(2))
    return _like(x), dweight, dbias


def _like(x: Tensor) -> Tensor:
    """Lie where results of the kernels do."""
    return torch.empty_like(x, memory_format=kernels.format_of(x))


def _keep_forward(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, eps = inputs
    _, statistics, first = output
    ctx.mark_non_differentiable(statistics, first)
    ctx.save_for_backward(x, weight, statistics)
    ctx.eps = eps


def _through_forward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, statistics = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    gradients = torch.ops.bnext.batch_norm_backward(dy, x, weight, statistics, ctx.eps)
    wanted = zip(gradients, (wants_x, wants_weight, wants_bias), strict=True)
    return *(gradient if wants else None for gradient, wants in wanted), None


_forward.register_autograd(_through_forward, setup_context=_keep_forward)


def _keep_backward(ctx: Any, inputs: Any, output: Any) -> None:
    dy, x, weight, _, eps = inputs
    ctx.save_for_backward(dy, x, weight)
    ctx.eps = eps


def _through_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    dy, x, weight = ctx.saved_tensors

    def again(dy: Tensor, x: Tensor, weight: Tensor | None = None) -> Any:
        return formulas.backward(dy, x, weight, ctx.eps)

    given = (dy, x) if weight is None else (dy, x, weight)
    vjp: Any = torch.func.vjp
    outputs, pull_back = vjp(again, *given)
    filled = tuple(
        torch.zeros_like(output) if gradient is None else gradient
        for output, gradient in zip(outputs, gradients, strict=True)
    )
    of_dy, of_x, *of_weight = pull_back(filled)
    return of_dy, of_x, (of_weight[0] if of_weight else None), None, None


_backward.register_autograd(_through_backward, setup_context=_keep_backward)
