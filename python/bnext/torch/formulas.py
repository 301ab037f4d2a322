"""The backward passes, and their derivatives, in PyTorch's own operations.

Autograd and functorch can go through these again, so they serve derivatives of gradients
(``create_graph=True``) that no kernel has, and gradients of many outputs at once. Kernels do the
rest: first-order gradients of a call with ``create_graph=True``, and on the CPU the second. The
backward pass is the one of `bnext.batch_norm_backward` (Ioffe and Szegedy 2015, section 3), with
mean and rstd as functions of x; autograd differentiates it once more. Everything is centred before
it is multiplied, so that no digits of the data's deviations are lost to a large mean: x about a
pilot, which is its mean in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bnext.torch.context import is_plain, is_plain_or_none

__all__ = [
    "Backward", "about", "backward", "backward_constant", "before_activation", "channel_dims",
    "per_channel", "rstd_of", "wide",
]  # fmt: skip

Pass = Callable[..., tuple[Any, ...]]
Slope = Callable[[Tensor], Tensor]  # act'(z) of z


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


def channel_dims(x: Tensor) -> list[int]:
    """Name the axes that a channel's statistics are over."""
    return [d for d in range(x.dim()) if d != 1]


def about(x: Tensor, mean: Tensor) -> Tensor:
    """``x - mean`` to the precision of x, for a mean in float64 that broadcasts against it."""
    high = mean.to(x.dtype)
    return (x - high) - (mean - high.double()).to(x.dtype)


def _weighted(dx: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    """``dx * weight`` in the dtype of x; the derivative by weight is then a sum in float64."""
    if weight is not None:
        dx = dx.double() * per_channel(weight.double(), x)
    return dx.to(x.dtype)


def _centred(values: Tensor, dims: list[int]) -> Tensor:
    return values - values.mean(dims, keepdim=True)


def before_activation(
    dy: Tensor, xhat: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    slope: Slope | None,
) -> Tensor:  # fmt: skip
    """Give the gradient by z, ``dy * act'(z)``, where z = xhat * weight + bias + residual."""
    g = wide(dy)
    if slope is None:
        return g
    z = xhat
    if weight is not None:
        z = z * per_channel(wide(weight), xhat)
    if bias is not None:
        z = z + per_channel(wide(bias), xhat)
    if residual is not None:
        z = z + wide(residual)
    return g * slope(z)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None = None,
    residual: Tensor | None = None, *, eps: float, slope: Slope | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Give dx, dweight, dbias and dresidual where the statistics are the batch's."""
    dims = channel_dims(x)
    pilot = x.detach().mean(dims, keepdim=True, dtype=torch.float64)
    # The mean of what is left is small, and makes the derivatives right: the pilot has none.
    xs = _centred(about(wide(x), pilot), dims)
    rstd = rstd_of((xs * xs).mean(dims, keepdim=True), eps)
    xhat = xs * rstd
    g = before_activation(dy, xhat, weight, bias, residual, slope)
    centred = _centred(g, dims)
    dx = rstd * (centred - xhat * (centred * xhat).mean(dims, keepdim=True))
    return _weighted(dx, weight, x), (centred * xhat).sum(dims), g.sum(dims), g.to(x.dtype)


def backward_constant(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None = None,
    residual: Tensor | None = None, *, mean: Tensor, var: Tensor, eps: float,
    slope: Slope | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Give dx, dweight, dbias and dresidual where the statistics are constants."""
    dims = channel_dims(x)
    xs = wide(x)
    rstd = per_channel(rstd_of(var.double(), eps), x).to(xs.dtype)
    xhat = about(xs, per_channel(mean.double(), x)) * rstd
    g = before_activation(dy, xhat, weight, bias, residual, slope)
    return _weighted(g * rstd, weight, x), (g * xhat).sum(dims), g.sum(dims), g.to(x.dtype)


class Backward(torch.autograd.Function):
    """Gradients of `inputs` (dy, x, weight, ...) by `work`, differentiated by formulas, `again`.

    Where `again` has a method `twice`, kernels differentiate it: of the inputs, the gradients of
    its results, and which inputs' gradients are wanted, it gives these; None where they cannot.
    """

    @staticmethod
    def forward(ctx: Any, work: Pass, again: Pass, *inputs: Tensor | None) -> tuple[Any, ...]:
        """Do the work."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.again = again
        return work(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Differentiate the formulas."""
        inputs = ctx.saved_tensors
        twice = getattr(ctx.again, "twice", None)
        found = None
        if twice is not None and is_plain(inputs[0]) and all(map(is_plain_or_none, gradients)):
            wanted = ctx.needs_input_grad[2:]
            if torch.is_grad_enabled():
                found = _differentiable(ctx.again, inputs, gradients, wanted)
            else:
                found = twice(inputs, gradients, wanted)
        if found is None:
            found = _derivatives(ctx.again, inputs, gradients)
        return None, None, *found


def _differentiable(
    again: Any, inputs: Sequence[Tensor | None], gradients: Sequence[Any], wanted: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Differentiate by kernels, so that formulas differentiate that in turn."""
    n = len(inputs)

    def work(*both: Any) -> Any:
        found = again.twice(both[:n], both[n:], wanted)
        return tuple(_derivatives(again, both[:n], both[n:]) if found is None else found)

    def twice_again(*both: Any) -> Any:
        return _derivatives(again, both[:n], both[n:])

    found: Sequence[Tensor | None] = Backward.apply(work, twice_again, *inputs, *gradients)
    return found


def _derivatives(
    function: Pass, inputs: Sequence[Tensor | None], outer: Iterable[Any]
) -> list[Tensor | None]:
    """Differentiate a backward pass: gradients of its inputs, by gradients of its results.

    `function` makes the results of the inputs once more, and perhaps others behind them. Inputs and
    gradients may be None.
    """
    goes_on = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of the same values; derivatives go down to these, and no further.
        ends = [
            each if each is None
            else each.view_as(each) if goes_on and each.requires_grad
            else each.detach().requires_grad_()
            for each in inputs
        ]  # fmt: skip
        pairs = [
            pair for pair in zip(function(*ends), outer, strict=False)
            if pair[0] is not None and pair[1] is not None
        ]  # fmt: skip
        if not pairs:
            return [None] * len(inputs)
        results, of_results = zip(*pairs, strict=True)
        wanted = [each for each in ends if each is not None]
        found = iter(
            torch.autograd.grad(
                results, wanted, of_results, create_graph=goes_on, allow_unused=True
            )
        )
    return [None if each is None else next(found) for each in ends]
