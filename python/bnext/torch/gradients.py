"""Forward and backward as autograd functions over the kernels: what runs eagerly.

Statistics are kept as the kernels left them; x and weight go through `save_for_backward`, so that
autograd notices what has changed meanwhile, and hooks on saved tensors (activation checkpointing,
offloading) have them. Where gradients of gradients are wanted, or those of many outputs at once
(``is_grads_batched``), the backward pass is made of PyTorch's own operations (`formulas`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch import formulas, kernels
from bnext.torch.context import PLAIN, is_watched

__all__ = ["normalize_by_batch", "normalize_by_running", "record_plain", "records"]

Gradients = tuple[Tensor | None, ...]


def normalize_by_batch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: kernels.Running | None,
    eps: float,
) -> Tensor:
    """Normalize by the statistics of `x`, and move the running ones if there are any."""
    if not records(x, weight, bias):
        return kernels.forward(x, weight, bias, running, eps)[0]
    y: Tensor = _ByBatch.apply(x, weight, bias, running, eps)
    return y


def normalize_by_running(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Normalize by running statistics, which are constants."""
    if not records(x, weight, bias):
        return kernels.inference(x, mean, var, weight, bias, eps)[0]
    y: Tensor = _ByRunning.apply(x, mean, var, weight, bias, eps)
    return y


def records(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether autograd wants to know of a call."""
    return torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


def _by_formulas(dy: Tensor) -> bool:
    """Whether the backward pass is to be one that autograd or functorch can look into."""
    return torch.is_grad_enabled() or type(dy) not in PLAIN or is_watched(dy)


def _by_kernels(ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, wants_x: bool) -> Gradients:
    """Give dx, if it is wanted, and the gradients of the parameters."""
    try:
        return _by_kernels_from(ctx.statistics, dy, x, weight, wants_x)
    except ValueError:
        if x.data_ptr() == ctx.address:  # it has changed, by ways that autograd does not see
            raise
    # What hooks have made of x may be close to it, and not the same.
    saved = kernels.saved_beside(x, ctx.statistics, ctx.eps)
    return _by_kernels_from(saved, dy, x, weight, wants_x)


def _by_kernels_from(
    saved: Any, dy: Tensor, x: Tensor, weight: Tensor | None, wants_x: bool
) -> Gradients:
    if wants_x:
        return kernels.backward(dy, x, saved, weight)
    return None, *kernels.backward_of_parameters(dy, x, saved)


class _ByBatch(torch.autograd.Function):
    """y of x, weight and bias by the batch's statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: kernels.Running | None,
        eps: float,
    ) -> Tensor:
        y, ctx.statistics = kernels.forward(x, weight, bias, running, eps)
        ctx.save_for_backward(x, weight)
        ctx.address, ctx.eps = x.data_ptr(), eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
        gradients: Gradients
        if _by_formulas(dy):
            gradients = formulas.backward(dy, x, weight, ctx.eps)
        else:
            gradients = _by_kernels(ctx, dy, x, weight, wants_x)
        dx, dweight, dbias = gradients
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
            None,
        )


class _ByBatchPlain(_ByBatch):
    """The same for plain tensors, on the short way (`usual`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Any,
        eps: float,
    ) -> Tensor:
        mean, var, momentum, counter = running
        done = kernels.forward_plain(x, weight, bias, mean, var, momentum, counter, eps)
        if done is None:
            raise kernels.KernelRefusal
        y, ctx.statistics = done
        ctx.save_for_backward(x, weight)
        ctx.address, ctx.eps = x.data_ptr(), eps
        return y


# y of plain tensors, for autograd to know of, or a KernelRefusal. What `Function.apply` does
# besides, for transforms of functions, is a quarter of a small call.
record_plain: Any = super(torch.autograd.Function, _ByBatchPlain).apply


class _ByRunning(torch.autograd.Function):
    """y of x, weight and bias by given statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        y, ctx.statistics = kernels.inference(x, mean, var, weight, bias, eps)
        # Only gradients of parameters take x; it is not kept for dx, a function of dy and weight.
        ctx.needs_x = any(ctx.needs_input_grad[3:5])
        ctx.save_for_backward(x if ctx.needs_x else None, weight)
        ctx.address, ctx.eps = x.data_ptr(), eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, _, _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dx: Tensor | None
        dweight = dbias = None
        if _by_formulas(dy):
            mean, _, var, _ = kernels.rows_of(ctx.statistics)
            like_x = dy if x is None else x
            dx, dweight, dbias = formulas.backward_constant(dy, like_x, mean, var, weight, ctx.eps)
        elif ctx.needs_x:
            dx, dweight, dbias = _by_kernels(ctx, dy, x, weight, wants_x)
        else:
            dx = kernels.backward_constant(dy, ctx.statistics, weight)
        return (
            dx if wants_x else None,
            None,
            None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
        )
