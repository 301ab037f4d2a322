"""The backward passes written in PyTorch's own operations, which autograd can go through again.

Used where gradients of gradients are wanted (``create_graph=True``), which is seldom: kernels do
the rest. The formulas are those of `bnext.batch_norm_backward` (Ioffe and Szegedy 2015, section 3),
with mean and rstd as functions of x.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["backward", "backward_constant", "per_channel", "rstd_of"]


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Shape a vector of channels so that it broadcasts against x."""
    return values.reshape(1, -1, *(1,) * (x.dim() - 2))


def rstd_of(var: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(var + eps)``, and 0 where both are 0."""
    shifted = var + eps
    return torch.where(shifted == 0, torch.zeros_like(shifted), shifted.rsqrt())


def wide(tensor: Tensor) -> Tensor:
    """In the precision that is computed in: float32, or float64 for that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias where the statistics are the batch's."""
    dims = [d for d in range(x.dim()) if d != 1]
    g, xs = wide(dy), wide(x)
    centred = xs - xs.mean(dims, keepdim=True)
    rstd = rstd_of((centred * centred).mean(dims, keepdim=True), eps)
    xhat = centred * rstd
    scaled = g if weight is None else g * per_channel(wide(weight), x)
    inner = scaled - scaled.mean(dims, keepdim=True)
    dx = rstd * (inner - xhat * (scaled * xhat).mean(dims, keepdim=True))
    return dx.to(x.dtype), (g * xhat).sum(dims), g.sum(dims)


def backward_constant(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Likewise where they are constants."""
    dims = [d for d in range(x.dim()) if d != 1]
    g, xs = wide(dy), wide(x)
    rstd = per_channel(rstd_of(wide(var), eps), x)
    dx = g * rstd if weight is None else g * rstd * per_channel(wide(weight), x)
    xhat = (xs - per_channel(wide(mean), x)) * rstd
    return dx.to(x.dtype), (g * xhat).sum(dims), g.sum(dims)
