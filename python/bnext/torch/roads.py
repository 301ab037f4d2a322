"""The road of every call: it is decided here, and nowhere else.

Every road ends in one forward and one backward function of `kernels`, or in PyTorch's operator.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from torch import Tensor

from bnext.torch import kernels
from bnext.torch.context import (
    is_compiled,
    is_exported,
    is_plain,
    is_plain_in_python,
    is_symbolic,
    is_traced,
    is_traced_by_dynamo,
    is_transformed,
)

__all__ = [
    "EXPORTED", "FUSED", "GROUP", "KERNELS", "LEAST_VALUES", "NODE", "OPERATORS", "PYTORCH", "Road",
    "fits_kernels", "road_of", "road_of_cells", "road_of_rows", "road_of_shard",
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

# Smaller eager calls of `group_norm` and `layer_norm` are PyTorch's, recorded or not: autograd
# calls bnext's functions in Python, which takes longer than these kernels gain. With one thread, a
# step of group_norm of (64, 20) in 4 groups took 1.1 times as long by these kernels, of (8, 64, 7,
# 7) in 8 groups 1.2; of layer_norm of (64, 20) 1.4, of (64, 512) 1.2, and of (64, 1024) 0.8 (EPYC,
# a machine in use, 2026-11-30). PyTorch's instance_norm and rms_norm are slower at any size.
LEAST_VALUES = 32 * 1024

_NUMBER = (float, int)
_NUMBER_OR_NONE = (float, int, type(None))


def road_of(
    x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any,
    momentum: Any, eps: Any, traced: bool | None = None,
) -> Road:  # fmt: skip
    """Decide on the road of a call.

    A `momentum` of None is the weight of a mean over all batches. `traced`: whether Dynamo traces,
    if that is known. The kernels may still refuse the
    tensors of `KERNELS`; PyTorch then takes the call, or has the error.
    """
    if traced is None:
        traced = is_traced_by_dynamo()
    if not traced and is_plain_in_python(x, running_mean, running_var, weight, bias):
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
    return FUSED if is_compiled() and kernels.fuses(x) else OPERATORS


def road_of_cells(
    x: Any, num_groups: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any,
    training: Any, momentum: Any, eps: Any,
) -> Road:  # fmt: skip
    """Decide as `road_of` does, for groups of channels; None of them: for each channel."""
    road = road_of(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if road is OPERATORS or road is FUSED:
        fits = running_mean is None and _divides(x, num_groups)
        return OPERATORS if fits else PYTORCH
    return road


def road_of_rows(x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Road:
    """Decide as `road_of` does, for rows of the trailing axes of `shape`.

    An `eps` of None is the machine epsilon. In a graph of `torch.fx` and in an exported one, a call
    is PyTorch's function.
    """
    if is_plain(x, None, None, weight, bias):
        takes = eps is None or (isinstance(eps, _NUMBER) and eps > 0)
        return KERNELS if takes else PYTORCH
    if is_symbolic(x, weight, bias) or not is_traced() or is_transformed() or is_exported():
        return PYTORCH
    fits = (eps is None or eps > 0) and _has_rows(x, tuple(shape), weight, bias)
    return OPERATORS if fits else PYTORCH


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
        and kernels.normalize_together(x, weight, bias, running_mean, running_var)
        and (running_mean is None) == (running_var is None)
        and not any(buffer is not None and buffer.requires_grad for buffer in others[:2])
        and all(tensor is None or tensor.shape == (x.size(1),) for tensor in others)
    )


def _divides(x: Tensor, num_groups: int | None) -> bool:
    """Whether a number of groups divides the channels, and the values of each are several."""
    if x.device.type != "cpu":
        return False
    if num_groups is None:
        return math.prod(x.shape[2:]) != 1
    channels = x.size(1)
    is_divisor = isinstance(num_groups, int) and num_groups > 0 and channels % num_groups == 0
    return is_divisor and x.numel() != num_groups


def _has_rows(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the trailing axes of a traced x, and the parameters, are of this shape."""
    return (
        x.device.type == "cpu"
        and 0 < len(shape) <= x.dim()
        and tuple(x.shape[-len(shape) :]) == shape
        and kernels.work_together(x, weight, bias)
        and all(tensor is None or tuple(tensor.shape) == shape for tensor in (weight, bias))
    )
