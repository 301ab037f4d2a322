"""What autograd functions over kernels share: whether one is needed, and the ways back.

Small calls of batch normalization cannot afford these functions: `bnext.torch.gradients` does the
same in its own bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, is_grad_enabled

from bnext.torch import formulas
from bnext.torch.context import is_plain
from bnext.torch.kernels import has_memory

__all__ = ["gradients_of", "is_recorded"]

Gradients = tuple[Any, ...]  # dx, dweight, dbias; those that there are
Way = Callable[[Tensor, Tensor, Tensor | None], Gradients]  # of dy, x and weight


def is_recorded(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether autograd is to record a call."""
    return is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or x.requires_grad
        or (bias is not None and bias.requires_grad)
    )


def gradients_of(ctx: Any, dy: Tensor, by_kernels: Way, by_formulas: Way) -> Gradients:
    """Give the gradients of x, weight, bias and a last argument that has none.

    They are by formulas where a gradient is not plain or one of a batch, and by kernels elsewhere;
    there derivatives of the gradients, if autograd records them, are by formulas.
    """
    x, weight = ctx.saved_tensors
    if not is_plain(dy):
        found = by_formulas(dy, x, weight)
    elif is_grad_enabled():
        work = partial(_by_either, by_kernels, by_formulas)
        found = formulas.Backward.apply(work, by_formulas, dy, x, weight)
    else:
        found = _by_either(by_kernels, by_formulas, dy, x, weight)
    wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
    return (
        found[0] if wants_x else None,
        found[1] if wants_weight else None,
        found[2] if wants_bias else None,
        None,
    )


def _by_either(
    by_kernels: Way, by_formulas: Way, dy: Tensor, x: Tensor, weight: Tensor | None
) -> Gradients:
    try:
        return by_kernels(dy, x, weight)
    except TypeError:
        if has_memory(dy):
            raise
        return by_formulas(dy, x, weight)  # a batch of gradients
