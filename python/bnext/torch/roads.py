"""The road of every call: it is decided here, and nowhere else.

Every road ends in one forward and one backward function of `kernels`, or in PyTorch's operator.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import Tensor

from bnext.torch import kernels
from bnext.torch.context import (
    is_compiling,
    is_exported,
    is_plain,
    is_symbolic,
    is_traced,
    is_transformed,
)

__all__ = [
    "EXPORTED", "FUSED", "GROUP", "KERNELS", "NODE", "OPERATORS", "PYTORCH", "Road", "fits_kernels",
    "road_of", "road_of_shard",
]  # fmt: skip


class Road(Enum):
    """A way for a call."""

    KERNELS = "autograd functions over the kernels: eager calls of plain tensors"
    OPERATORS = "registered operators: calls by the batch that are traced, or seen by a mode"
    FUSED = "operators too, with a second phase that the compiler fuses with its neighbours"
    GROUP = "an autograd function over the kernels: a group exchanges statistics in between"
    NODE = "a node of the graph that torch.fx makes, which calls the function again"
    EXPORTED = "PyTorch's operator in an exported graph, for tools that know it and lack bnext"
    PYTORCH = (
        "PyTorch's operator: dtypes and devices without kernels, tensors without values, "
        "transforms of functions (vmap, jvp), subclasses of tensors, inference that is compiled "
        "(PyTorch fuses it with its neighbours), and wrong arguments, for PyTorch's errors"
    )


KERNELS, OPERATORS, FUSED, GROUP, NODE, EXPORTED, PYTORCH = Road

_NUMBER = (float, int)
_NUMBER_OR_NONE = (float, int, type(None))


def road_of(
    x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any,
    momentum: Any, eps: Any,
) -> Road:  # fmt: skip
    """Decide on the road of a call.

    A `momentum` of None is the weight of a mean over all batches. The kernels may still refuse the
    tensors of `KERNELS`; PyTorch then takes the call, or has the error.
    """
    if is_plain(x, running_mean, running_var, weight, bias):
        if (
            (type(momentum) is float or isinstance(momentum, _NUMBER_OR_NONE))
            and (type(eps) is float or isinstance(eps, _NUMBER))
            and eps > 0
            and type(training) is bool
        ):
            return KERNELS
        return PYTORCH
    if type(x) is not Tensor and is_symbolic(x, running_mean, running_var, weight, bias):
        return NODE
    if not is_traced() or is_transformed():
        return PYTORCH
    if is_exported():
        return EXPORTED
    by_batch = training is True and eps > 0
    if not (by_batch and _fits_operators(x, running_mean, running_var, weight, bias)):
        return PYTORCH
    return FUSED if is_compiling() and kernels.fuses(x) else OPERATORS


def fits_kernels(x: Tensor, residual: Tensor | None) -> bool:
    """Whether kernels add this residual to the normalized x; PyTorch broadcasts and promotes."""
    return residual is None or (
        is_plain(residual)
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
    )


def road_of_shard(x: Tensor) -> Road:
    """Decide on the road of a shard that is normalized with a group: `GROUP` or `PYTORCH`."""
    return GROUP if kernels.takes(x) else PYTORCH


def _fits_operators(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None,
) -> bool:  # fmt: skip
    """Whether the operators take a traced call; PyTorch has the errors of the others."""
    others = (running_mean, running_var, weight, bias)
    return (
        x.dim() > 1
        and kernels.work_together(x, *others)
        and (running_mean is None) == (running_var is None)
        and not any(buffer is not None and buffer.requires_grad for buffer in others[:2])
        and all(tensor is None or tensor.shape == (x.size(1),) for tensor in others)
    )
