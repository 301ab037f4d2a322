"""`torch.nn.functional.group_norm` and `instance_norm` over bnext's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from bnext.torch import cell_kernels, gradients
from bnext.torch.cell_gradients import cell_norm
from bnext.torch.context import in_a_range, is_compiling, is_recomputed, is_symbolic
from bnext.torch.epilogues import Epilogue, applied, checked
from bnext.torch.functional import _node_of
from bnext.torch.kernels import KernelRefusal, widened, work_together
from bnext.torch.roads import KERNELS, LEAST_VALUES, NODE, OPERATORS, fits_kernels, road_of_cells

__all__ = ["activated_group_norm", "activated_instance_norm", "group_norm", "instance_norm"]

# Kept as they are at import: programs may put the functions below under PyTorch's names.
_GROUP_NORM: Any = torch.nn.functional.group_norm
_INSTANCE_NORM: Any = torch.nn.functional.instance_norm


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Do what `torch.nn.functional.group_norm` does, with the same arguments and errors.

    With an activation or a residual the result is ``act(norm(input) + residual)``.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
        float32, float64, float16 or bfloat16, on the CPU, or on a GPU if bnext has its kernels
        there; elsewhere PyTorch's operator computes. In either memory format, which the result has
        as well.
    num_groups : int
        Groups that the channels are divided into.
    weight, bias : Tensor, shape (C,), or None
        Of the dtype of `input`; for 16-bit data also float32.
    eps : float
        Added to the variance.
    activation : str, optional
        Applied last, in the same pass; `functional.batch_norm` has the names.
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
    ValueError, RuntimeError
        As PyTorch's; `activation` is not one of the names.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    Below 32,768 values PyTorch's operator computes, which takes less time to call.
    """
    if activation is not None or residual is not None:
        epilogue = checked(residual, activation, negative_slope)
        return activated_group_norm(input, num_groups, weight, bias, eps, epilogue)
    y: Tensor
    if type(input) is Tensor and not is_compiling():
        values = input.numel()
        if values < LEAST_VALUES:
            # What PyTorch's function calls, once it has checked the rank and a group's values.
            if type(num_groups) is int and input.dim() >= 2 and values >= 2 * num_groups > 0:
                return torch.group_norm(input, num_groups, weight, bias, eps)
            y = _GROUP_NORM(input, num_groups, weight, bias, eps)
            return y
    road = road_of_cells(input, num_groups, None, None, weight, bias, True, 0.0, eps)
    if road is KERNELS and isinstance(num_groups, int):
        try:
            return _by_kernels("group_norm", input, num_groups, weight, bias, eps)[0]
        except KernelRefusal:
            pass
    elif road is NODE:
        y = _node_of(group_norm, input, num_groups, weight, bias, eps)
        return y
    elif road is OPERATORS:
        y = torch.ops.bnext.group_norm_training(
            input, widened(input, weight), widened(input, bias), num_groups, eps
        )[0]
        return y
    y = _GROUP_NORM(input, num_groups, weight, bias, eps)
    return y


def activated_group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    epilogue: Any,
) -> Tensor:  # fmt: skip
    """Do `group_norm`, and apply what follows it."""
    if is_symbolic(epilogue.residual):  # which may be None when the graph runs
        of = epilogue._asdict()
        return _node_of(group_norm, input, num_groups, weight, bias, eps, **of)
    small = type(input) is Tensor and not is_compiling() and input.numel() < LEAST_VALUES
    if not small and isinstance(num_groups, int):
        road = road_of_cells(input, num_groups, None, None, weight, bias, True, 0.0, eps)
        try:
            if road is KERNELS and fits_kernels(input, epilogue.residual):
                of = input, num_groups, weight, bias, eps, epilogue
                return _by_kernels("group_norm", *of)[0]
        except KernelRefusal:
            pass
    return applied(group_norm(input, num_groups, weight, bias, eps), epilogue)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Do what `torch.nn.functional.instance_norm` does, with the same arguments and errors.

    With an activation or a residual the result is ``act(norm(input) + residual)``.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
        float32, float64, float16 or bfloat16, on the CPU, or on a GPU if bnext has its kernels
        there; elsewhere PyTorch's operator computes. In either memory format, which the result has
        as well.
    running_mean, running_var : Tensor, shape (C,), or None
        With `use_input_stats`, they are moved in place, by the means over the examples of their
        means and unbiased variances; without, `input` is normalized by them.
    weight, bias : Tensor, shape (C,), or None
        Of the dtype of `input`; for 16-bit data also float32.
    use_input_stats : bool
        Whether to normalize each channel of each example by its own statistics.
    momentum : float
        Weight of the new batch in the running statistics.
    eps : float
        Added to the variance.
    activation : str, optional
        Applied last, in the same pass; `functional.batch_norm` has the names.
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
    ValueError, RuntimeError
        As PyTorch's; `activation` is not one of the names.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    Where autograd runs a forward pass again, as activation checkpointing does, running statistics
    are not moved a second time.
    """
    epilogue = checked(residual, activation, negative_slope)
    return activated_instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, epilogue
    )


def activated_instance_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, use_input_stats: bool, momentum: float, eps: float,
    epilogue: Epilogue | None,
) -> Tensor:  # fmt: skip
    """Do `instance_norm`, and apply what follows it, if anything does."""
    tensors = (input, running_mean, running_var, weight, bias)
    residual = None if epilogue is None else epilogue.residual
    if epilogue is not None and is_symbolic(residual):
        of = epilogue._asdict()
        return _node_of(instance_norm, *tensors, use_input_stats, momentum, eps, **of)
    road = road_of_cells(input, None, *tensors[1:], use_input_stats, momentum, eps)
    tracked = running_mean is not None and running_var is not None
    fits = road is KERNELS and fits_kernels(input, residual)
    if fits and momentum is not None and _fits_running(input, running_mean, running_var):
        try:
            if use_input_stats:
                given = input, None, weight, bias, eps, epilogue
                y, saved = _by_kernels("instance_norm", *given)
                if tracked and not is_recomputed():
                    _move(running_mean, running_var, momentum, saved)
                return y
            if tracked:
                running = running_mean, running_var, None, None
                return gradients.batch_norm(input, weight, bias, eps, running, False, epilogue)
        except KernelRefusal:
            pass
    if epilogue is not None:
        y = activated_instance_norm(*tensors, use_input_stats, momentum, eps, None)
        return applied(y, epilogue)
    if road is NODE:
        y = _node_of(instance_norm, *tensors, use_input_stats, momentum, eps)
        return y
    if road is OPERATORS:
        y = torch.ops.bnext.group_norm_training(
            input, widened(input, weight), widened(input, bias), input.size(1), eps
        )[0]
        return y
    if is_recomputed() and use_input_stats and tracked:  # copies, which may move
        tensors = (input, running_mean.clone(), running_var.clone(), weight, bias)  # type: ignore[union-attr]
    y = _INSTANCE_NORM(*tensors, use_input_stats, momentum, eps)
    return y


def _by_kernels(name: str, *of: Any) -> Any:
    return in_a_range(name, cell_norm, *of) if profiler._is_profiler_enabled else cell_norm(*of)


def _fits_running(x: Tensor, mean: Tensor | None, var: Tensor | None) -> bool:
    """Whether these are running statistics of x, or none; PyTorch has the errors of others."""
    if mean is None or var is None:
        return mean is var
    return x.dim() > 2 and work_together(x, mean, var) and mean.shape == var.shape == x.shape[1:2]


@torch.no_grad()
def _move(running_mean: Any, running_var: Any, momentum: float, saved: Any) -> None:
    """Move running statistics by the statistics of the instances of a batch."""
    rows = cell_kernels.rows_of(saved)  # in the order of bnext.rows: mean, m2
    if rows.size(1) == 0:
        return
    mean, var = rows[0].mean(0), rows[1].mean(0) / (saved.count - 1)
    for running, batch in ((running_mean, mean), (running_var, var)):
        running.copy_((1 - momentum) * running.double() + momentum * batch)
