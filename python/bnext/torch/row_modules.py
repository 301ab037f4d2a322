"""`torch.nn.LayerNorm` and `torch.nn.RMSNorm` over bnext's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch.activating import ActivatingModule
from bnext.torch.context import is_symbolic
from bnext.torch.epilogues import Epilogue
from bnext.torch.kernel_module import with_types
from bnext.torch.row_functional import (
    activated_layer_norm,
    activated_rms_norm,
    layer_norm,
    rms_norm,
)

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(ActivatingModule, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`: each example by the mean and the variance of its own values.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the trailing axes of the input that are normalized together.
    eps : float
        Added to the variance, in the square of the unit of the input.
    elementwise_affine : bool
        Whether the layer has `weight`, and `bias` if that is asked for.
    bias : bool
        Whether an affine layer has `bias`.
    device : torch.device, optional
        Where the parameters are.
    dtype : torch.dtype, optional
        Of the parameters.
    activation : str, optional
        What is applied to the result, in the same pass; `BatchNorm1d` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Raises
    ------
    ValueError
        `activation` is not one of the names, or `negative_slope` is not finite.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` (Ba, Kiros and Hinton 2016), by bnext's
    kernels on the CPU and on a GPU; elsewhere, and below 32,768 values, by PyTorch's.
    ``layer(x, residual=r)`` gives ``act(y + r)``, in the same pass for a residual of the shape and
    dtype of `x`. State dicts, hooks, modes and errors are PyTorch's.
    """

    _takes_residual = True

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._set_activation(activation, negative_slope)

    @with_types
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `input`, as PyTorch's layer does; add `residual`, apply the activation."""
        if type(input) is not Tensor and is_symbolic(input) and self._is_one_node(input):
            y: Tensor = self._node(input, residual)
            return y
        return self._normalized(input, self._epilogue(residual))

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        of = self.__dict__  # PyTorch looks up each attribute by a function in Python
        try:
            parameters = of["_parameters"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # a parametrization computes it, say
            weight, bias = self.weight, self.bias
        if epilogue is not None:
            given: Any = input, of["normalized_shape"], weight, bias, of["eps"], epilogue
            return activated_layer_norm(*given)
        return layer_norm(input, of["normalized_shape"], weight, bias, of["eps"])


class RMSNorm(ActivatingModule, torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`: each example divided by the root of the mean of its squares.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the trailing axes of the input that are normalized together.
    eps : float, optional
        Added to the mean of squares; if not given, the machine epsilon of the arithmetic.
    elementwise_affine : bool
        Whether the layer has `weight`.
    device : torch.device, optional
        Where the weight is.
    dtype : torch.dtype, optional
        Of the weight.
    activation : str, optional
        What is applied to the result, in the same pass; `BatchNorm1d` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Raises
    ------
    ValueError
        `activation` is not one of the names, or `negative_slope` is not finite.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    ``y = x / sqrt(mean(x * x) + eps) * weight`` (Zhang and Sennrich 2019), by bnext's kernels on
    the CPU and on a GPU; elsewhere by PyTorch's. ``layer(x, residual=r)`` gives ``act(y + r)``, in
    the same pass for a residual of the shape and dtype of `x`. State dicts, hooks, modes and errors
    are PyTorch's.
    """

    _takes_residual = True

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation, negative_slope)

    @with_types
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `x`, as PyTorch's layer does; add `residual`, apply the activation."""
        if type(x) is not Tensor and is_symbolic(x) and self._is_one_node(x):
            y: Tensor = self._node(x, residual)
            return y
        return self._normalized(x, self._epilogue(residual))

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        of = self.__dict__
        try:
            weight = of["_parameters"]["weight"]
        except KeyError:
            weight = self.weight
        if epilogue is not None:
            return activated_rms_norm(input, of["normalized_shape"], weight, of["eps"], epilogue)
        return rms_norm(input, of["normalized_shape"], weight, of["eps"])
