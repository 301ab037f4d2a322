"""Forward and backward as autograd functions over the kernels: what runs eagerly.

Statistics are kept as the kernels left them; x and weight go through `save_for_backward`, so that
autograd notices what has changed meanwhile, and hooks on saved tensors (activation checkpointing,
offloading) have them. Where gradients of gradients are wanted, the backward pass is made of
PyTorch's own operations (`formulas`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch import formulas, kernels

__all__ = ["normalize_by_batch", "normalize_by_running", "records"]

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


def records(*tensors: Tensor | None) -> bool:
    """Whether autograd wants to know of a call."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        dx: Tensor | None
        if torch.is_grad_enabled():
            dx, dweight, dbias = formulas.backward(dy, x, weight, ctx.eps)
        elif wants_x:
            dx, dweight, dbias = kernels.backward(dy, x, ctx.statistics, weight)
        else:
            dx = None
            dweight, dbias = kernels.backward_of_parameters(dy, x, ctx.statistics)
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
            None,
        )


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
        # Without gradients of parameters x is not kept, unless somebody differentiates twice; then
        # dx is a function of dy and weight alone.
        ctx.needs_x = any(ctx.needs_input_grad[3:5])
        ctx.save_for_backward(x if ctx.needs_x else None, weight)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, _, _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dx: Tensor | None
        dweight = dbias = None
        if torch.is_grad_enabled():
            _, _, var, _ = rows = kernels.rows_of(ctx.statistics)
            mean = rows[0]
            dx, dweight, dbias = formulas.backward_constant(
                dy, dy if x is None else x, mean, var, weight, ctx.eps
            )
        elif not ctx.needs_x:
            dx = kernels.backward_constant(dy, ctx.statistics, weight)
        elif wants_x:
            dx, dweight, dbias = kernels.backward(dy, x, ctx.statistics, weight)
        else:
            dx = None
            dweight, dbias = kernels.backward_of_parameters(dy, x, ctx.statistics)
        return (
            dx if wants_x else None,
            None,
            None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
        )
