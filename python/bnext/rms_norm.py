"""RMS normalization of arrays: arrays in, arrays out, no state.

It is layer normalization without a mean, and takes what `bnext.layer_norm` takes.
"""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt

from bnext._core import DeviceRowSaved, RowSaved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.groups.group import Group, part_of
from bnext.layer_norm import Shape
from bnext.row_passes import backward_of_rows, forward_of_rows
from bnext.spine import epilogue_of
from bnext.split_rows import SplitRowSaved

__all__ = ["rms_norm_backward", "rms_norm_forward"]


@overload
def rms_norm_forward(
    x: ArrayT,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: ArrayT | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[ArrayT, RowSaved | DeviceRowSaved | SplitRowSaved]: ...


@overload
def rms_norm_forward(
    x: npt.ArrayLike,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: Array | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[Array, RowSaved | DeviceRowSaved | SplitRowSaved]: ...


def rms_norm_forward(
    x: Any,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: Any = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[Any, RowSaved | DeviceRowSaved | SplitRowSaved]:
    """Divide each example of `x` by the root of the mean of its squares.

    Parameters
    ----------
    x : array, shape (..., normalized_shape)
        As `layer_norm_forward` takes it.
    normalized_shape : int or sequence of int
        Lengths of the trailing axes that are normalized together.
    weight : array, shape (normalized_shape), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 if not given.
    eps : float, optional
        Added to the mean of squares. If not given, the machine epsilon of the arithmetic, as
        PyTorch has it: 2**-52 for float64, 2**-23 for all others.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own.
    residual, activation, negative_slope, group
        As in `layer_norm_forward`.

    Returns
    -------
    y : array, shape of `x`
        ``act(z)`` with ``z = x / sqrt(mean(x * x) + eps) * weight + residual`` (Zhang and Sennrich
        2019), in C order, or `out`.
    saved : RowSaved, DeviceRowSaved, or bnext.sync.SplitRowSaved with a group
        The statistics of each example, for `rms_norm_backward`.

    Raises
    ------
    ValueError, TypeError
        As from `layer_norm_forward`.
    """
    result: tuple[Any, RowSaved | DeviceRowSaved | SplitRowSaved] = forward_of_rows(
        x, normalized_shape, weight, None, eps, out, centered=False,
        epilogue=epilogue_of(residual, activation, negative_slope), part=part_of(group),
    )  # fmt: skip
    return result


@overload
def rms_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
    residual: None = None,
) -> tuple[NumpyT, Array]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
    residual: None = None,
) -> tuple[ArrayT, ArrayT]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
    residual: None = None,
) -> tuple[Array, Array]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
    residual: Values,
) -> tuple[NumpyT, Array, NumpyT]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
    residual: Values,
) -> tuple[ArrayT, ArrayT, ArrayT]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
    residual: Values,
) -> tuple[Array, Array, Array]: ...


def rms_norm_backward(
    dy: Values,
    x: Any,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Any = None,
    residual: Values | None = None,
) -> tuple[Any, ...]:
    """Gradients of `rms_norm_forward`, taken through each example's mean of squares.

    Parameters
    ----------
    dy, x, saved, weight, out, residual
        As in `layer_norm_backward`.

    Returns
    -------
    dx : array, shape of `x`
        ``rstd * (h - xhat * E[h * xhat])`` with ``h = dy * weight``, ``xhat = x * rstd`` and E the
        mean over an example's values, or `out`.
    dweight : array, shape (normalized_shape)
        ``sum(dy * xhat)`` over all examples, of the dtype of `x`, float32 for 16-bit data; also
        where no weight was given.
    dresidual : array, shape of `x`
        As from `layer_norm_backward`, as a third result.

    Raises
    ------
    ValueError, TypeError
        As from `layer_norm_backward`.
    """
    result: tuple[Any, ...] = backward_of_rows(
        dy, x, saved, weight, out, centered=False, residual=residual
    )
    return result
