"""`torch.nn.functional.layer_norm` and `rms_norm` over bnext's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from bnext.torch import row_operators
from bnext.torch.context import in_a_range, is_compiling, is_symbolic
from bnext.torch.epilogues import Epilogue, applied, checked
from bnext.torch.functional import _node_of
from bnext.torch.kernels import KernelRefusal
from bnext.torch.roads import KERNELS, LEAST_VALUES, OPERATORS, fits_kernels, road_of_rows
from bnext.torch.row_gradients import norm_of_rows

__all__ = ["activated_layer_norm", "activated_rms_norm", "layer_norm", "rms_norm"]

# Kept as they are at import: programs may put the functions below under PyTorch's names.
_LAYER_NORM: Any = torch.nn.functional.layer_norm
_RMS_NORM: Any = torch.nn.functional.rms_norm


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Do what `torch.nn.functional.layer_norm` does, with the same arguments and errors.

    With an activation or a residual the result is ``act(norm(input) + residual)``.

    Parameters
    ----------
    input : Tensor, shape (*, normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU or on a GPU that bnext has kernels for;
        elsewhere, and on a GPU in calls that a compiler traces, PyTorch's operator computes.
    normalized_shape : sequence of int
        Lengths of the trailing axes that are normalized together.
    weight, bias : Tensor, shape (normalized_shape), or None
        Of the dtype of `input`; for 16-bit data also float32.
    eps : float
        Added to the variance.
    activation : str, optional
        Applied last; `functional.batch_norm` has the names.
    residual : Tensor, optional
        Added before the activation; in the same pass where it has the shape and dtype of `input`.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`; or as the addition of the residual makes it.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As PyTorch's; `activation` is not one of the names.

    Notes
    -----
    Below 32,768 values PyTorch's operator computes, which takes less time to call.
    """
    if activation is not None or residual is not None:
        epilogue = checked(residual, activation, negative_slope)
        return activated_layer_norm(input, normalized_shape, weight, bias, eps, epilogue)
    if type(input) is Tensor and not is_compiling() and input.numel() < LEAST_VALUES:
        # What PyTorch's function calls, after it has looked for other types.
        return torch.layer_norm(input, normalized_shape, weight, bias, eps)
    y = _by_rows(input, normalized_shape, weight, bias, eps, True)
    if y is None:
        y = _LAYER_NORM(input, normalized_shape, weight, bias, eps)
    return y


def activated_layer_norm(
    input: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float, epilogue: Any
) -> Tensor:
    """Do `layer_norm`, and what follows it."""
    if is_symbolic(epilogue.residual):  # which may be None when the graph runs
        return _node_of(layer_norm, input, shape, weight, bias, eps, **epilogue._asdict())
    if type(input) is not Tensor or is_compiling() or input.numel() >= LEAST_VALUES:
        y = _activated_by_rows(input, shape, weight, bias, eps, True, epilogue)
        if y is not None:
            return y
    return applied(layer_norm(input, shape, weight, bias, eps), epilogue)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Do what `torch.nn.functional.rms_norm` does, with the same arguments and errors.

    With an activation or a residual the result is ``act(norm(input) + residual)``.

    Parameters
    ----------
    input : Tensor, shape (*, normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU or on a GPU that bnext has kernels for;
        elsewhere, and on a GPU in calls that a compiler traces, PyTorch's operator computes.
    normalized_shape : sequence of int
        Lengths of the trailing axes that are normalized together.
    weight : Tensor, shape (normalized_shape), or None
        Of the dtype of `input`; for 16-bit data also float32.
    eps : float, optional
        Added to the mean of squares. If not given, the machine epsilon of the arithmetic: of
        float64 for float64, of float32 for all others.
    activation : str, optional
        Applied last; `functional.batch_norm` has the names.
    residual : Tensor, optional
        Added before the activation; in the same pass where it has the shape and dtype of `input`.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Returns
    -------
    Tensor
        Of the shape and dtype of `input`; or as the addition of the residual makes it.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As PyTorch's; `activation` is not one of the names.
    """
    if activation is not None or residual is not None:
        epilogue = checked(residual, activation, negative_slope)
        return activated_rms_norm(input, normalized_shape, weight, eps, epilogue)
    y = _by_rows(input, normalized_shape, weight, None, eps, False)
    if y is None:
        y = _RMS_NORM(input, normalized_shape, weight, eps)
    return y


def activated_rms_norm(
    input: Tensor, shape: Any, weight: Tensor | None, eps: float | None, epilogue: Any
) -> Tensor:
    """Do `rms_norm`, and what follows it."""
    if is_symbolic(epilogue.residual):
        return _node_of(rms_norm, input, shape, weight, eps, **epilogue._asdict())
    y = _activated_by_rows(input, shape, weight, None, eps, False, epilogue)
    return applied(rms_norm(input, shape, weight, eps), epilogue) if y is None else y


def _activated_by_rows(
    x: Any, shape: Any, weight: Any, bias: Any, eps: Any, centered: bool, epilogue: Epilogue
) -> Tensor | None:
    """Do all of it by the kernels; None where what follows is to be PyTorch's.

    A compiler makes one loop of the addition, the activation and what is behind them.
    """
    fits = road_of_rows(x, shape, weight, bias, eps) is KERNELS
    if not fits or not fits_kernels(x, epilogue.residual):
        return None
    return _by_kernels(x, shape, weight, bias, eps, centered, epilogue)


def _by_kernels(*of: Any) -> Tensor | None:
    try:
        if profiler._is_profiler_enabled:
            centered = of[5]
            name = "layer_norm" if centered else "rms_norm"
            y: Tensor = in_a_range(name, norm_of_rows, *of)
            return y
        return norm_of_rows(*of)
    except KernelRefusal:
        return None


def _by_rows(x: Any, shape: Any, weight: Any, bias: Any, eps: Any, centered: bool) -> Tensor | None:
    """Normalize by the kernels; None where PyTorch's operator is to, or has the error."""
    road = road_of_rows(x, shape, weight, bias, eps)
    of: Any = (x, shape, weight, bias, eps, centered)
    if road is KERNELS:
        return _by_kernels(*of)
    return row_operators.norm_of_rows(*of) if road is OPERATORS else None
