"""Forward and backward as autograd functions over the kernels: calls that run eagerly.

Statistics are kept as the kernels left them; x and weight go through `save_for_backward`, so that
autograd notices what has changed meanwhile, and hooks on saved tensors (activation checkpointing,
offloading) have them. Where gradients of gradients are wanted, the backward pass is an autograd
function in turn: its values are the kernels', as without, and its derivatives are `formulas`. A
backward pass of gradients that are not plain is made of PyTorch's own operations: of a batch of
gradients (``is_grads_batched``), or where functorch, a mode or a compiler observes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from bnext.rows import unbound
from bnext.torch import formulas, kernels
from bnext.torch.context import is_plain, is_recomputed

__all__ = ["batch_norm", "records"]

Gradients = tuple[Tensor | None, ...]


def batch_norm(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float, counter: Tensor | None,
) -> Tensor:  # fmt: skip
    """Normalize plain tensors by the kernels; KernelRefusal if PyTorch or they do not take them.

    A call that autograd repeats normalizes by the batch, and moves nothing.
    """
    recorded = False
    if is_grad_enabled():
        recorded = records(x, weight, bias)
        if mean is not None and var is not None:
            if mean.requires_grad or var.requires_grad:
                raise kernels.KernelRefusal
            if recorded and (mean.is_inference() or var.is_inference()):  # autograd keeps them
                raise kernels.KernelRefusal
    if not training:
        if not recorded:
            return kernels.evaluate(x, mean, var, weight, bias, eps)
        y: Tensor = _record_by_running(x, weight, bias, (mean, var, eps))
        return y
    if is_recomputed():
        mean = var = counter = None
    if not recorded:
        return kernels.forward(x, weight, bias, eps, mean, var, momentum, counter, False)[0]
    y = _record_by_batch(x, weight, bias, (eps, mean, var, momentum, counter))
    return y


def records(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether autograd wants to know of a call."""
    return is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


# --- as autograd functions ------------------------------------------------------------------------


class _ByBatch(torch.autograd.Function):
    """y of x, weight and bias by the batch's statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, others: Any
    ) -> Tensor:
        y, ctx.statistics = kernels.forward(x, weight, bias, *others)
        ctx.save_for_backward(x, weight)
        ctx.address = x.data_ptr()
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dx: Tensor | None
        if not is_plain(dy):
            dx, dweight, dbias = _by_formulas(ctx, dy, x, weight)
        elif is_grad_enabled():
            dx, dweight, dbias = _Backward.apply(dy, x, weight, ctx, wants_x)
        else:
            dx, dweight, dbias = _by_kernels(ctx, dy, x, weight, wants_x)
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
        )


class _ByRunning(_ByBatch):
    """y of x, weight and bias by given statistics, a mean and a variance."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, others: Any
    ) -> Tensor:
        mean, var, eps = others
        y, ctx.statistics = kernels.inference(x, mean, var, weight, bias, eps)
        # Only gradients of parameters take x; it is not kept for dx, a function of dy and weight.
        _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight or wants_bias else None, weight)
        ctx.address = x.data_ptr()
        return y


class _Backward(torch.autograd.Function):
    """dx, dweight and dbias of dy, x and weight; `of` is the context of the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, of: Any, wants_x: bool
    ) -> Gradients:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, weight)
        ctx.statistics = of.statistics
        return _by_kernels(of, dy, x, weight, wants_x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Gradients:
        dy, x, weight = ctx.saved_tensors
        of = formulas.OfBackward(*gradients)
        if ctx.statistics.batch_statistics:
            twice = formulas.backward_twice(of, dy, x, weight, ctx.statistics.eps)
        else:
            by = _given_statistics(ctx)
            twice = formulas.backward_constant_twice(of, dy, _like_x(x, dy), *by, weight)
        every = (*twice, None, None)
        return tuple(
            each if wanted else None
            for each, wanted in zip(every, ctx.needs_input_grad, strict=True)
        )


# What `Function.apply` does besides, for transforms of functions, is a quarter of a small call.
_record_by_batch: Any = super(torch.autograd.Function, _ByBatch).apply
_record_by_running: Any = super(torch.autograd.Function, _ByRunning).apply


# --- the two ways of a backward pass --------------------------------------------------------------


def _by_kernels(
    ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, wants_x: bool
) -> Gradients:
    """Give dx, if it is wanted, and the gradients of the parameters."""
    try:
        if x is None:
            return kernels.backward_constant(dy, ctx.statistics, weight), None, None
        if wants_x:
            return kernels.backward(dy, x, ctx.statistics, weight)
        return None, *kernels.backward_of_parameters(dy, x, ctx.statistics)
    except TypeError:
        if kernels.has_memory(dy):
            raise
        return _by_formulas(ctx, dy, x, weight)  # a batch of gradients
    except ValueError:
        # It has changed, by ways that autograd does not see; or the error is another.
        if x is None or x.data_ptr() == ctx.address:
            raise
    # What hooks have made of x may be close to it, and not the same.
    ctx.statistics, ctx.address = kernels.saved_beside(x, ctx.statistics), x.data_ptr()
    return _by_kernels(ctx, dy, x, weight, wants_x)


def _by_formulas(ctx: Any, dy: Tensor, x: Any, weight: Tensor | None) -> Gradients:
    statistics = ctx.statistics
    if statistics.batch_statistics:
        return formulas.backward(dy, x, weight, statistics.eps)
    return formulas.backward_constant(dy, _like_x(x, dy), *_given_statistics(ctx), weight)


def _like_x(x: Tensor | None, dy: Tensor) -> Tensor:
    """Stand for x where no gradient of parameters takes it."""
    return dy if x is None else x


def _given_statistics(ctx: Any) -> tuple[Tensor, Tensor, float]:
    rows = unbound(kernels.rows_of(ctx.statistics))
    return rows.mean, rows.var, ctx.statistics.eps
