"""Functions of one pass over memory: statistics, and normalization by given ones."""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt
from numpy import ndarray

from bnext import _core, spine
from bnext._core import Saved
from bnext._moments import Moments
from bnext.array_types import Array, ArrayT, Values
from bnext.arrays import DeviceSaved, engine_of
from bnext.groups.saved import SyncSaved
from bnext.weighting import Masked, weighting_of

__all__ = ["moments", "normalize", "recompute"]


@overload
def normalize(
    x: ArrayT,
    mean: Values,
    var: Values,
    weight: Values | None = None,
    bias: Values | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: ArrayT | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = "zero",
) -> ArrayT: ...


@overload
def normalize(
    x: npt.ArrayLike,
    mean: Values,
    var: Values,
    weight: Values | None = None,
    bias: Values | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: Array | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = "zero",
) -> Array: ...


def normalize(
    x: Any,
    mean: Values,
    var: Values,
    weight: Values | None = None,
    bias: Values | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    out: Any = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = "zero",
) -> Any:
    """Normalize `x` by given statistics, as inference does.

    Parameters
    ----------
    x : array, shape (N, C, ...) with C at `channel_axis`
        float32, float64, float16 or bfloat16, of any rank.
    mean, var : array, shape (C,)
        Of the dtype of `x`, float32 for 16-bit data; or float64 (as `Moments` has them).
    weight, bias : array, shape (C,), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    channel_axis : int
        Which axis of `x` has the channels; negative counts from the end.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own; or `x` itself, on the CPU.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last; `batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0.
    mask, sample_weight, lengths, offsets : array, optional
        Which positions count; as `batch_norm_forward` takes them. Weights are not looked at beyond
        that, since the statistics are given.
    masked : {"zero", "normalized", "unchanged"}
        What `y` has at positions that do not count.

    Returns
    -------
    array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in the memory order of
        `x`, or `out`.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As from `batch_norm_forward`; one value per channel is enough.
    """
    epilogue = spine.epilogue_of(residual, activation, negative_slope)
    none = mask is None and sample_weight is None and lengths is None and offsets is None
    if none and masked == "zero":
        return spine.forward(
            x, weight, bias, eps, channel_axis, out, (mean, var), epilogue=epilogue, keeps=False
        )[0]
    weighting = weighting_of(x, channel_axis, mask, sample_weight, lengths, masked, offsets)
    return spine.forward(
        x, weight, bias, eps, channel_axis, out, (mean, var), epilogue=epilogue, keeps=False,
        weighting=weighting,
    )[0]  # fmt: skip


def moments(
    x: Values,
    *,
    channel_axis: int = 1,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
) -> Moments:
    """Count, mean and sum of squared deviations of each channel of `x`.

    Parameters
    ----------
    x : array, shape (N, C, ...) with C at `channel_axis`
        float32, float64, float16 or bfloat16, of any rank. Read once, never copied if dense.
    channel_axis : int
        Which axis of `x` has the channels; negative counts from the end.
    mask, sample_weight, lengths, offsets : array, optional
        Which positions count, and how often; as `batch_norm_forward` takes them.

    Returns
    -------
    Moments
        ``count`` (int, or with weights float), ``mean`` (C,) and ``m2`` (C,), float64; mergeable
        with ``+`` (Chan, Golub, LeVeque 1979, eq. 2.1). NumPy arrays, or if `x` is on a GPU, arrays
        there.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As from `batch_norm_forward`, for `x` and `channel_axis`; one value per channel is enough.
    """
    engine: Any = _core if type(x) is ndarray else engine_of(x)
    weighting = None
    if any(each is not None for each in (mask, sample_weight, lengths, offsets)):
        weighting = weighting_of(x, channel_axis, mask, sample_weight, lengths, "zero", offsets)
    return Moments(*engine.moments(x=x, channel_axis=channel_axis, weighting=weighting))


@overload
def recompute(
    x: ArrayT,
    saved: Saved | DeviceSaved | SyncSaved,
    *,
    residual: Values | None = None,
    out: ArrayT | None = None,
) -> ArrayT: ...


@overload
def recompute(
    x: npt.ArrayLike,
    saved: Saved | DeviceSaved | SyncSaved,
    *,
    residual: Values | None = None,
    out: Array | None = None,
) -> Array: ...


def recompute(
    x: Any,
    saved: Saved | DeviceSaved | SyncSaved,
    *,
    residual: Values | None = None,
    out: Any = None,
) -> Any:
    """Make the result of a forward call again, with the same bits.

    A network that keeps `x` for its backward pass need not keep `y` as well: the operation that
    `y` went to can have it made again when its own backward pass asks for it. That is one pass over
    memory, without statistics and, in a group, without an exchange.

    Parameters
    ----------
    x : array, shape (N, C, ...)
        The input of the forward call, unchanged.
    saved : Saved, or bnext.sync.SyncSaved with a group
        What `batch_norm_forward` returned. It has the weight and the bias of that call, which may
        have changed since.
    residual : array, shape of `x`, optional
        The residual of the forward call, unchanged; needed if there was one.
    out : array, shape of `x`, optional
        Where to put the result: of the dtype of `x`, with memory of its own.

    Returns
    -------
    array, shape of `x`
        `y` of the forward call, to the bit, on whatever number of threads; in the memory order of
        `x`, or `out`. (Instruction sets with fused multiply-add agree; `x86-64` alone has none.)

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input, or `x` or the residual has changed
        since; `residual` is missing, or the forward call had none; that call was in place; `out` is
        read-only or overlaps an input; `x` is on a GPU.
    TypeError
        A dtype does not fit, or an argument is not an array.
    """
    return spine.recompute(x, saved, residual, out)
