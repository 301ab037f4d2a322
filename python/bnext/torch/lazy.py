"""`torch.nn.LazyBatchNorm1d/2d/3d` that become bnext's layers at their first call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.docstrings import with_sections_of
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, Forward

__all__ = ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d", "LazyForward"]


class LazyForward(_BatchNorm):
    """The first call of a lazy layer, which is one of the class that the layer has become.

    PyTorch looks `forward` up before the hook that changes the class, so that the first call is
    the lazy class's own.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize `input`, and add `residual`, as a layer of ``cls_to_become``."""
        layer: Any = self
        if isinstance(layer, Forward):
            return Forward.forward(layer, input, residual)
        return super().forward(input)  # called without the hook: the error is PyTorch's

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch does, and whose kernels it will run."""
        return f"{super().extra_repr()}, kernels=bnext"


class LazyBatchNorm1d(LazyForward, torch.nn.LazyBatchNorm1d):
    """`torch.nn.LazyBatchNorm1d`, a `BatchNorm1d` from its first call on.

    Parameters
    ----------
    eps, momentum, affine, track_running_stats, device, dtype
        What they are in `BatchNorm1d`, which takes its channels from the first input.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.
    """

    cls_to_become = BatchNorm1d


@with_sections_of(LazyBatchNorm1d)
class LazyBatchNorm2d(LazyForward, torch.nn.LazyBatchNorm2d):
    """`torch.nn.LazyBatchNorm2d`, a `BatchNorm2d` from its first call on."""

    cls_to_become = BatchNorm2d


@with_sections_of(LazyBatchNorm1d)
class LazyBatchNorm3d(LazyForward, torch.nn.LazyBatchNorm3d):
    """`torch.nn.LazyBatchNorm3d`, a `BatchNorm3d` from its first call on."""

    cls_to_become = BatchNorm3d
