"""`torch.nn.BatchNorm1d/2d/3d` over bnext's kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.torch import usual
from bnext.torch.functional import counted_batch_norm, weight_of_batch

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Forward"]


class Forward(_BatchNorm):
    """The forward pass of PyTorch's layers, with its kernels exchanged.

    It differs in two ways: a call that ends in an error has not been counted, and one that autograd
    repeats (activation checkpointing) is not counted again.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`, as PyTorch's layer does."""
        if type(input) is not Tensor and isinstance(input, torch.fx.Proxy):
            return self._traced(input)
        self._check_input_dim(input)
        y = usual.batch_norm(self, input)
        return self._normalize(input) if y is None else y

    # Types and not strings: torch.fx has them in a graph of a layer alone, and pickles them.
    forward.__annotations__.update({"input": Tensor, "return": Tensor})

    def _normalize(self, input: Any) -> Any:
        running_mean, running_var = self.running_mean, self.running_var
        training = self.training
        moves = training and self.track_running_stats
        counter = self.num_batches_tracked if moves else None
        if not training:
            by_batch = running_mean is None and running_var is None
        else:
            by_batch = True
            if not moves:
                running_mean = running_var = None
        return counted_batch_norm(
            input, running_mean, running_var, self.weight, self.bias, by_batch,
            self.momentum, self.eps, counter,
        )  # fmt: skip

    def _weight_of_batch(self, counter: Tensor | None) -> float:
        return weight_of_batch(counter) if self.momentum is None else self.momentum

    def _traced(self, input: torch.fx.Proxy) -> Any:
        """Be one node of a graph of `torch.fx`, as its tracer makes only PyTorch's own modules.

        A layer that is traced by itself is no module in its graph: the node is the function then.
        """
        tracer: Any = input.tracer
        if self is getattr(tracer, "root", None):
            return self._normalize(input)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Give TorchScript, which knows nothing of kernels, PyTorch's layer of the same tensors."""
        from bnext.torch.conversion import revert

        return revert(copy.copy(self))


class BatchNorm1d(Forward, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, for input of shape (N, C) or (N, C, L)."""


class BatchNorm2d(Forward, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, for input of shape (N, C, H, W)."""


class BatchNorm3d(Forward, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, for input of shape (N, C, D, H, W)."""
