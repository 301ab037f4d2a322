"""`torch.nn.LayerNorm` and `torch.nn.RMSNorm` over bnext's kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from bnext.torch.context import is_symbolic
from bnext.torch.row_functional import layer_norm, rms_norm

__all__ = ["LayerNorm", "RMSNorm"]


class _Rows(torch.nn.Module):
    """What both layers have besides PyTorch's."""

    def _is_one_node(self, input: Any) -> bool:
        """Whether the layer is a node of a graph of `torch.fx`, not the function that it calls.

        As `modules.Forward` has it.
        """
        is_ours = type(self).forward.__module__.startswith("bnext.torch.")
        is_traced = is_symbolic(input) and getattr(input.tracer, "root", None) is not self
        return is_ours and is_traced

    def _node(self, input: Any) -> Any:
        tracer = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch does, and whose kernels it runs."""
        return f"{super().extra_repr()}, kernels=bnext"

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Give TorchScript, which knows nothing of kernels, PyTorch's layer of the same tensors."""
        from bnext.torch.conversion import revert

        return revert(copy.copy(self))


class LayerNorm(_Rows, torch.nn.LayerNorm):
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
        if type(input) is not Tensor and self._is_one_node(input):
            return self._node(input)
        of = self.__dict__  # PyTorch looks up each attribute by a function in Python
        try:
            parameters = of["_parameters"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # a parametrization computes it, say
            weight, bias = self.weight, self.bias
        return layer_norm(input, of["normalized_shape"], weight, bias, of["eps"])


class RMSNorm(_Rows, torch.nn.RMSNorm):
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
        if type(x) is not Tensor and self._is_one_node(x):
            return self._node(x)
        of = self.__dict__
        try:
            weight = of["_parameters"]["weight"]
        except KeyError:
            weight = self.weight
        return rms_norm(x, of["normalized_shape"], weight, of["eps"])
