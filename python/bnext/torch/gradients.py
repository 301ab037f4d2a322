"""Forward and backward as autograd functions over the kernels: what runs eagerly.

Statistics are kept as the kernels left them; x and weight go through `save_for_backward`, so that
autograd notices what has changed meanwhile, and hooks on saved tensors (activation checkpointing,
offloading) have them. Where gradients of gradients are wanted, the backward pass is an autograd
function in turn: its values are the kernels', as without, and its derivatives are `formulas`. A
backward pass of many outputs at once (``is_grads_batched``), or one that functorch looks into, is
made of PyTorch's own operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.rows import unbound
from bnext.torch import formulas, kernels
from bnext.torch.context import PLAIN, is_watched

__all__ = [
    "normalize_by_batch", "normalize_by_running", "record_plain", "record_plain_by_running",
    "records",
]  # fmt: skip

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
    y: Tensor = _ByRunning.apply(x, weight, bias, (mean, var), eps)
    return y


def records(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether autograd wants to know of a call."""
    return torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


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


def _is_looked_into(dy: Tensor) -> bool:
    """Whether the backward pass has to be one of PyTorch's operations."""
    return type(dy) not in PLAIN or is_watched(dy)


# --- statistics of the batch ----------------------------------------------------------------------


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
        if _is_looked_into(dy):
            gradients = formulas.backward(dy, x, weight, ctx.eps)
        elif torch.is_grad_enabled():
            gradients = _BackwardByBatch.apply(dy, x, weight, ctx, wants_x)
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
        take = kernels.calls_there().forward if x.is_cuda else kernels.forward_plain
        done = take(x, weight, bias, mean, var, momentum, counter, eps)
        if done is None:
            raise kernels.KernelRefusal
        y, ctx.statistics = done
        ctx.save_for_backward(x, weight)
        ctx.address, ctx.eps = x.data_ptr(), eps
        return y


# y of plain tensors, for autograd to know of, or a KernelRefusal. What `Function.apply` does
# besides, for transforms of functions, is a quarter of a small call.
record_plain: Any = super(torch.autograd.Function, _ByBatchPlain).apply


class _BackwardByBatch(torch.autograd.Function):
    """dx, dweight and dbias of dy, x and weight; `of` is the context of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, of: Any, wants_x: bool
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, weight)
        ctx.eps = of.eps
        return _by_kernels(of, dy, x, weight, wants_x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Gradients:
        dy, x, weight = ctx.saved_tensors
        of = formulas.backward_twice(formulas.OfBackward(*gradients), dy, x, weight, ctx.eps)
        return _wanted(of, ctx.needs_input_grad)


def _wanted(of: formulas.Twice, wants: tuple[bool, ...]) -> Gradients:
    """Give what is wanted of the gradients of dy, x and weight, and None for other arguments."""
    every = (*of, *(None for _ in wants[len(of) :]))
    return tuple(each if wants_it else None for each, wants_it in zip(every, wants, strict=True))


# --- given statistics -----------------------------------------------------------------------------


class _ByRunning(torch.autograd.Function):
    """y of x, weight and bias by given statistics, a mean and a variance."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        given: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        y, ctx.statistics = kernels.inference(x, *given, weight, bias, eps)
        return _keep(ctx, x, weight, eps, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
        gradients: Gradients
        if _is_looked_into(dy):
            given = unbound(kernels.rows_of(ctx.statistics))
            like_x = dy if x is None else x
            gradients = formulas.backward_constant(
                dy, like_x, given.mean, given.var, weight, ctx.eps
            )
        elif torch.is_grad_enabled():
            gradients = _BackwardByRunning.apply(dy, x, weight, ctx, wants_x)
        else:
            gradients = _by_kernels_of_constants(ctx, dy, x, weight, wants_x)
        dx, dweight, dbias = gradients
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
            None,
        )


class _ByRunningPlain(_ByRunning):
    """The same for plain tensors, on the short way (`usual`)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        given: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        there = kernels.calls_there().normalize_by_running if x.is_cuda else None
        done = (there or kernels.inference_plain)(x, *given, weight, bias, eps)
        if done is None:
            raise kernels.KernelRefusal
        y, ctx.statistics = done
        return _keep(ctx, x, weight, eps, y)


record_plain_by_running: Any = super(torch.autograd.Function, _ByRunningPlain).apply


def _keep(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, y: Tensor) -> Tensor:
    # Only gradients of parameters take x; it is not kept for dx, a function of dy and weight.
    _, wants_weight, wants_bias, _, _ = ctx.needs_input_grad
    ctx.needs_x = wants_weight or wants_bias
    ctx.save_for_backward(x if ctx.needs_x else None, weight)
    ctx.address, ctx.eps = x.data_ptr(), eps
    return y


def _by_kernels_of_constants(
    ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, wants_x: bool
) -> Gradients:
    if x is not None:
        return _by_kernels(ctx, dy, x, weight, wants_x)
    return kernels.backward_constant(dy, ctx.statistics, weight), None, None


class _BackwardByRunning(torch.autograd.Function):
    """dx, dweight and dbias of dy, x and weight; `of` is the context of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, of: Any, wants_x: bool
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, weight)
        ctx.eps, ctx.statistics = of.eps, of.statistics
        return _by_kernels_of_constants(of, dy, x, weight, wants_x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Gradients:
        dy, x, weight = ctx.saved_tensors
        given = unbound(kernels.rows_of(ctx.statistics))
        of = formulas.backward_constant_twice(
            formulas.OfBackward(*gradients), dy, dy if x is None else x, given.mean, given.var,
            weight, ctx.eps,
        )  # fmt: skip
        return _wanted(of, ctx.needs_input_grad)
