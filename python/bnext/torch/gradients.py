"""Forward and backward as autograd functions over the kernels: calls that run eagerly.

Statistics are kept as the kernels left them; x and weight go through `save_for_backward`, so that
autograd notices what has changed meanwhile, and hooks on saved tensors (activation checkpointing,
offloading) have them. A backward pass of gradients that are not plain is made of PyTorch's own
operations: of a batch of gradients (``is_grads_batched``), or where functorch, a mode or a compiler
observes it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from bnext.rows import unbound
from bnext.torch import formulas, kernels
from bnext.torch.context import is_plain
from bnext.torch.epilogues import Epilogue, derivative
from bnext.torch.repetition import backward_task

__all__ = ["batch_norm"]

Gradients = tuple[Tensor | None, ...]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    running: kernels.RunningTensors, training: bool, epilogue: Epilogue | None = None,
) -> Tensor:  # fmt: skip
    """Normalize plain tensors by the kernels; KernelRefusal if PyTorch or they do not take them.

    A call that autograd repeats normalizes by the batch, and moves nothing.
    """
    mean, var, _, counter = running
    given = moved = None
    if not training:
        given = running
    elif (mean is not None or var is not None or counter is not None) and backward_task() == -1:
        moved = running
    recorded = False
    if is_grad_enabled():
        recorded = (
            (weight is not None and weight.requires_grad)
            or x.requires_grad
            or (bias is not None and bias.requires_grad)
            or (epilogue is not None and wants_gradient(epilogue.residual))
        )
        if mean is not None and var is not None:
            if mean.requires_grad or var.requires_grad:
                raise kernels.KernelRefusal
            if recorded:  # autograd keeps them, and inference tensors have no version to notice
                try:
                    _ = mean._version, var._version  # costs half of `is_inference`
                except RuntimeError:
                    raise kernels.KernelRefusal from None
    if not recorded:
        return kernels.forward(x, weight, bias, eps, given, moved, False, epilogue)[0]
    if epilogue is not None:
        others = eps, given, moved, epilogue
        y: Tensor = _record_activated(x, weight, bias, epilogue[0], others)
        return y
    y = _record(x, weight, bias, (eps, given, moved))
    return y


# --- as autograd functions ------------------------------------------------------------------------


class _Normalization(torch.autograd.Function):
    """y of x, weight and bias, by given statistics or by the batch's."""

    # PyTorch looks for each in every class above by a name that is no interned string.
    setup_context = torch.autograd.Function.setup_context
    clear_saved_tensors_on_access = boxed_grads_call = False

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, others: Any
    ) -> Tensor:
        eps, given, moved = others
        y, ctx.statistics = kernels.forward(x, weight, bias, eps, given, moved)
        kept = x
        if given is not None:
            _, wants_weight, wants_bias, _ = ctx.needs_input_grad
            if not (wants_weight or wants_bias):
                kept = None  # only gradients of parameters take x: dx follows from dy and weight
        ctx.to_save = kept, weight  # as `save_for_backward` does, without its frame
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        dx: Tensor | None
        if not is_plain(dy):
            dx, dweight, dbias = _by_formulas(ctx.statistics, dy, x, weight)
        elif is_grad_enabled():
            work = partial(_by_kernels, ctx, wants_x=wants_x)
            again = _Again(partial(_by_formulas, ctx.statistics), ctx.statistics)
            dx, dweight, dbias = formulas.Backward.apply(work, again, dy, x, weight)
        else:
            dx, dweight, dbias = _by_kernels(ctx, dy, x, weight, wants_x)
        return (
            dx if wants_x else None,
            dweight if wants_weight else None,
            dbias if wants_bias else None,
            None,
        )


# What `Function.apply` does besides, for transforms of functions, is a quarter of a small call.
_record: Any = super(torch.autograd.Function, _Normalization).apply


def wants_gradient(tensor: Any) -> bool:
    """Whether a tensor, if it is one, wants a gradient."""
    return tensor is not None and bool(tensor.requires_grad)


class _Activated(torch.autograd.Function):
    """act(norm(x) + residual) of x, weight, bias and residual."""

    setup_context = torch.autograd.Function.setup_context  # as above
    clear_saved_tensors_on_access = boxed_grads_call = False

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        others: Any,
    ) -> Tensor:  # fmt: skip
        eps, given, moved, epilogue = others
        y, saved = kernels.forward(x, weight, bias, eps, given, moved, True, epilogue)
        ctx.statistics, ctx.epilogue = saved, (residual is not None, epilogue[1], epilogue[2])
        kept = ctx.residual_address = None
        if residual is not None and saved.reads_residual:
            kept, ctx.residual_address = residual, residual.data_ptr()
        if given is not None and epilogue[1] is None and not any(ctx.needs_input_grad[1:3]):
            ctx.to_save = None, weight, bias, kept
        else:
            ctx.to_save = x, weight, bias, kept
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, weight, bias, residual = ctx.saved_tensors
        every: Any
        if not is_plain(dy):
            every = _activated_by_formulas(ctx, dy, x, weight, bias, residual)
        elif is_grad_enabled():
            work = partial(_activated_by_kernels, ctx)
            twice = _Again(partial(_activated_by_formulas, ctx), ctx.statistics)
            every = formulas.Backward.apply(work, twice, dy, x, weight, bias, residual)
        else:
            every = _activated_by_kernels(ctx, dy, x, weight, bias, residual)
        wants_x, wants_weight, wants_bias, wants_residual, _ = ctx.needs_input_grad
        return (
            every[0] if wants_x else None,
            every[1] if wants_weight else None,
            every[2] if wants_bias else None,
            every[3] if wants_residual else None,
            None,
        )


_record_activated: Any = super(torch.autograd.Function, _Activated).apply


# --- the two ways of a backward pass --------------------------------------------------------------


def _by_kernels(
    ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, wants_x: bool
) -> Gradients:
    """Give dx, if it is wanted, and the gradients of the parameters."""
    try:
        if x is None or wants_x:
            return kernels.backward(dy, x, ctx.statistics, weight)
        return None, *kernels.backward_of_parameters(dy, x, ctx.statistics)
    except TypeError:
        if kernels.has_memory(dy):
            raise
        return _by_formulas(ctx.statistics, dy, x, weight)  # a batch of gradients
    except ValueError:
        # It has changed, by ways that autograd does not see; or the error is another. (On a GPU
        # nothing looks for changes.)
        if x is None or x.is_cuda or x.data_ptr() == ctx.statistics.address:
            raise
    # What hooks have made of x may be close to it, and not the same.
    ctx.statistics = kernels.saved_beside(x, ctx.statistics)
    return _by_kernels(ctx, dy, x, weight, wants_x)


class _Again:
    """The backward pass by formulas, and by kernels its derivative (`formulas.Backward`)."""

    def __init__(self, by_formulas: Any, statistics: Any) -> None:
        self._by_formulas = by_formulas
        self.twice = partial(kernels.double_backward, statistics)

    def __call__(self, *inputs: Any) -> Gradients:
        found: Gradients = self._by_formulas(*inputs)
        return found


def _by_formulas(statistics: Any, dy: Tensor, x: Any, weight: Tensor | None) -> Gradients:
    return _every_gradient(statistics, None, dy, x, weight)[:3]


def _every_gradient(statistics: Any, slope: Any, dy: Tensor, x: Any, *others: Any) -> Gradients:
    """Give dx, dweight, dbias and dresidual by formulas."""
    eps = statistics.eps
    if statistics.batch_statistics:
        return formulas.backward(dy, x, *others, eps=eps, slope=slope)
    rows = unbound(kernels.rows_of(statistics))
    like_x = dy if x is None else x  # where no gradient of parameters takes it
    return formulas.backward_constant(
        dy, like_x, *others, mean=rows.mean, var=rows.var, eps=eps, slope=slope
    )


def _activated_by_kernels(
    ctx: Any, dy: Tensor, x: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None,
) -> Gradients:  # fmt: skip
    """Give dx, dweight and dbias; and dresidual, if there was a residual."""
    try:
        return kernels.backward(dy, x, ctx.statistics, weight, residual)
    except TypeError:
        if kernels.has_memory(dy):
            raise
    except ValueError:
        # What hooks have made of x or the residual may be close to it, and not the same.
        if x is None or x.is_cuda or _are_where_they_were(ctx, x, residual):
            raise
    return _activated_by_formulas(ctx, dy, x, weight, bias, residual)


def _activated_by_formulas(ctx: Any, dy: Tensor, x: Any, *others: Any) -> Gradients:
    saved, (has_residual, activation, negative_slope) = ctx.statistics, ctx.epilogue
    slope: Any = None
    if activation is not None:
        slope = derivative(activation, negative_slope)
        if has_residual and not saved.reads_residual:  # z is not known again, only its flags
            known = kernels.slope_by_flags(x, saved)
            slope = lambda z: known.to(z.dtype)  # noqa: E731
    return _every_gradient(saved, slope, dy, x, *others)[: 4 if has_residual else 3]


def _are_where_they_were(ctx: Any, x: Tensor, residual: Tensor | None) -> bool:
    address = None if residual is None else residual.data_ptr()
    return bool(x.data_ptr() == ctx.statistics.address and address == ctx.residual_address)
