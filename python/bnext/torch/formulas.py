"""The backward passes, and their derivatives, in PyTorch's own operations.

Autograd and functorch can go through these again, so they serve gradients of gradients
(``create_graph=True``) and gradients of many outputs at once. Kernels do the rest, first-order
gradients of a call with ``create_graph=True`` included. The backward pass is the one of
`bnext.batch_norm_backward` (Ioffe and Szegedy 2015, section 3), with mean and rstd as functions
of x. Of its derivative, with the projection P(v) = v - mean(v) - xhat * mean(v * xhat), only

    d(xhat) = rstd * P(dx),    d(rstd) = -rstd^2 * mean(xhat * dx)

is needed. Everything is centred before it is multiplied, so that no digits of the data's deviations
are lost to a large mean: x about a pilot, which is its mean in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "OfBackward", "Twice", "backward", "backward_constant", "backward_constant_twice",
    "backward_twice", "per_channel", "rstd_of",
]  # fmt: skip


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


def _dims(x: Tensor) -> list[int]:
    """Name the axes that a channel's statistics are over."""
    return [d for d in range(x.dim()) if d != 1]


def _about(x: Tensor, mean: Tensor) -> Tensor:
    """``x - mean`` to the precision of x, for a mean in float64 that broadcasts against it."""
    high = mean.to(x.dtype)
    return (x - high) - (mean - high.double()).to(x.dtype)


def _centred(values: Tensor, dims: list[int]) -> Tensor:
    return values - values.mean(dims, keepdim=True)


class _Normalized(NamedTuple):
    """x normalized by its own statistics, as functions of x."""

    dims: list[int]
    xhat: Tensor
    rstd: Tensor

    def part_along(self, centred: Tensor) -> Tensor:
        """Find how much of xhat is in values whose mean is 0."""
        return (centred * self.xhat).mean(self.dims, keepdim=True)


def _normalized(x: Tensor, eps: float) -> _Normalized:
    dims = _dims(x)
    pilot = x.detach().mean(dims, keepdim=True, dtype=torch.float64)
    # The mean of what is left is small, and makes the derivatives right: the pilot has none.
    centred = _centred(_about(wide(x), pilot), dims)
    rstd = rstd_of((centred * centred).mean(dims, keepdim=True), eps)
    return _Normalized(dims, centred * rstd, rstd)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias where the statistics are the batch's."""
    by = _normalized(x, eps)
    g = wide(dy)
    centred = _centred(g, by.dims)
    dx = by.rstd * (centred - by.xhat * by.part_along(centred))
    if weight is not None:
        dx = dx * per_channel(wide(weight), x)
    return dx.to(x.dtype), (centred * by.xhat).sum(by.dims), g.sum(by.dims)


def backward_constant(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias where the statistics are constants."""
    dims = _dims(x)
    g = wide(dy)
    xhat, rstd = _normalized_by(x, mean, var, eps)
    dx = g * rstd if weight is None else g * rstd * per_channel(wide(weight), x)
    return dx.to(x.dtype), (g * xhat).sum(dims), g.sum(dims)


def _normalized_by(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Give xhat and rstd by statistics of shape (C,), which are constants."""
    xs = wide(x)
    rstd = per_channel(rstd_of(var.double(), eps), x).to(xs.dtype)
    return _about(xs, per_channel(mean.double(), x)) * rstd, rstd


# --- derivatives of the backward passes -----------------------------------------------------------


class OfBackward(NamedTuple):
    """Gradients of what a backward pass gives; None where there is none."""

    dx: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None


class Twice(NamedTuple):
    """Gradients of dy, x and weight, through a backward pass."""

    dy: Tensor
    x: Tensor
    weight: Tensor


def backward_twice(
    of: OfBackward,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
) -> Twice:
    """Differentiate `backward`.

    With u the gradient of dx, A = mean(u * xhat), B = mean(dy * xhat) and C = sum(u * P(dy)):

        of dy      rstd * weight * P(u) + of_dweight * xhat + of_dbias
        of weight  rstd * C
        of x       rstd * of_dweight * P(dy)
                   - rstd^2 * weight * (B * P(u) + A * P(dy) + C / count * xhat)
    """
    by = _normalized(x, eps)
    xhat, rstd = by.xhat, by.rstd
    centred = _centred(wide(dy), by.dims)
    b = by.part_along(centred)
    projected = centred - xhat * b
    of_g, of_xs, of_weight = (torch.zeros_like(values) for values in (xhat, xhat, rstd))
    if of.dx is not None:
        scale = rstd if weight is None else rstd * per_channel(wide(weight), x)
        u = _centred(wide(of.dx), by.dims)
        a = by.part_along(u)
        of_u = u - xhat * a
        c = (u * projected).sum(by.dims, keepdim=True, dtype=torch.float64)
        count = math.prod(x.shape[d] for d in by.dims)
        of_g = scale * of_u
        share = (c / count).to(xhat.dtype)
        of_xs = -rstd * scale * (b * of_u + a * projected + share * xhat)
        of_weight = (rstd * c).to(xhat.dtype)
    if of.dweight is not None:
        factor = per_channel(wide(of.dweight), x)
        of_g = of_g + factor * xhat
        of_xs = of_xs + rstd * factor * projected
    if of.dbias is not None:
        of_g = of_g + per_channel(wide(of.dbias), x)
    return Twice(of_g.to(dy.dtype), of_xs.to(x.dtype), of_weight.reshape(-1))


def backward_constant_twice(
    of: OfBackward,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor | None,
) -> Twice:
    """Differentiate `backward_constant`, which is linear in everything but rstd."""
    dims = _dims(x)
    g = wide(dy)
    xhat, rstd = _normalized_by(x, mean, var, eps)
    of_g, of_xs = torch.zeros_like(xhat), torch.zeros_like(xhat)
    of_weight = torch.zeros_like(rstd)
    if of.dx is not None:
        scale = rstd if weight is None else rstd * per_channel(wide(weight), x)
        u = wide(of.dx)
        of_g = u * scale
        of_weight = (u * g).sum(dims, keepdim=True, dtype=torch.float64) * rstd
        of_weight = of_weight.to(xhat.dtype)
    if of.dweight is not None:
        factor = per_channel(wide(of.dweight), x)
        of_g = of_g + factor * xhat
        of_xs = factor * rstd * g
    if of.dbias is not None:
        of_g = of_g + per_channel(wide(of.dbias), x)
    return Twice(of_g.to(dy.dtype), of_xs.to(x.dtype), of_weight.reshape(-1))
