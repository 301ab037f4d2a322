"""`torch.nn.GroupNorm` and `torch.nn.InstanceNorm1d/2d/3d` over bnext's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.docstrings import with_sections_of
from bnext.torch.activating import ActivatingModule
from bnext.torch.cell_functional import (
    activated_group_norm,
    activated_instance_norm,
    group_norm,
    instance_norm,
)
from bnext.torch.epilogues import Epilogue, applied
from bnext.torch.kernel_module import with_types

__all__ = [
    "GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LazyInstanceNorm1d",
    "LazyInstanceNorm2d", "LazyInstanceNorm3d",
]  # fmt: skip


class _Cells(ActivatingModule):
    """The forward pass of both norms."""

    @with_types
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `input`, as PyTorch's layer does; add `residual`, apply the activation."""
        if isinstance(input, torch.fx.Proxy) and self._is_one_node(input):
            y: Tensor = self._node(input, residual)
            return y
        return self._normalized(input, self._epilogue(residual))


class GroupNorm(_Cells, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`, for input of shape (N, C, ...).

    Parameters
    ----------
    num_groups : int
        Groups that the channels are divided into.
    num_channels : int
        Channels C of the input; a multiple of `num_groups`.
    eps : float
        Added to the variance, in the square of the unit of the input.
    affine : bool
        Whether the layer has `weight` and `bias`.
    device : torch.device, optional
        Where the parameters are.
    dtype : torch.dtype, optional
        Of the parameters.
    activation : str, optional
        What is applied to the result, in the same pass; `BatchNorm1d` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.

    Raises
    ------
    ValueError
        `activation` is not one of the names, or `negative_slope` is not finite.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a group of channels of an example (Wu and He 2018, section 3), by bnext's kernels on
    the CPU, and on a GPU if bnext has them there; elsewhere, and below 32,768 values, by PyTorch's
    operator. ``layer(x, residual=r)`` gives ``act(y + r)``, in the same pass for a residual of the
    shape and dtype of `x`.

    State dicts, hooks, modes and errors are PyTorch's.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        **more: Any,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **more)
        self._set_activation(activation, negative_slope)

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        of = self.__dict__  # PyTorch looks up each attribute by a function in Python
        try:
            parameters = of["_parameters"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # a parametrization computes it, say
            weight, bias = self.weight, self.bias
        if epilogue is None:
            return group_norm(input, of["num_groups"], weight, bias, of["eps"])
        return activated_group_norm(input, of["num_groups"], weight, bias, of["eps"], epilogue)


class _Instance(_Cells, torch.nn.modules.instancenorm._InstanceNorm):
    """The forward pass of PyTorch's layers, with its function exchanged."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        **more: Any,
    ) -> None:
        of: Any = num_features, eps, momentum, affine, track_running_stats, device, dtype
        super().__init__(*of, **more)
        self._set_activation(activation, negative_slope)

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        if epilogue is not None and self._is_usual(input):
            self._check_input_dim(input)
            return self._apply_instance_norm(input, epilogue)
        # Its code has the errors and warnings of the other inputs, and takes one example alone.
        y: Tensor = torch.nn.modules.instancenorm._InstanceNorm.forward(self, input)
        return y if epilogue is None else applied(y, epilogue)

    def _is_usual(self, input: Tensor) -> bool:
        """Whether this is a batch of the layer's channels."""
        rank: int = self._get_no_batch_dim() + 1
        return input.dim() == rank and input.size(1) == self.num_features

    def _apply_instance_norm(self, input: Tensor, epilogue: Epilogue | None = None) -> Tensor:
        of: Any = (
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0, self.eps,
        )  # fmt: skip
        if epilogue is None:
            return instance_norm(*of)
        of = *of, epilogue
        return activated_instance_norm(*of)


class InstanceNorm1d(_Instance, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, for input of shape (N, C, L), or (C, L).

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics; None: they stay.
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics.
    device : torch.device, optional
        Where the parameters and the running statistics are.
    dtype : torch.dtype, optional
        Of the parameters and the running statistics.
    activation : str, optional
        What is applied to the result, in the same pass; `BatchNorm1d` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.

    Raises
    ------
    ValueError
        `activation` is not one of the names, or `negative_slope` is not finite.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a channel of an example (Ulyanov, Vedaldi and Lempitsky 2016), by bnext's kernels on
    the CPU, and on a GPU if bnext has them there, and by PyTorch's operator elsewhere.
    ``layer(x, residual=r)`` gives ``act(y + r)``, in the same pass for a residual of the shape and
    dtype of a batch `x`. The result has the memory format of the input.

    State dicts, hooks, modes and errors are PyTorch's.
    """


@with_sections_of(InstanceNorm1d)
class InstanceNorm2d(_Instance, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, for input of shape (N, C, H, W), or (C, H, W)."""


@with_sections_of(InstanceNorm1d)
class InstanceNorm3d(_Instance, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, for input of shape (N, C, D, H, W), or (C, D, H, W)."""


class _Lazy(torch.nn.modules.instancenorm._InstanceNorm):
    """What lazy layers are to readers; the first call is one of the class that they become."""

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch does, and whose kernels it will run."""
        return f"{super().extra_repr()}, kernels=bnext"


class LazyInstanceNorm1d(_Lazy, torch.nn.LazyInstanceNorm1d):
    """`torch.nn.LazyInstanceNorm1d`, an `InstanceNorm1d` from its first call on.

    Parameters
    ----------
    eps, momentum, affine, track_running_stats, device, dtype
        What they are in `InstanceNorm1d`, which takes its channels from the first input.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.
    """

    cls_to_become = InstanceNorm1d


@with_sections_of(LazyInstanceNorm1d)
class LazyInstanceNorm2d(_Lazy, torch.nn.LazyInstanceNorm2d):
    """`torch.nn.LazyInstanceNorm2d`, an `InstanceNorm2d` from its first call on."""

    cls_to_become = InstanceNorm2d


@with_sections_of(LazyInstanceNorm1d)
class LazyInstanceNorm3d(_Lazy, torch.nn.LazyInstanceNorm3d):
    """`torch.nn.LazyInstanceNorm3d`, an `InstanceNorm3d` from its first call on."""

    cls_to_become = InstanceNorm3d
