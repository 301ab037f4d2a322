"""`torch.nn.functional.layer_norm` and `rms_norm` over bnext's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from bnext.torch import row_operators
from bnext.torch.context import in_a_range, is_compiling
from bnext.torch.kernels import KernelRefusal
from bnext.torch.roads import KERNELS, LEAST_VALUES, OPERATORS, road_of_rows
from bnext.torch.row_gradients import norm_of_rows

__all__ = ["layer_norm", "rms_norm"]

# Kept as they are at import: programs may put the functions below under PyTorch's names.
_LAYER_NORM: Any = torch.nn.functional.layer_norm
_RMS_NORM: Any = torch.nn.functional.rms_norm


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.layer_norm` does, with the same arguments and errors.

    Parameters
    ----------
    input : Tensor, shape (*, normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU; elsewhere PyTorch's operator computes.
    normalized_shape : sequence of int
        Lengths of the trailing axes that are normalized together.
    weight, bias : Tensor, shape (normalized_shape), or None
        Of the dtype of `input`; for 16-bit data also float32.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As PyTorch's.

    Notes
    -----
    Below 32,768 values PyTorch's operator computes, which takes less time to call.
    """
    if type(input) is Tensor and not is_compiling() and input.numel() < LEAST_VALUES:
        small: Tensor = _LAYER_NORM(input, normalized_shape, weight, bias, eps)
        return small
    y = _by_rows(input, normalized_shape, weight, bias, eps, True)
    if y is None:
        y = _LAYER_NORM(input, normalized_shape, weight, bias, eps)
    return y


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Do what `torch.nn.functional.rms_norm` does, with the same arguments and errors.

    Parameters
    ----------
    input : Tensor, shape (*, normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU; elsewhere PyTorch's operator computes.
    normalized_shape : sequence of int
        Lengths of the trailing axes that are normalized together.
    weight : Tensor, shape (normalized_shape), or None
        Of the dtype of `input`; for 16-bit data also float32.
    eps : float, optional
        Added to the mean of squares. If not given, the machine epsilon of the arithmetic: of
        float64 for float64, of float32 for all others.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As PyTorch's.
    """
    y = _by_rows(input, normalized_shape, weight, None, eps, False)
    if y is None:
        y = _RMS_NORM(input, normalized_shape, weight, eps)
    return y


def _by_rows(x: Any, shape: Any, weight: Any, bias: Any, eps: Any, centered: bool) -> Tensor | None:
    """Normalize by the kernels; None where PyTorch's operator is to, or has the error."""
    road = road_of_rows(x, shape, weight, bias, eps)
    of: Any = (x, shape, weight, bias, eps, centered)
    if road is KERNELS:
        try:
            if profiler._is_profiler_enabled:
                y: Tensor = in_a_range(norm_of_rows, *of)
                return y
            return norm_of_rows(*of)
        except KernelRefusal:
            return None
    return row_operators.norm_of_rows(*of) if road is OPERATORS else None
