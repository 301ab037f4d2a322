"""`torch.nn.BatchNorm1d/2d/3d` over bnext's kernels."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.docstrings import with_sections_of
from bnext.torch import usual
from bnext.torch.functional import counted_batch_norm, weight_of_batch

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Forward",
    "in_a_range",
    "is_profiled",
    "wants_range",
]


OURS = "bnext.torch."


class Forward(_BatchNorm):
    """The forward pass of PyTorch's layers, with its kernels exchanged.

    It differs in two ways: a call that ends in an error has not been counted, and one that autograd
    repeats (activation checkpointing) is not counted again.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`, as PyTorch's layer does."""
        if is_profiled() and wants_range():
            return in_a_range(Forward.forward, self, input)
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

    def _traced(self, input: Any) -> Any:
        """Be a node of a graph of `torch.fx`: the layer, or the function that it calls.

        The function stands in the graph of a layer that is traced by itself, which is no module in
        it, and within the `forward` of a subclass, which is traced through.
        """
        forward = type(self).forward
        if getattr(input.tracer, "root", None) is self or not forward.__module__.startswith(OURS):
            return self._normalize(input)
        return self._node(input)

    def _node(self, input: Any) -> Any:
        """Be one node of a graph of `torch.fx`, as its tracer makes only PyTorch's own modules."""
        tracer = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch does, and whose kernels it runs."""
        return f"{super().extra_repr()}, kernels=bnext"

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Give TorchScript, which knows nothing of kernels, PyTorch's layer of the same tensors."""
        from bnext.torch.conversion import revert

        return revert(copy.copy(self))


class _Range(threading.local):
    is_open = False


_RANGE = _Range()


def is_profiled() -> bool:
    """Whether a profiler of PyTorch's runs."""
    return profiler._is_profiler_enabled


# A guard on it would have compiled models compile again where a profiler starts.
is_profiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def wants_range() -> bool:
    """Whether a call is to be shown to the profiler that runs, as one range."""
    return not torch.compiler.is_compiling() and not _RANGE.is_open


def in_a_range(forward: Any, layer: Forward, input: Tensor) -> Tensor:
    """Do a call of a layer where a profiler sees it: kernels are none of PyTorch's operators."""
    _RANGE.is_open = True
    try:
        with profiler.record_function("bnext::batch_norm"):
            y: Tensor = forward(layer, input)
            return y
    finally:
        _RANGE.is_open = False


class BatchNorm1d(Forward, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, for input of shape (N, C) or (N, C, L).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1), by bnext's kernels.

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics; None keeps the cumulative average.
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics.
    device : torch.device, optional
        Where the parameters and the running statistics are.
    dtype : torch.dtype, optional
        Of the parameters and the running statistics.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.

    Notes
    -----
    State dicts, hooks, modes and errors are PyTorch's.
    """


@with_sections_of(BatchNorm1d)
class BatchNorm2d(Forward, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, for input of shape (N, C, H, W).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1), by bnext's kernels.
    """


@with_sections_of(BatchNorm1d)
class BatchNorm3d(Forward, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, for input of shape (N, C, D, H, W).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1), by bnext's kernels.
    """
