"""The passes of layer and RMS normalization as registered operators, for torch.compile and modes.

``bnext::rows_norm``           x, normalized_shape, weight, bias, eps, centered -> y, statistics
``bnext::rows_norm_backward``  dy, x, weight, statistics, normalized_shape, eps, centered
                               -> dx, dweight, dbias

`statistics` has the rows mean, mean_low and rstd, one value for each row of x, in float64. `dbias`
is empty where rows are not centered. Both are composites, like the others of `operators`: they
record for autograd, and leave the work to ``bnext::forward_by_rows`` and
``bnext::backward_by_rows``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bnext import _core
from bnext.torch import formulas
from bnext.torch.kernels import widened
from bnext.torch.registration import define_recorded, work_of
from bnext.torch.row_gradients import (
    RowForm,
    backward_by_formulas,
    backward_by_kernels,
    forward_by_kernels,
)

__all__ = ["norm_of_rows"]

Shape = list[int]


def norm_of_rows(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: Any, centered: bool
) -> Tensor:
    """Normalize rows in a way that can be traced."""
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    weight, bias = widened(x, weight), widened(x, bias)
    ours: Any = torch.ops.bnext
    y: Tensor = ours.rows_norm(x, list(shape), weight, bias, eps, centered)[0]
    return y


def _forward(
    x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> tuple[Tensor, Tensor]:
    form = RowForm(tuple(shape), eps, centered)
    y, saved = forward_by_kernels(x.detach(), weight, bias, form)
    return y, torch.from_numpy(saved.rows)


def _fake_forward(x: Tensor, shape: Shape, *_: Any) -> tuple[Tensor, Tensor]:
    leading = x.shape[: x.dim() - len(shape)]
    rows = x.new_empty((3, math.prod(leading)), dtype=torch.float64)
    return torch.empty_like(x, memory_format=torch.contiguous_format), rows


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, shape: Shape, eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = x.detach().contiguous()
    saved = _core.rows_restored(x, statistics.detach(), tuple(shape), eps, centered)
    dx, dweight, *rest = backward_by_kernels(dy.detach().contiguous(), x, weight, saved)
    return dx, dweight, rest[0] if rest else dweight.new_empty(0)


def _fake_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, shape: Shape, eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    dweight = x.new_empty(shape, dtype=dtype)
    dbias = x.new_empty(shape if centered else [0], dtype=dtype)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dweight, dbias


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float,
        centered: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        y, statistics = work_of("forward_by_rows")(x, shape, weight, bias, eps, centered)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, statistics)
        ctx.form = shape, eps, centered
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        dx, dweight, dbias = torch.ops.bnext.rows_norm_backward(dy, *ctx.saved_tensors, *ctx.form)
        wants_x, _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        return (
            dx if wants_x else None, None, dweight if wants_weight else None,
            dbias if wants_bias else None, None, None,
        )  # fmt: skip


def _backward_recorded(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, shape: Shape, eps: float,
    centered: bool,
) -> Any:  # fmt: skip
    operator = work_of("backward_by_rows")

    def work(dy: Tensor, x: Tensor, weight: Tensor | None) -> Any:
        return operator(dy, x, weight, statistics, shape, eps, centered)

    def again(dy: Tensor, x: Tensor, weight: Tensor | None) -> Any:
        return _backward_by_formulas(dy, x, weight, statistics, shape, eps, centered)

    return formulas.Backward.apply(work, again, dy, x, weight)


def _forward_by_formulas(
    x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> tuple[Tensor, Tensor]:
    if centered:
        y = torch.nn.functional.layer_norm(x, shape, weight, bias, eps)
    else:
        y = torch.nn.functional.rms_norm(x, shape, weight, eps)
    rows = x.detach().double().reshape(-1, math.prod(shape))
    mean = rows.mean(1) if centered else torch.zeros_like(rows[:, 0])
    rstd = formulas.rstd_of((rows - mean[:, None]).square().mean(1), eps)
    return y, torch.stack([mean, torch.zeros_like(mean), rstd])


def _backward_by_formulas(
    dy: Tensor, x: Tensor, weight: Tensor | None, _: Tensor, shape: Shape, eps: float,
    centered: bool,
) -> Any:  # fmt: skip
    found = backward_by_formulas(RowForm(shape, eps, centered), dy, x, weight)
    return found if centered else (*found, found[1].new_empty(0))


_OF_FORWARD = (
    "(Tensor x, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps, bool centered) "
    "-> (Tensor, Tensor)"
)
_OF_BACKWARD = (
    "(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, SymInt[] normalized_shape, "
    "float eps, bool centered) -> (Tensor, Tensor, Tensor)"
)

define_recorded(
    "rows_norm", "forward_by_rows", _OF_FORWARD, lambda *given: _Rows.apply(*given),
    _forward, _fake_forward, _forward_by_formulas,
)  # fmt: skip
define_recorded(
    "rows_norm_backward", "backward_by_rows", _OF_BACKWARD, _backward_recorded,
    _backward, _fake_backward, _backward_by_formulas,
)  # fmt: skip
