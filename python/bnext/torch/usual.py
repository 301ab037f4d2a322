"""The usual call, on a short way: a layer on plain tensors on the CPU, and nothing special at work.

What a small call costs is Python, at three times what single steps take when they are repeated:
each of PyTorch's functions pushes the others out of the processor's first caches. Forward and
backward of (64, 20) took 1.7 times as long as PyTorch's by the long way (`functional`), which tells
apart everything there is. Here the kernels' side looks at the tensors, all in one call
(`_core.TensorCalls`), and what it does not take goes the long way.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bnext.torch import gradients, kernels
from bnext.torch.context import count_writes, is_ordinary

__all__ = ["batch_norm"]


def batch_norm(layer: Any, x: Tensor) -> Tensor | None:
    """Do what a layer does in training, and count the batch; None if the call is not a usual one.

    Shapes, and what else kernels check, are not looked at here.
    """
    if not (type(x) is Tensor and is_ordinary(x) and layer.training and layer.track_running_stats):
        return None
    # Not by their names as attributes: those that the layer does not have itself are looked up by
    # a function in Python, five times.
    parameters, buffers = layer._parameters, layer._buffers
    if "weight" not in parameters or "bias" not in parameters:  # computed, by a parametrization say
        return None
    mean, var = buffers.get("running_mean"), buffers.get("running_var")
    counter, momentum, eps = buffers.get("num_batches_tracked"), layer.momentum, layer.eps
    if not (
        type(mean) is type(var) is type(counter) is Tensor
        and type(momentum) is type(eps) is float
        and eps > 0
    ):
        return None
    if mean.requires_grad or var.requires_grad or mean.is_inference() or var.is_inference():
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if gradients.records(x, weight, bias):
        try:
            y: Tensor = gradients.record_plain(x, weight, bias, (mean, var, momentum, counter), eps)
        except kernels.KernelRefusal:
            return None
    else:
        done = kernels.forward_plain(x, weight, bias, mean, var, momentum, counter, eps)
        if done is None:
            return None
        y = done[0]
    count_writes(mean, var, counter)
    return y
