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

Gradients = tuple[Any, ...]  # dx, dweight, dbias, dresidual; those that there are
Way = Callable[..., Gradients]  # of dy and the tensors that were saved


def is_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
) -> bool:
    """Whether autograd is to record a call."""
    return is_grad_enabled() and (
        (weight is not None and weight.requires_grad)
        or x.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def gradients_of(ctx: Any, dy: Tensor, by_kernels: Way, by_formulas: Way) -> Gradients:
    """Give the gradients of x, weight, bias, the residual if there is one, and a last argument.

    The last one has none. They are by formulas where a gradient is not plain or one of a batch, and
    by kernels elsewhere; there derivatives of the gradients, if autograd records them, are by
    formulas. Both ways take dy and the tensors that were saved.
    """
    inputs = ctx.saved_tensors
    if not is_plain(dy):
        found = by_formulas(dy, *inputs)
    elif is_grad_enabled():
        work = partial(_by_either, by_kernels, by_formulas)
        found = formulas.Backward.apply(work, by_formulas, dy, *inputs)
    else:
        found = _by_either(by_kernels, by_formulas, dy, *inputs)
    *wanted, _ = ctx.needs_input_grad
    return *(found[k] if wants else None for k, wants in enumerate(wanted)), None


def _by_either(by_kernels: Way, by_formulas: Way, dy: Tensor, *inputs: Any) -> Gradients:
    try:
        return by_kernels(dy, *inputs)
    except TypeError:
        if has_memory(dy):
            raise
        return by_formulas(dy, *inputs)  # a batch of gradients
