"""Group and instance normalization for autograd: eager calls, registered operators, formulas.

``bnext::group_norm_training``   x, weight, bias, num_groups, eps -> y, statistics
``bnext::group_norm_backward``   dy, x, weight, statistics, eps -> dx, dweight, dbias

Both are composites, like the operators of `bnext.torch.operators`: they record for autograd, and
leave the work to ``bnext::forward_by_groups`` and ``bnext::backward_by_groups``. `statistics` has
the rows of `bnext.rows`, of shape (5, N, G), in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnext.arrays import DeviceSaved
from bnext.rows import Statistics
from bnext.torch import cell_kernels, formulas
from bnext.torch.epilogues import Epilogue, derivative
from bnext.torch.operators import _fake_vectors, _like
from bnext.torch.recording import gradients_of, is_recorded
from bnext.torch.registration import define_recorded, work_of

__all__ = ["backward", "cell_norm"]

Gradients = tuple[Tensor | None, ...]


def cell_norm(
    x: Tensor, num_groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    epilogue: Epilogue | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Normalize plain tensors by the kernels; KernelRefusal if they do not take them.

    The residual of the epilogue has the shape and the dtype of x. Give y, and the statistics.
    """
    residual = None if epilogue is None else epilogue.residual
    if is_recorded(x, weight, bias, residual):
        kept: list[Any] = []
        y: Tensor = _record(x, weight, bias, residual, (num_groups, eps, kept, epilogue))
        return y, kept[0]
    return cell_kernels.forward(x, num_groups, weight, bias, eps, epilogue)


class _CellNorm(torch.autograd.Function):
    """y of x, weight, bias and the residual, or None."""

    # As in `bnext.torch.gradients`.
    setup_context = torch.autograd.Function.setup_context
    clear_saved_tensors_on_access = boxed_grads_call = False

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        others: Any,
    ) -> Tensor:  # fmt: skip
        num_groups, eps, kept, epilogue = others
        y, ctx.statistics = cell_kernels.forward(x, num_groups, weight, bias, eps, epilogue)
        kept.append(ctx.statistics)
        ctx.epilogue = epilogue and epilogue._replace(residual=None)
        ctx.to_save = x, weight
        if epilogue is not None:
            read = residual if ctx.statistics.reads_residual else None
            ctx.address = _address_of(read)
            ctx.to_save = x, weight, bias, read
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        slope = None
        if ctx.epilogue is not None and ctx.epilogue.activation is not None:
            slope = derivative(ctx.epilogue.activation, ctx.epilogue.negative_slope)
        saved = ctx.statistics
        formula: Any = _by_formulas if saved.residual else backward
        again = partial(formula, groups=saved.num_groups, eps=saved.eps, slope=slope)
        return gradients_of(ctx, dy, partial(_by_kernels, ctx), again)


_record: Any = super(torch.autograd.Function, _CellNorm).apply


def _address_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _by_kernels(
    ctx: Any, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Gradients:  # fmt: skip
    saved = ctx.statistics
    try:
        return cell_kernels.backward(dy, x, saved, weight, residual)
    except ValueError:
        # It has changed, by ways that autograd does not see; or the error is another.
        same = residual is None or _address_of(residual) == ctx.address
        if isinstance(saved, DeviceSaved) or (x.data_ptr() == saved.address and same):
            raise
    # What hooks have made of x, or of the residual, may be close to it, and not the same.
    rows = cell_kernels.rows_of(saved)
    epilogue = ctx.epilogue and ctx.epilogue._replace(residual=residual)
    ctx.statistics = cell_kernels.restored(x, rows, saved.eps, weight, bias, epilogue)
    if residual is not None:
        ctx.address = residual.data_ptr()
    return _by_kernels(ctx, dy, x, weight, bias, residual)


# --- formulas -------------------------------------------------------------------------------------


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None = None,
    residual: Tensor | None = None, *, groups: int, eps: float, slope: formulas.Slope | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give dx, dweight and dbias in PyTorch's own operations, which can be differentiated again."""
    dx, dweight, dbias, _ = _by_formulas(
        dy, x, weight, bias, residual, groups=groups, eps=eps, slope=slope
    )
    return dx, dweight, dbias


def _by_formulas(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None = None,
    residual: Tensor | None = None, *, groups: int, eps: float, slope: formulas.Slope | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Do `backward`, and give dresidual.

    `slope` is the derivative of an activation that followed, and `bias` and `residual` are for its
    argument. With
    ``g = dy * weight`` and E the mean over the values of a group of an example,
    ``dx = rstd * (g - E[g] - xhat * E[g * xhat])``.
    """
    dims = [d for d in range(x.dim()) if d != 1]

    def slabs(values: Tensor) -> Tensor:
        return values.reshape(x.size(0), groups, -1)

    xs = slabs(formulas.wide(x))
    pilot = xs.detach().mean(2, keepdim=True, dtype=torch.float64)
    xs = formulas._centred(formulas.about(xs, pilot), [2])
    rstd = formulas.rstd_of((xs * xs).mean(2, keepdim=True), eps)
    xhat = xs * rstd
    wide = formulas.before_activation(dy, xhat.reshape(x.shape), weight, bias, residual, slope)
    g = wide
    if weight is not None:  # the derivative by weight is then a sum in float64
        g = (g.double() * formulas.per_channel(weight.double(), x)).to(g.dtype)
    centred = formulas._centred(slabs(g), [2])
    dx = rstd * (centred - xhat * (centred * xhat).mean(2, keepdim=True))
    dweight = (wide * xhat.reshape(x.shape)).sum(dims)
    return dx.reshape(x.shape).to(x.dtype), dweight, wide.sum(dims), wide.to(x.dtype)


# --- operators ------------------------------------------------------------------------------------


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    y, saved = cell_kernels.forward(x, num_groups, weight, bias, eps)
    return y, cell_kernels.rows_of(saved)


def _fake_forward(
    x: Tensor, weight: Any, bias: Any, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    shape = (len(Statistics._fields), x.size(0), num_groups)
    return _like(x), x.new_empty(shape, dtype=torch.float64)


def _fake_backward(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _fake_vectors(x), _fake_vectors(x)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        y, statistics = work_of("forward_by_groups")(x, weight, bias, num_groups, eps)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps = eps
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Gradients:
        if dy is None:
            return (None,) * 5
        gradients = torch.ops.bnext.group_norm_backward(dy, *ctx.saved_tensors, ctx.eps)
        wanted = zip(gradients, ctx.needs_input_grad[:3], strict=True)
        return *(gradient if wants else None for gradient, wants in wanted), None, None


def _backward_recorded(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, eps: float
) -> Any:
    work = partial(work_of("backward_by_groups"), statistics=statistics, eps=eps)
    again = partial(backward, groups=statistics.size(2), eps=eps)
    return formulas.Backward.apply(work, again, dy, x, weight)


def _forward_by_formulas(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    y = torch.nn.functional.group_norm(x, num_groups, weight, bias, eps)
    slabs = x.detach().double().reshape(x.size(0), num_groups, -1)
    var, mean = torch.var_mean(slabs, 2, correction=0)
    m2, rstd = var * slabs.size(2), formulas.rstd_of(var, eps)
    return y, torch.stack(Statistics(mean, m2, var, rstd, torch.zeros_like(mean)))


def _backward_by_formulas(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, eps: float
) -> Gradients:
    return backward(dy, x, weight, groups=statistics.size(2), eps=eps)[:3]


_OF_FORWARD = (
    "(Tensor x, Tensor? weight, Tensor? bias, SymInt num_groups, float eps) -> (Tensor, Tensor)"
)
_OF_BACKWARD = (
    "(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)
define_recorded(
    "group_norm_training", "forward_by_groups", _OF_FORWARD, lambda *given: _Forward.apply(*given),
    _forward, _fake_forward, _forward_by_formulas,
)  # fmt: skip
define_recorded(
    "group_norm_backward", "backward_by_groups", _OF_BACKWARD, _backward_recorded,
    cell_kernels.backward_by_rows, _fake_backward, _backward_by_formulas,
)  # fmt: skip
