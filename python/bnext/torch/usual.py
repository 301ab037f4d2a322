"""The usual call, on a short way: a layer on plain tensors, and nothing special at work.

What a small call costs is Python, at three times what single steps take when they are repeated:
each of PyTorch's functions pushes the others out of the processor's first caches. Forward and
backward of (64, 20) took 1.7 times as long as PyTorch's by the long way (`functional`), which tells
apart everything there is; evaluation took 1.2 to 1.9 times as long, and with gradients recorded 1.7
to 2.6. Here the kernels' side looks at the tensors, all in one call (`TensorCalls` of `_core`, and
of `_cuda` for tensors on a GPU), and what it does not take goes the long way.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bnext.torch import gradients, kernels
from bnext.torch.context import count_writes, is_ordinary

__all__ = ["batch_norm"]


def batch_norm(layer: Any, x: Tensor) -> Tensor | None:
    """Do what a layer does, and in training count the batch; None if the call is not a usual one.

    Shapes, and what else kernels check, are not looked at here.
    """
    if not (type(x) is Tensor and is_ordinary(x)):
        return None
    there = None
    if x.is_cuda:
        there = kernels.calls_there()
        if there is None:
            return None
    # Not by their names as attributes: those that the layer does not have itself are looked up by
    # a function in Python, five times.
    parameters, buffers = layer._parameters, layer._buffers
    if "weight" not in parameters or "bias" not in parameters:  # computed, by a parametrization say
        return None
    mean, var, eps = buffers.get("running_mean"), buffers.get("running_var"), layer.eps
    if not (type(mean) is type(var) is Tensor and type(eps) is float and eps > 0):
        return None
    if mean.requires_grad or var.requires_grad:
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if not layer.training:
        return _by_running(there, x, weight, bias, mean, var, eps)
    if not layer.track_running_stats:
        return None
    return _by_batch(there, x, weight, bias, (mean, var, layer.momentum, buffers), eps)


def _by_running(
    there: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor,
    eps: float,
) -> Tensor | None:  # fmt: skip
    y: Tensor | None
    if not gradients.records(x, weight, bias):
        evaluate = kernels.evaluate_plain if there is None else there.evaluate
        y = evaluate(x, mean, var, weight, bias, eps)
        return y
    if mean.is_inference() or var.is_inference():  # which autograd would have to keep
        return None
    try:
        y = gradients.record_plain_by_running(x, weight, bias, (mean, var), eps)
    except kernels.KernelRefusal:
        return None
    return y


def _by_batch(
    there: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Any, eps: float
) -> Tensor | None:
    mean, var, momentum, buffers = running
    counter = buffers.get("num_batches_tracked")
    if not (type(counter) is Tensor and type(momentum) is float):
        return None
    if there is None and (mean.is_inference() or var.is_inference()):  # calls there ask
        return None
    y: Tensor | None
    if gradients.records(x, weight, bias):
        try:
            y = gradients.record_plain(x, weight, bias, (mean, var, momentum, counter), eps)
        except kernels.KernelRefusal:
            return None
    elif there is not None:
        y = there.forward_only(x, weight, bias, mean, var, momentum, counter, eps)
        if y is None:
            return None
    else:
        done = kernels.forward_plain(x, weight, bias, mean, var, momentum, counter, eps)
        if done is None:
            return None
        y = done[0]
    count_writes(mean, var, counter)
    return y
