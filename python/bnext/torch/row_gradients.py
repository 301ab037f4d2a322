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
from bnext.arrays import DeviceRowSaved, engine_of
from bnext.groups.group import ALONE
from bnext.row_passes import backward_of_rows, forward_of_rows
from bnext.torch import formulas
from bnext.torch.epilogues import Epilogue, derivative
from bnext.torch.kernels import KernelRefusal, calls_on, has_memory, widened, work_together
from bnext.torch.recording import Gradients, gradients_of, is_recorded

__all__ = [
    "RowForm", "backward_by_formulas", "backward_by_kernels", "forward_by_kernels", "norm_of_rows",
]  # fmt: skip


class RowForm(NamedTuple):
    """What a call is, besides its tensors."""

    shape: Any  # normalized
    eps: Any
    centered: bool
    activation: str | None = None
    negative_slope: float = 0.01
    adds: bool = False  # a residual


def norm_of_rows(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: Any, centered: bool,
    epilogue: Epilogue | None = None,
) -> Tensor:  # fmt: skip
    """Normalize plain tensors by the kernels; KernelRefusal if they do not take them."""
    if epilogue is None:
        if not is_recorded(x, weight, bias):
            return forward_by_kernels(x, weight, bias, RowForm(shape, eps, centered))[0]
        y: Tensor = _record(x, weight, bias, RowForm(shape, eps, centered))
        return y
    residual, activation, slope = epilogue
    form = RowForm(shape, eps, centered, activation, slope, residual is not None)
    if not is_recorded(x, weight, bias, residual):
        return forward_by_kernels(x, weight, bias, form, residual)[0]
    y = _record_activated(x, weight, bias, residual, form)
    return y


def forward_by_kernels(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, form: RowForm,
    residual: Tensor | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Give y, and what backward needs; KernelRefusal for tensors that kernels do not take."""
    engine = calls_on(x) if x.is_cuda else _core
    try:
        result: tuple[Tensor, Any] = forward_of_rows(
            x, form.shape, weight, bias, form.eps, None, form.centered, True,
            _epilogue(form, residual), ALONE, engine,
        )  # fmt: skip
        return result
    except (TypeError, ValueError):
        if not work_together(x, weight, bias) or not has_memory(x):
            raise KernelRefusal from None
    try:  # in C order, with parameters of the dtype that kernels take
        result = forward_of_rows(
            _dense(x), form.shape, _dense(widened(x, weight)), _dense(widened(x, bias)), form.eps,
            None, form.centered, True, _epilogue(form, _dense(residual)), ALONE, engine,
        )  # fmt: skip
    except (TypeError, ValueError) as refusal:
        raise KernelRefusal(str(refusal)) from refusal
    return result


def _epilogue(form: RowForm, residual: Any) -> Any:
    if form.activation is None and not form.adds:
        return None
    return residual, form.activation, form.negative_slope


def backward_by_kernels(
    dy: Tensor, x: Tensor, weight: Tensor | None, saved: Any, wants_parameters: bool = True,
    residual: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """Give the gradients by what forward left."""
    centered = saved.centered
    try:
        result: Gradients = backward_of_rows(
            dy, x, saved, weight, None, centered, True, wants_parameters, residual,
            calls_on(x) if x.is_cuda else _core,
        )  # fmt: skip
    except TypeError:
        if not has_memory(dy) and not dy._is_zerotensor():
            raise
        result = backward_of_rows(
            _dense(dy.clone() if dy._is_zerotensor() else dy), x.detach(), saved,
            _dense(widened(x, weight)), None, centered, False, wants_parameters, _dense(residual),
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
        ctx.statistics, ctx.address = restored(ctx, x, ctx.form), x.data_ptr()
    return backward_by_kernels(dy, x, weight, ctx.statistics, wants_parameters)


def restored(ctx: Any, x: Tensor, form: RowForm, *tensors: Any) -> Any:
    """Make what forward left again, for an x that lies elsewhere."""
    rows = ctx.statistics.rows
    is_there = isinstance(ctx.statistics, DeviceRowSaved)
    rows = rows.flatten(1) if is_there else torch.from_numpy(rows)
    return restored_of(x, rows, form, ctx.statistics.eps, *tensors)


def restored_of(
    x: Tensor, rows: Tensor, form: RowForm, eps: float, weight: Tensor | None = None,
    bias: Tensor | None = None, residual: Tensor | None = None,
) -> Any:  # fmt: skip
    """Make what forward left of its statistics; and of the parameters before an activation."""
    epilogue = _epilogue(form, _dense(residual))
    parameters = (None, None)
    if form.activation is not None:
        parameters = _dense(widened(x, weight)), _dense(widened(x, bias))
    return engine_of(x).rows_restored(
        x, rows, tuple(form.shape), eps, form.centered, *parameters, epilogue
    )


class _ActivatedRows(torch.autograd.Function):
    """y of x, weight, bias and the residual, or None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        form: RowForm,
    ) -> Tensor:  # fmt: skip
        y, saved = forward_by_kernels(x, weight, bias, form, residual)
        kept = residual if saved.reads_residual else None
        ctx.statistics, ctx.form = saved, form
        ctx.addresses = _addresses(x, kept)
        of_z = bias if form.activation is not None else None
        ctx.save_for_backward(x, weight, of_z, kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        wants_parameters = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        work = partial(_activated_by_kernels, ctx, wants_parameters)
        return gradients_of(ctx, dy, work, partial(activated_by_formulas, ctx.form))


_record_activated: Any = super(torch.autograd.Function, _ActivatedRows).apply


def _addresses(*tensors: Tensor | None) -> list[int]:
    """Places that the kernels know; 0 for a tensor of which they have read a copy."""
    return [0 if t is None or not t.is_contiguous() else t.data_ptr() for t in tensors]


def _activated_by_kernels(
    ctx: Any, wants_parameters: bool, dy: Tensor, x: Tensor, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None,
) -> Gradients:  # fmt: skip
    if _addresses(x, residual) != ctx.addresses or not x.is_contiguous():
        x, residual = x.detach().contiguous(), _dense(residual)
        ctx.statistics = restored(ctx, x, ctx.form, weight, bias, residual)
        ctx.addresses = _addresses(x, residual)
    dx, dweight, *others = backward_by_kernels(
        dy, x, weight, ctx.statistics, wants_parameters, residual
    )
    return (dx, dweight, *others) if ctx.form.centered else (dx, dweight, None, *others)


# --- by formulas ----------------------------------------------------------------------------------


def backward_by_formulas(form: RowForm, dy: Tensor, x: Tensor, weight: Tensor | None) -> Gradients:
    """Give the gradients in PyTorch's operations, which autograd can go through again."""
    dx, dweight, dbias, _ = activated_by_formulas(form, dy, x, weight, None, None)
    return (dx, dweight, dbias) if form.centered else (dx, dweight)


def activated_by_formulas(
    form: RowForm, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None,
) -> Gradients:  # fmt: skip
    """Do so behind an activation: dx, dweight, dbias where rows are centered, and dresidual."""
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
    if form.activation is not None:
        z = xhat if weight is None else xhat * formulas.wide(weight)
        z = z if bias is None else z + formulas.wide(bias)
        z = z if residual is None else z + formulas.wide(residual)
        wide_dy = wide_dy * derivative(form.activation, form.negative_slope)(z)
    g = wide_dy if weight is None else wide_dy * formulas.wide(weight)
    dx = g - xhat * (g * xhat).mean(dims, keepdim=True)
    if form.centered:
        dx = dx - g.mean(dims, keepdim=True)
    dx = (rstd * dx).to(x.dtype)
    dweight = wide_dy * xhat
    dbias = wide_dy if form.centered else None
    if leading:
        dweight = dweight.sum(leading)
        dbias = None if dbias is None else dbias.sum(leading)
    return dx, dweight, dbias, wide_dy.to(x.dtype) if form.adds else None
