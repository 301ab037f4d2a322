"""Group normalization of arrays: arrays in, arrays out, no state.

Each example is normalized for itself, by the statistics of every group of its channels. Of a group
for each channel, that is instance normalization (`bnext.instance_norm`). Arrays, devices, dtypes,
layouts and results are as in `bnext.functional`.
"""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt
from numpy import ndarray

from bnext import _core, split_cells
from bnext._core import DeviceSaved, Saved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.arrays import engine_of
from bnext.groups.group import ALONE, Group, Part, part_of
from bnext.spine import check_parameter_gradients, epilogue_of
from bnext.split_cells import SplitSaved

__all__ = ["cells_backward", "cells_forward", "group_norm_backward", "group_norm_forward"]


@overload
def group_norm_forward(
    x: ArrayT,
    num_groups: int,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    group: Group | None = None,
    out: ArrayT | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[ArrayT, Saved | DeviceSaved | SplitSaved]: ...


@overload
def group_norm_forward(
    x: npt.ArrayLike,
    num_groups: int,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    group: Group | None = None,
    out: Array | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Array, Saved | SplitSaved]: ...


def group_norm_forward(
    x: Any,
    num_groups: int,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    channel_axis: int = 1,
    group: Group | None = None,
    out: Any = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Any, Saved | DeviceSaved | SplitSaved]:
    """Normalize each example of `x` by the mean and variance of every group of its channels.

    Parameters
    ----------
    x : array, shape (N, C, ...) with N at axis 0 and C at `channel_axis`
        float32, float64, float16 or bfloat16, of rank 2 or more; on the CPU or on a GPU. Dense
        arrays in either layout (NCHW, NHWC) and slices along the examples or the channels are read
        in place; others are copied once.
    num_groups : int
        Groups G that the channels are divided into, neighbours together; a divisor of C.
    weight, bias : array, shape (C,), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    channel_axis : int
        Which axis of `x` has the channels; negative counts from the end. Not axis 0.
    group : bnext.sync.Group, optional
        `x`, on the CPU, has the caller's positions of examples that all members hold together: the
        axes other than the examples' and the channels' may be of any length, also 0. Mean and
        variance are of the values of all members, which call this together.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last, in the same pass; `batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0.

    Returns
    -------
    y : array, shape of `x`
        ``act(z)`` with ``z = (x - mean) / sqrt(var + eps) * weight + bias + residual``, and with
        the mean and the biased variance over the values of a group of channels of an example (Wu
        and He 2018, section 3), in the memory order of `x`, or `out`.
    saved : Saved or DeviceSaved, or bnext.sync.SplitSaved with a group
        The statistics, of shape (N, G), for `group_norm_backward`; with an activation or a residual
        also copies of `weight` and `bias`. On a GPU a `DeviceSaved`.

    Raises
    ------
    ValueError
        A shape does not fit, `num_groups` does not divide C, all of `x` has one value per group,
        `eps` is negative or not finite, `channel_axis` is not an axis of `x` behind the first,
        `out` is read-only or overlaps an input; `activation` is not one of the names; with a group,
        `x` is on a GPU.
    TypeError
        A dtype does not fit, or an argument is not an array, or not an integer.
    RuntimeError
        `x` is on a device on which bnext cannot compute.
    bnext.sync.GroupError
        A member of the group is missing, has failed, or called something else.
    """
    if num_groups is None:
        raise TypeError("num_groups: expected an integer, got None")
    return cells_forward(
        x, num_groups, weight, bias, eps, channel_axis, out, activation, negative_slope,
        part_of(group), residual,
    )  # fmt: skip


@overload
def group_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: NumpyT | None = None,
    residual: None = None,
) -> tuple[NumpyT, Array, Array]: ...


@overload
def group_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: ArrayT | None = None,
    residual: None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]: ...


@overload
def group_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: Array | None = None,
    residual: None = None,
) -> tuple[Array, Array, Array]: ...


@overload
def group_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: Saved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: NumpyT | None = None,
    residual: Values,
) -> tuple[NumpyT, Array, Array, NumpyT]: ...


@overload
def group_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: Saved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: ArrayT | None = None,
    residual: Values,
) -> tuple[ArrayT, ArrayT, ArrayT, ArrayT]: ...


@overload
def group_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: Saved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: Array | None = None,
    residual: Values,
) -> tuple[Array, Array, Array, Array]: ...


def group_norm_backward(
    dy: Values,
    x: Any,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: Any = None,
    residual: Values | None = None,
) -> tuple[Any, ...]:
    """Gradients of `group_norm_forward`, taken through the mean and variance of each group.

    Parameters
    ----------
    dy : array, shape of `x`
        Gradient of the loss by `y`; of the dtype of `x`.
    x : array, shape (N, C, ...)
        The input of the forward call, unchanged.
    saved : Saved, DeviceSaved or SplitSaved
        What the forward call returned, which knows its group.
    weight : array, shape (C,), optional
        As in the forward call.
    parameter_gradients : {"local", "total"}
        In a group: whether `dweight` and `dbias` are sums over the caller's positions, as the
        adding up of gradients expects them, or over the positions of all members.
    out : array, shape of `x`, optional
        Where to put `dx`: of the dtype of `x`, with memory of its own; or `dy` itself, unless it is
        `dresidual` as well.
    residual : array, shape of `x`, optional
        The residual of the forward call, unchanged. It must be given where ``saved.reads_residual``
        is true: where there was one, and an activation. Otherwise it is not read.

    Returns
    -------
    dx : array, shape of `x`
        ``rstd * (g - E[g] - xhat * E[g * xhat])`` with ``g = dy * weight``,
        ``xhat = (x - mean) * rstd`` and E the mean over the values of a group of channels of an
        example, or `out`. After an activation ``dy * act'(z)`` takes the place of `dy`, here and
        below, with z made again from `x`, the residual and the parameters of the forward call. In a
        channel whose weight is below ``2**-60`` of the group's largest, `dy` counts as if it were
        that much.
    dweight, dbias : array, shape (C,)
        ``sum(dy * xhat)`` and ``sum(dy)`` over all axes but the channels', of the dtype of `x`,
        float32 for 16-bit data; also where no weight was given.
    dresidual : array, shape of `x`
        ``dy * act'(z)``, as a fourth result; only if the forward call had a residual. Without an
        activation it is `dy` itself, not a copy. (Type checkers go by whether `residual` is given.)

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input or another norm, or on the CPU, `x`
        has changed since; `out` is read-only or overlaps an input; `residual` is missing where
        it is read, is another or has changed since, or the forward call had none.
    TypeError
        A dtype does not fit, an argument is not an array, or `saved` is something else.
    """
    return cells_backward(dy, x, saved, weight, out, parameter_gradients, residual)


def cells_forward(
    x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, out: Any,
    activation: Any = None, negative_slope: Any = 0.01, part: Part = ALONE, residual: Any = None,
) -> tuple[Any, Saved | DeviceSaved | SplitSaved]:  # fmt: skip
    """Do `group_norm_forward`; without a number of groups, `instance_norm_forward`."""
    epilogue = epilogue_of(residual, activation, negative_slope)
    if part is not ALONE:
        return split_cells.forward(
            x, num_groups, weight, bias, eps, channel_axis, out, epilogue, part
        )
    result: tuple[Any, Saved | DeviceSaved] = _engine(x).cell_forward(
        x=x, num_groups=num_groups, weight=weight, bias=bias, eps=eps, channel_axis=channel_axis,
        out=out, epilogue=epilogue,
    )  # fmt: skip
    return result


def cells_backward(
    dy: Any, x: Any, saved: Any, weight: Any, out: Any, parameter_gradients: str = "local",
    residual: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Do `group_norm_backward`, of either."""
    if isinstance(saved, SplitSaved):
        return split_cells.backward(dy, x, saved, weight, out, parameter_gradients, residual)
    if parameter_gradients != "local":
        check_parameter_gradients(parameter_gradients)
    result: tuple[Any, ...] = _engine(x).cell_backward(
        dy=dy, x=x, saved=saved, weight=weight, out=out, residual=residual
    )
    return result


def _engine(x: Any) -> Any:
    return _core if type(x) is ndarray else engine_of(x)
