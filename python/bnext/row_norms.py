"""Layer and RMS normalization of arrays: arrays in, arrays out, no state.

Each example is normalized by itself, over the trailing axes of `normalized_shape`. In memory these
are a row, and a call is one of rows. Data, dtypes and libraries are as in `bnext.functional`;
arrays on a GPU are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy.typing as npt
from numpy import ndarray

from bnext import _core
from bnext._core import RowSaved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.arrays.libraries import library_of

__all__ = [
    "backward_of_rows",
    "forward_of_rows",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm_backward",
    "rms_norm_forward",
]

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
) -> tuple[ArrayT, RowSaved]: ...


@overload
def layer_norm_forward(
    x: npt.ArrayLike,
    normalized_shape: Shape,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
) -> tuple[Array, RowSaved]: ...


def layer_norm_forward(
    x: Any,
    normalized_shape: Shape,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
    *,
    out: Any = None,
) -> tuple[Any, RowSaved]:
    """Normalize each example of `x` by the mean and the biased variance of its own values.

    Parameters
    ----------
    x : array, shape (..., normalized_shape)
        float32, float64, float16 or bfloat16, on the CPU. Arrays whose normalized axes lie side by
        side and whose examples are equally far apart are read in place; others are copied once.
    normalized_shape : int or sequence of int
        Lengths of the trailing axes that are normalized together.
    weight, bias : array, shape (normalized_shape), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own.

    Returns
    -------
    y : array, shape of `x`
        ``(x - mean) / sqrt(var + eps) * weight + bias`` (Ba, Kiros and Hinton 2016), in C order, or
        `out`. Where the variance of an example and `eps` are both 0, ``y = bias``.
    saved : RowSaved
        The statistics of each example, for `layer_norm_backward`.

    Raises
    ------
    ValueError
        A shape does not fit, `normalized_shape` is empty, `eps` is negative or not finite, `out` is
        read-only or overlaps an input; `x` is on a GPU.
    TypeError
        A dtype does not fit, or an argument is not an array.
    """
    result: tuple[Any, RowSaved] = forward_of_rows(x, normalized_shape, weight, bias, eps, out)
    return result


@overload
def layer_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
) -> tuple[NumpyT, Array, Array]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]: ...


@overload
def layer_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
) -> tuple[Array, Array, Array]: ...


def layer_norm_backward(
    dy: Values,
    x: Any,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: Any = None,
) -> tuple[Any, Any, Any]:
    """Gradients of `layer_norm_forward`, taken through each example's mean and variance.

    Parameters
    ----------
    dy : array, shape of `x`
        Gradient of the loss by `y`; of the dtype of `x`.
    x : array, shape (..., normalized_shape)
        The input of the forward call, unchanged.
    saved : RowSaved
        What the forward call returned.
    weight : array, shape (normalized_shape), optional
        As in the forward call.
    out : array, shape of `x`, optional
        Where to put `dx`: of the dtype of `x`, with memory of its own; or `dy` itself.

    Returns
    -------
    dx : array, shape of `x`
        ``rstd * (g - E[g] - xhat * E[g * xhat])`` with ``g = dy * weight``, ``xhat = (x - mean) *
        rstd`` and E the mean over an example's values, or `out`.
    dweight, dbias : array, shape (normalized_shape)
        ``sum(dy * xhat)`` and ``sum(dy)`` over all examples, of the dtype of `x`, float32 for
        16-bit data; also where no weight was given.

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input, or `x` has changed since; `out` is
        read-only or overlaps an input; `x` is on a GPU.
    TypeError
        A dtype does not fit, an argument is not an array, or `saved` is something else.
    """
    result: tuple[Any, Any, Any] = backward_of_rows(dy, x, saved, weight, out)
    return result


@overload
def rms_norm_forward(
    x: ArrayT,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: ArrayT | None = None,
) -> tuple[ArrayT, RowSaved]: ...


@overload
def rms_norm_forward(
    x: npt.ArrayLike,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: Array | None = None,
) -> tuple[Array, RowSaved]: ...


def rms_norm_forward(
    x: Any,
    normalized_shape: Shape,
    weight: Values | None = None,
    eps: float | None = None,
    *,
    out: Any = None,
) -> tuple[Any, RowSaved]:
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

    Returns
    -------
    y : array, shape of `x`
        ``x / sqrt(mean(x * x) + eps) * weight`` (Zhang and Sennrich 2019), in C order, or `out`.
    saved : RowSaved
        The statistics of each example, for `rms_norm_backward`.

    Raises
    ------
    ValueError, TypeError
        As from `layer_norm_forward`.
    """
    result: tuple[Any, RowSaved] = forward_of_rows(
        x, normalized_shape, weight, None, eps, out, centered=False
    )
    return result


@overload
def rms_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: NumpyT | None = None,
) -> tuple[NumpyT, Array]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: ArrayT | None = None,
) -> tuple[ArrayT, ArrayT]: ...


@overload
def rms_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: Array | None = None,
) -> tuple[Array, Array]: ...


def rms_norm_backward(
    dy: Values,
    x: Any,
    saved: RowSaved,
    weight: Values | None = None,
    *,
    out: Any = None,
) -> tuple[Any, Any]:
    """Gradients of `rms_norm_forward`, taken through each example's mean of squares.

    Parameters
    ----------
    dy, x, saved, weight, out
        As in `layer_norm_backward`.

    Returns
    -------
    dx : array, shape of `x`
        ``rstd * (g - xhat * E[g * xhat])`` with ``g = dy * weight``, ``xhat = x * rstd`` and E the
        mean over an example's values, or `out`.
    dweight : array, shape (normalized_shape)
        ``sum(dy * xhat)`` over all examples, of the dtype of `x`, float32 for 16-bit data; also
        where no weight was given.

    Raises
    ------
    ValueError, TypeError
        As from `layer_norm_backward`.
    """
    result: tuple[Any, Any] = backward_of_rows(dy, x, saved, weight, out, centered=False)
    return result


# --- the two passes, for functions, layers and PyTorch -------------------------------------------


def forward_of_rows(
    x: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    out: Any,
    centered: bool = True,
    plain: bool = False,
) -> Any:
    """Normalize rows: y, and what `backward_of_rows` needs.

    With `plain`, TypeError for a tensor of PyTorch that is not plain; what autograd would record is
    not asked.
    """
    if type(x) is not ndarray and not plain:
        check_place(x)
    # By position: names cost a small call more than the checks.
    return _core.rows_forward(x, normalized_shape, weight, bias, eps, out, centered, plain)


def backward_of_rows(
    dy: Any,
    x: Any,
    saved: Any,
    weight: Any,
    out: Any,
    centered: bool = True,
    plain: bool = False,
    wants_parameters: bool = True,
) -> Any:
    """Gradients of `forward_of_rows`: dx, dweight, and where rows are centered dbias."""
    if type(x) is not ndarray and not plain:
        check_place(x)
    return _core.rows_backward(dy, x, saved, weight, out, centered, plain, wants_parameters)


def check_place(x: Any) -> None:
    """ValueError for an array that is not on the CPU."""
    library = library_of(x)
    where = None if library is None else library.where(x)
    if where is not None and where.kind != "cpu":
        raise ValueError(
            f"x: expected an array on the CPU, got one on {where}, for which layer and RMS "
            "normalization have no kernels"
        )
