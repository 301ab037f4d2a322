"""Instance normalization of arrays: arrays in, arrays out, no state.

Group normalization with a group for each channel (`bnext.group_norm`).
"""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt

from bnext._core import DeviceSaved, Saved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.group_norm import cells_backward, cells_forward
from bnext.groups.group import Group, part_of
from bnext.split_cells import SplitSaved

__all__ = ["instance_norm_backward", "instance_norm_forward"]


@overload
def instance_norm_forward(
    x: ArrayT,
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
def instance_norm_forward(
    x: npt.ArrayLike,
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


def instance_norm_forward(
    x: Any,
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
    """Normalize each channel of each example of `x` by its own mean and variance.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, group, out, residual, activation, negative_slope
        As in `group_norm_forward`.

    Returns
    -------
    y : array, shape of `x`
        ``act(z)`` with ``z = (x - mean) / sqrt(var + eps) * weight + bias + residual``, and with
        the mean and the biased variance over a channel's values in an example (Ulyanov, Vedaldi and
        Lempitsky 2016), in the memory order of `x`, or `out`.
    saved : Saved or DeviceSaved, or bnext.sync.SplitSaved with a group
        The statistics, of shape (N, C), for `instance_norm_backward`.

    Raises
    ------
    ValueError, TypeError
        As from `group_norm_forward`; a ValueError also where a channel of an example has one value.
    """
    return cells_forward(
        x, None, weight, bias, eps, channel_axis, out, activation, negative_slope, part_of(group),
        residual,
    )  # fmt: skip


@overload
def instance_norm_backward(
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
def instance_norm_backward(
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
def instance_norm_backward(
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
def instance_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: NumpyT | None = None,
    residual: Values,
) -> tuple[NumpyT, Array, Array, NumpyT]: ...


@overload
def instance_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: ArrayT | None = None,
    residual: Values,
) -> tuple[ArrayT, ArrayT, ArrayT, ArrayT]: ...


@overload
def instance_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: Array | None = None,
    residual: Values,
) -> tuple[Array, Array, Array, Array]: ...


def instance_norm_backward(
    dy: Values,
    x: Any,
    saved: Saved | DeviceSaved | SplitSaved,
    weight: Values | None = None,
    *,
    parameter_gradients: str = "local",
    out: Any = None,
    residual: Values | None = None,
) -> tuple[Any, ...]:
    """Gradients of `instance_norm_forward`, taken through the mean and variance of each channel.

    Parameters
    ----------
    dy, x, saved, weight, parameter_gradients, out, residual
        As in `group_norm_backward`.

    Returns
    -------
    dx, dweight, dbias, dresidual
        As from `group_norm_backward`, with a group for each channel.

    Raises
    ------
    ValueError, TypeError
        As from `group_norm_backward`.
    """
    return cells_backward(dy, x, saved, weight, out, parameter_gradients, residual)
