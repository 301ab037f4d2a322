"""Layer normalization of arrays: arrays in, arrays out, no state.

Each example is normalized by itself, over the trailing axes of `normalized_shape`. In memory these
are a row, and a call is one of rows. Data, dtypes and libraries are as in `bnext.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy.typing as npt

from bnext._core import DeviceRowSaved, RowSaved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.groups.group import Group, part_of
from bnext.row_passes import backward_of_rows, forward_of_rows
from bnext.spine import epilogue_of
from bnext.split_rows import SplitRowSaved

__all__ = ["Shape", "layer_norm_backward", "layer_norm_forward"]

Shape = int | Sequence[int]


@overload
def layer_norm_forward(
    x: ArrayT,
    normalized_shape: Shape,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    out: ArrayT | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[ArrayT, RowSaved | DeviceRowSaved | SplitRowSaved]: ...


@overload
def layer_norm_forward(
    x: npt.ArrayLike,
    normalized_shape: Shape,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[Array, RowSaved | DeviceRowSaved | SplitRowSaved]: ...


def layer_norm_forward(
    x: Any,
    normalized_shape: Shape,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    out: Any = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> tuple[Any, RowSaved | DeviceRowSaved | SplitRowSaved]:
    """Normalize each example of `x` by the mean and the biased variance of its own values.

    Parameters
    ----------
    x : array, shape (..., normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU or on a GPU. Arrays whose normalized axes
        lie side by side and whose examples are equally far apart are read in place; others are
        copied once.
    normalized_shape : int or sequence of int
        Lengths of the trailing axes that are normalized together.
    weight, bias : array, shape (normalized_shape), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last, in the same pass; `batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    group : bnext.sync.Group, optional
        `x` has the caller's part of the normalized axes of examples that all members of the group
        hold together; `normalized_shape` and the parameters are of that part. Mean and variance are
        of whole examples, and all members call this together.

    Returns
    -------
    y : array, shape of `x`
        ``act(z)`` with ``z = (x - mean) / sqrt(var + eps) * weight + bias + residual`` (Ba, Kiros
        and Hinton 2016), in C order, or `out`. Where the variance of an example and `eps` are both
        0, ``z = bias + residual``.
    saved : RowSaved, DeviceRowSaved, or bnext.sync.SplitRowSaved with a group
        The statistics of each example, for `layer_norm_backward`: NumPy arrays, or if `x` is on a
        GPU, arrays there. With an activation also copies of `weight` and `bias`.

    Raises
    ------
    ValueError
        A shape does not fit, `normalized_shape` is empty, `eps` is negative or not finite, `out` is
        read-only or overlaps an input; `activation` is not one of the names, `negative_slope` is
        not finite; with a group, `x` is on a GPU.
    TypeError
        A dtype does not fit, an argument is not an array, or `activation` is not a string.
    bnext.sync.GroupError
        A member of the group is missing, has failed, or called something else.
    """
    result: tuple[Any, RowSaved | DeviceRowSaved | SplitRowSaved] = forward_of_rows(
        x, normalized_shape, weight, bias, eps, out,
        epilogue=epilogue_of(residual, activation, negative_slope), part=part_of(group),
    )  # fmt: skip
    return result


@overload
def layer_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
    residual: None = None,
) -> tuple[NumpyT, Array, Array]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
    residual: None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
    residual: None = None,
) -> tuple[Array, Array, Array]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
    residual: Values,
) -> tuple[NumpyT, Array, Array, NumpyT]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
    residual: Values,
) -> tuple[ArrayT, ArrayT, ArrayT, ArrayT]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
    residual: Values,
) -> tuple[Array, Array, Array, Array]: ...


def layer_norm_backward(
    dy: Values,
    x: Any,
    saved: RowSaved | DeviceRowSaved | SplitRowSaved,
    weight: Values | None = None,
    *,
    out: Any = None,
    residual: Values | None = None,
) -> tuple[Any, ...]:
    """Gradients of `layer_norm_forward`, taken through each example's mean and variance.

    With an activation, ``g = dy * act'(z)`` takes the place of `dy` in the formulas below. Its
    argument z is made again from `x` (and the residual), and has the forward call's bits.

    Parameters
    ----------
    dy : array, shape of `x`
        Gradient of the loss by `y`; of the dtype of `x`.
    x : array, shape (..., normalized_shape)
        The input of the forward call, unchanged.
    saved : RowSaved or DeviceRowSaved
        What the forward call returned.
    weight : array, shape (normalized_shape), optional
        As in the forward call. (For z, `saved` has the weight and bias of that call.)
    out : array, shape of `x`, optional
        Where to put `dx`: of the dtype of `x`, with memory of its own; or on the CPU `dy` itself,
        unless it is `dresidual` as well.
    residual : array, shape of `x`, optional
        The residual of the forward call, unchanged. It must be given where ``saved.reads_residual``
        is true: where there was one, and an activation. Otherwise it is not read.

    Returns
    -------
    dx : array, shape of `x`
        ``rstd * (h - E[h] - xhat * E[h * xhat])`` with ``h = dy * weight``, ``xhat = (x - mean) *
        rstd`` and E the mean over an example's values, or `out`.
    dweight, dbias : array, shape (normalized_shape)
        ``sum(dy * xhat)`` and ``sum(dy)`` over all examples, of the dtype of `x`, float32 for
        16-bit data; also where no weight was given.
    dresidual : array, shape of `x`
        ``g``, as a fourth result; only if the forward call had a residual. Without an activation it
        is `dy` itself, not a copy. (Type checkers go by whether `residual` is given.)

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input, or `x` has changed since; `out` is
        read-only or overlaps an input; `residual` is missing where it is read, is another or has
        changed since, or the forward call had none.
    TypeError
        A dtype does not fit, an argument is not an array, or `saved` is something else.
    """
    result: tuple[Any, ...] = backward_of_rows(dy, x, saved, weight, out, residual=residual)
    return result
