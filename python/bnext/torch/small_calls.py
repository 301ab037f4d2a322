"""Small calls in PyTorch's operations, of which a compiler makes loops.

The compiler's code calls an operator of bnext's by PyTorch's dispatcher and Python, which for a few
thousand values takes several times as long as the kernels. These operations need no such call, and
are exact as the kernels are: sums in float64, of values about a mean with a high and a low part.
Their bits are the compiler's, which may add in another order for another number of threads.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnext.torch import compilers, formulas
from bnext.torch.epilogues import Epilogue, applied
from bnext.torch.formats import format_of
from bnext.torch.formulas import about, channel_dims, per_channel, rstd_of, wide

__all__ = ["LEAST_VALUES", "is_small", "normalize"]

# Calls of fewer values are small: loops read them from caches, two or three times.
LEAST_VALUES = 256 * 1024


def is_small(x: Tensor) -> bool:
    """Whether a traced x is small in every run of its graph; float64 is for kernels, more exact."""
    values = x.numel()
    return isinstance(values, int) and 0 < values < LEAST_VALUES and x.dtype != torch.float64


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, epilogue: Epilogue | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give y, and the batch's mean and sum of squared deviations in float64, shape (C,)."""
    y, mean, m2 = _Small.apply(x, weight, bias, eps)
    if epilogue is not None:  # autograd keeps what it gives, as the next layer does
        y = applied(y, epilogue)
    return y.to(x.dtype).contiguous(memory_format=format_of(x)), mean, m2


class _Small(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give y in the dtype that it is computed in, mean and m2."""
        dims, count = channel_dims(x), _count(x)
        xs = wide(x)
        mean = xs.sum(dims, dtype=torch.float64) / count
        centred = about(xs, per_channel(mean, x))
        m2 = centred.double().square().sum(dims)  # in float32 a square may be too large
        rstd = rstd_of(m2 / count, eps)
        scale = _kept(rstd if weight is None else rstd * weight.double(), xs)
        y = centred * per_channel(scale, x)
        if bias is not None:
            y = y + per_channel(wide(bias), x)
        ctx.mark_non_differentiable(mean, m2)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        return y, mean, m2

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 4
        x, weight, mean, rstd = ctx.saved_tensors
        work = partial(_backward, mean=mean, rstd=rstd)
        again = partial(formulas.backward, eps=ctx.eps)
        gradients = formulas.Backward.apply(work, again, dy, x, weight)
        wanted = zip(gradients, ctx.needs_input_grad[:3], strict=True)
        return *(gradient if wants else None for gradient, wants in wanted), None


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, *, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias."""
    dims, count = channel_dims(x), _count(x)
    xs = wide(x)
    xhat = about(xs, per_channel(mean, x)) * per_channel(_kept(rstd, xs), x)
    g = wide(dy)
    dbias = compilers.keep_layout(g.sum(dims, dtype=torch.float64), x)
    dweight = (g * xhat).sum(dims, dtype=torch.float64)
    of_mean, of_xhat = (per_channel(_kept(each / count, xs), x) for each in (dbias, dweight))
    scale = _kept(rstd if weight is None else rstd * weight.double(), xs)
    dx = (g - of_mean - xhat * of_xhat) * per_channel(scale, x)
    return dx.to(x.dtype), dweight.to(xs.dtype), dbias.to(xs.dtype)


def _kept(values: Tensor, xs: Tensor) -> Tensor:
    """Round what channels have to the dtype of `xs`, and have it computed once for each channel.

    Inductor computes operations of a loop's operands in the loop: a square root for each value of
    x took longer than all that is done to it. It does not where the operands have to be in memory,
    which a view by strides says, at no cost.
    """
    rounded = values.to(xs.dtype)
    return rounded.as_strided(rounded.shape, rounded.stride())


def _count(x: Tensor) -> int:
    return math.prod(x.shape) // x.shape[1]
