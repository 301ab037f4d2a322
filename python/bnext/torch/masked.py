"""Masks, lengths and weights in PyTorch's layers: an autograd function over the kernels of a CPU.

Calls are eager, also within what `torch.compile` compiles. What kernels do not take is refused:
PyTorch has no operator that could.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnext import spine
from bnext.groups.group import ALONE, Part
from bnext.torch import kernels
from bnext.torch.context import is_plain, is_recomputed, is_transformed
from bnext.torch.epilogues import Epilogue
from bnext.torch.formats import formatted
from bnext.weighting import Weighting, weighting_of

__all__ = ["masked_batch_norm", "weighting_of_tensors"]


def weighting_of_tensors(
    input: Any,
    mask: Any = None,
    sample_weight: Any = None,
    lengths: Any = None,
    masked: Any = "zero",
    offsets: Any = None,
) -> Weighting | None:
    """Check the arguments of a layer's call, and give what an engine takes."""
    name = next(
        (
            name
            for name, value in (
                ("mask", mask),
                ("offsets", offsets),
                ("lengths", lengths),
                ("sample_weight", sample_weight),
            )
            if value is not None
        ),
        "masked",
    )
    if not is_plain(input) or is_transformed():
        raise ValueError(
            f"{name}: expected None for what is no plain tensor, and under transforms of functions "
            "and tracing, got one"
        )
    if input.device.type != "cpu":
        raise ValueError(f"{name}: expected None for an input on {input.device}, got one")
    if not kernels.takes(input):
        raise TypeError(
            "input: expected a dense float32, float64, float16 or bfloat16 tensor with "
            f"{name}, got {input.layout}, {input.dtype}"
        )
    return weighting_of(input.detach(), 1, mask, sample_weight, lengths, masked, offsets)


def masked_batch_norm(
    input: Tensor, running: kernels.RunningTensors, weight: Tensor | None, bias: Tensor | None,
    by_batch: bool, eps: float, weighting: Weighting, epilogue: Epilogue | None = None,
    part: Part = ALONE,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Normalize by what counts, or by `running`, and do what follows: y, and what forward left.

    Running statistics move by the batch unless autograd repeats the call; in a group the caller
    moves them.
    """
    mean, var, _, counter = running
    weight, bias = kernels.widened(input, weight), kernels.widened(input, bias)
    given = None
    if not by_batch:
        given = kernels.widened(input, mean), kernels.widened(input, var)
    residual, *activation = epilogue or (None, None, 0.01)
    others = eps, given, weighting, part, activation
    y, saved = _Masked.apply(input, weight, bias, residual, others)
    tracked = mean is not None or counter is not None
    if by_batch and part is ALONE and tracked and not is_recomputed():
        kernels.move_running(saved.value, running)
    return y, saved.value


class _Kept:
    """What forward left, which autograd lets through as it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Masked(torch.autograd.Function):
    """y of x, weight, bias and a residual, where positions count."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        others: Any,
    ) -> tuple[Tensor, _Kept]:  # fmt: skip
        eps, given, weighting, part, activation = others
        scale, shift, added = (
            None if each is None else each.detach() for each in (weight, bias, residual)
        )
        epilogue = None
        if residual is not None or activation[0] is not None:
            epilogue = added, *activation
        if given is not None:
            given = tuple(each.detach() for each in given)
        y, saved = spine.forward(
            x.detach(), scale, shift, eps, 1, None, given, None, part, epilogue,
            weighting=weighting,
        )  # fmt: skip
        ctx.statistics = saved
        ctx.save_for_backward(x, weight, residual if saved.reads_residual else None)
        return formatted(y, x), _Kept(saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, weight, residual = ctx.saved_tensors
        every = kernels.backward(dy.detach(), x.detach(), ctx.statistics, weight, residual)
        wanted = zip((*every, None)[:4], ctx.needs_input_grad, strict=False)
        return *(gradient if wants else None for gradient, wants in wanted), None
