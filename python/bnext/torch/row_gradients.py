"""Layer and RMS normalization as autograd functions over the kernels: calls that run eagerly.

As in `gradients`: x and weight go through `save_for_backward`; gradients that are not plain are
made of PyTorch's own operations, and so are gradients of gradients.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnext import _core
from bnext.row_norms import backward_of_rows, forward_of_rows
from bnext.torch import formulas
from bnext.torch.kernels import KernelRefusal, has_memory, widened, work_together
from bnext.torch.recording import Gradients, gradients_of, is_recorded

__all__ = ["RowForm", "backward_by_formulas", "backward_by_kernels", "forward_by_kernels",
           "norm_of_rows"]  # fmt: skip


class RowForm(NamedTuple):
    """What a call is, besides its tensors."""

    shape: Any  # normalized
    eps: Any
    centered: bool


def norm_of_rows(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: Any, centered: bool
) -> Tensor:
    """Normalize plain tensors by the kernels; KernelRefusal if they do not take them."""
    if not is_recorded(x, weight, bias):
        return forward_by_kernels(x, weight, bias, RowForm(shape, eps, centered))[0]
    y: Tensor = _record(x, weight, bias, RowForm(shape, eps, centered))
    return y


def forward_by_kernels(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: RowForm
) -> tuple[Tensor, Any]:
    """Give y, and what backward needs; KernelRefusal for tensors that kernels do not take."""
    try:
        result: tuple[Tensor, Any] = forward_of_rows(
            x, form.shape, weight, bias, form.eps, None, form.centered, True
        )
        return result
    except (TypeError, ValueError):
        if x.device.type != "cpu" or not work_together(x, weight, bias) or not has_memory(x):
            raise KernelRefusal from None
    try:  # in C order, with parameters of the dtype that kernels take
        result = forward_of_rows(
            _dense(x), form.shape, _dense(widened(x, weight)), _dense(widened(x, bias)), form.eps,
            None, form.centered, True,
        )  # fmt: skip
    except (TypeError, ValueError) as refusal:
        raise KernelRefusal(str(refusal)) from refusal
    return result


def backward_by_kernels(
    dy: Tensor, x: Tensor, weight: Tensor | None, saved: Any, wants_parameters: bool = True
) -> Gradients:
    """Give the gradients by what forward left."""
    centered = saved.centered
    try:
        result: Gradients = backward_of_rows(
            dy, x, saved, weight, None, centered, True, wants_parameters
        )
    except TypeError:
        if not has_memory(dy) and not dy._is_zerotensor():
            raise
        result = backward_of_rows(
            _dense(dy.clone() if dy._is_zerotensor() else dy), x.detach(), saved,
            _dense(widened(x, weight)), None, centered, False, wants_parameters,
        )  # fmt: skip
    return result


def _dense(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    dense = tensor.detach().contiguous()
    return dense.clone() if dense.is_neg() else dense


class _Rows(torch.autograd.Function):
    """y of x, weight and bias."""

    # As `gradients` has it.
    setup_context = torch.autograd.Function.setup_context
    clear_saved_tensors_on_access = boxed_grads_call = False

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, form: RowForm
    ) -> Tensor:
        y, ctx.statistics = forward_by_kernels(x, weight, bias, form)
        # The kernels know the place of a dense x alone.
        ctx.address = x.data_ptr() if x.is_contiguous() else 0
        ctx.form = form
        ctx.to_save = x, weight
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        wants_parameters = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        work = partial(_by_kernels, ctx, wants_parameters)
        return gradients_of(ctx, dy, work, partial(backward_by_formulas, ctx.form))


_record: Any = super(torch.autograd.Function, _Rows).apply


def _by_kernels(
    ctx: Any, wants_parameters: bool, dy: Tensor, x: Tensor, weight: Tensor | None
) -> Gradients:
    if x.data_ptr() != ctx.address:
        # A copy in C order, or what hooks on saved tensors have made of x.
        x = x.detach().contiguous()
        rows = torch.from_numpy(ctx.statistics.rows)
        shape, _, centered = ctx.form
        saved = _core.rows_restored(x, rows, tuple(shape), ctx.statistics.eps, centered)
        ctx.statistics, ctx.address = saved, x.data_ptr()
    return backward_by_kernels(dy, x, weight, ctx.statistics, wants_parameters)


# --- by formulas ----------------------------------------------------------------------------------


def backward_by_formulas(form: RowForm, dy: Tensor, x: Tensor, weight: Tensor | None) -> Gradients:
    """Give the gradients in PyTorch's operations, which autograd can go through again."""
    count = len(tuple(form.shape))
    dims = list(range(x.dim() - count, x.dim()))
    leading = list(range(x.dim() - count))
    xs = formulas.wide(x)
    eps = form.eps
    if eps is None:
        eps = torch.finfo(xs.dtype).eps
    if form.centered:
        # About a pilot, which has no derivative: the mean of what is left is small.
        pilot = x.detach().mean(dims, keepdim=True, dtype=torch.float64)
        high = pilot.to(xs.dtype)
        xs = (xs - high) - (pilot - high.double()).to(xs.dtype)
        xs = xs - xs.mean(dims, keepdim=True)
    rstd = formulas.rstd_of((xs * xs).mean(dims, keepdim=True), eps)
    xhat = xs * rstd
    wide_dy = formulas.wide(dy)
    g = wide_dy if weight is None else wide_dy * formulas.wide(weight)
    dx = g - xhat * (g * xhat).mean(dims, keepdim=True)
    if form.centered:
        dx = dx - g.mean(dims, keepdim=True)
    dx = (rstd * dx).to(x.dtype)
    sums = (wide_dy * xhat, wide_dy)[: 2 if form.centered else 1]
    return dx, *(each.sum(leading) if leading else each for each in sums)
