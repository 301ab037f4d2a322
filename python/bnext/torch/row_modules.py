"""`torch.nn.LayerNorm` and `torch.nn.RMSNorm` over bnext's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from bnext.torch.context import is_symbolic
from bnext.torch.kernel_module import KernelModule
from bnext.torch.row_functional import layer_norm, rms_norm

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(KernelModule, torch.nn.LayerNorm):
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

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` (Ba, Kiros and Hinton 2016), by bnext's
    kernels on the CPU; elsewhere, and below 32,768 values, by PyTorch's. State dicts, hooks, modes
    and errors are PyTorch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`, as PyTorch's layer does."""
        if type(input) is not Tensor and is_symbolic(input) and self._is_one_node(input):
            y: Tensor = self._node(input)
            return y
        of = self.__dict__  # PyTorch looks up each attribute by a function in Python
        try:
            parameters = of["_parameters"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # a parametrization computes it, say
            weight, bias = self.weight, self.bias
        return layer_norm(input, of["normalized_shape"], weight, bias, of["eps"])


class RMSNorm(KernelModule, torch.nn.RMSNorm):
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

    Notes
    -----
    ``y = x / sqrt(mean(x * x) + eps) * weight`` (Zhang and Sennrich 2019), by bnext's kernels on
    the CPU; elsewhere by PyTorch's. State dicts, hooks, modes and errors are PyTorch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x`, as PyTorch's layer does."""
        if type(x) is not Tensor and is_symbolic(x) and self._is_one_node(x):
            y: Tensor = self._node(x)
            return y
        of = self.__dict__
        try:
            weight = of["_parameters"]["weight"]
        except KeyError:
            weight = self.weight
        return rms_norm(x, of["normalized_shape"], weight, of["eps"])
