"""Batch normalization of arrays: arrays in, arrays out, no state.

Data are float32, float64, or 16 bits wide: NumPy's float16, and bfloat16 as ``ml_dtypes`` has it
(the extra ``bnext[bfloat16]`` installs it). For 16-bit data, parameters and their gradients are
float32, arithmetic is in float32 at least, and nothing but `y` and `dx` is rounded to 16 bits.

Arrays may be of another library that speaks DLPack (PyTorch, JAX, CuPy): results are arrays of the
library of `x`, where `x` is. On the CPU nothing is copied, NumPy arrays may stand beside the
others, and what a library holds immutable (JAX) cannot be `out`. On a GPU all arrays of a call are
of one library and on one device (parameters too), work is put on the stream on which the library
works at the time, and nothing waits for it. bnext records nothing for autograd: tensors that
require gradients are refused.

All of this holds for each member of a group, whose shards may be of different libraries and on
different devices, if their dtypes agree. What a group exchanges is float64 on the host, and never
an element of `x` or `dy`: from a GPU, a few numbers a channel of each pass are copied to the
host, for which the stream of `x` is waited for, and no other; what was merged is copied back.
"""

from __future__ import annotations

from typing import Any, overload

import numpy.typing as npt

from bnext import spine
from bnext._core import Saved
from bnext.array_types import Array, ArrayT, NumpyT, Values
from bnext.arrays import DeviceSaved
from bnext.groups.group import ALONE, Group, check_group
from bnext.groups.saved import SyncSaved
from bnext.signatures import BY_NAME, by_name, given_by_position
from bnext.single_pass import moments, normalize, recompute
from bnext.weighting import ZERO, Masked, weighting_of

__all__ = ["batch_norm_backward", "batch_norm_forward", "moments", "normalize", "recompute"]


@overload
def batch_norm_forward(
    x: ArrayT,
    weight: Values | None = None,
    bias: Values | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    group: Group | None = None,
    out: ArrayT | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = "zero",
) -> tuple[ArrayT, Saved | DeviceSaved | SyncSaved]: ...


@overload
def batch_norm_forward(
    x: npt.ArrayLike,
    weight: Values | None = None,
    bias: Values | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    group: Group | None = None,
    out: Array | None = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = "zero",
) -> tuple[Array, Saved | DeviceSaved | SyncSaved]: ...


@by_name
def batch_norm_forward(
    x: Any,
    weight: Values | None = None,
    bias: Values | None = None,
    _by_name: Any = BY_NAME,
    eps: float = 1e-5,
    channel_axis: int = 1,
    group: Group | None = None,
    out: Any = None,
    residual: Values | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Values | None = None,
    sample_weight: Values | None = None,
    lengths: Values | None = None,
    offsets: Values | None = None,
    masked: Masked = ZERO,
) -> tuple[Any, Saved | DeviceSaved | SyncSaved]:
    """Normalize `x` by the mean and the biased variance of each of its channels.

    A residual is added and an activation applied in the same pass over memory, if they are given.

    Parameters
    ----------
    x : array, shape (N, C, ...) with C at `channel_axis`
        float32, float64, float16 or bfloat16, of any rank. Dense arrays in either layout (NCHW,
        NHWC) and slices along the outermost axis or the channels are read in place; others are
        copied once.
    weight, bias : array, shape (C,), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    channel_axis : int
        Which axis of `x` has the channels; negative counts from the end.
    group : bnext.sync.Group, optional
        `x` is the caller's shard of a batch that all members of the group hold; mean and variance
        are the whole batch's, and all members call this together. A shard may be empty, of any
        library and on any device.
    out : array, shape of `x`, optional
        Where to put `y`: of the dtype of `x`, with memory of its own; or `x` itself, on the CPU:
        the call is *in place*, see below.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last: "relu", "relu6", "leaky_relu", "silu", "hardswish",
        "gelu", "gelu_tanh", "sigmoid" or "tanh", as PyTorch defines them ("gelu_tanh" is GELU's
        approximation by tanh). At infinities they have their limits, also where PyTorch gives NaN.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    mask : array of bool, optional
        Which positions count, True: of the shape of `x` without its channels, or with 1 in their
        place; other axes may be 1 as well. Of any library on the CPU, as the next two.
    sample_weight : array of real numbers, optional
        How often a position counts, from 0 on: of the shapes of `mask`, or (N,), one for each
        example. Rounded to the dtype of `weight`.
    lengths : array of int, shape (N,), optional
        For `x` of (N, C, L) or (N, L, C): how many of the L positions of each example count, from
        the first on. Not beside `mask`.
    offsets : array of int, shape (B + 1,), optional
        For examples of unequal extents that follow each other along the first axis of `x`, as in a
        jagged tensor: example b has positions ``offsets[b]`` to ``offsets[b + 1]``. Statistics are
        over all of them; positions before ``offsets[0]`` and from ``offsets[-1]`` on do not count.
        Beside it `lengths`, of shape (B,), says how many positions of each example count, and a
        `sample_weight` of shape (B,) has a weight for each. Not beside `mask`.
    masked : {"zero", "normalized", "unchanged"}
        What `y` has at positions that do not count: 0, what it has elsewhere (the activation of the
        normalized value and the residual), or `x`.

    Returns
    -------
    y : array, shape of `x`
        ``act(z)`` with ``z = (x - mean) / sqrt(var + eps) * weight + bias + residual`` (Ioffe and
        Szegedy 2015, algorithm 1), in the memory order of `x`, or `out`. Where the variance of a
        channel and `eps` are both 0, ``z = bias + residual``.
    saved : Saved, DeviceSaved, or bnext.sync.SyncSaved with a group
        The statistics, for `batch_norm_backward`: NumPy arrays, or if `x` is on a GPU, arrays
        there. On the CPU also copies of `weight` and `bias`; with a residual after "relu", "relu6"
        and "leaky_relu" a flag for every value, a bit.

    Raises
    ------
    ValueError
        A shape does not fit, `x` has one value per channel, `eps` is negative or not finite,
        `channel_axis` is not an axis of `x`, `out` is read-only or overlaps an input; `activation`
        is not one of the names, `negative_slope` is not finite; `out` is `x`, and `x` does not
        follow from `y` (see below). A weight is negative or not finite, a length not from 0 to L,
        offsets decrease or leave the axis; `mask`, `sample_weight`, `lengths` or `offsets` stands
        beside ``out=x``, or `x` is on a GPU.
    TypeError
        A dtype does not fit, an argument is not an array, or not where `x` is; `activation` is not
        a string.
    RuntimeError
        `x` is on a device on which bnext cannot compute; `bnext.cuda.reason()` says why.
    bnext.sync.GroupError
        A member of the group is missing, has failed, or called something else.

    Notes
    -----
    *In place* (``out=x``), `y` replaces `x`. `batch_norm_backward` takes that array, and finds what
    it needs of `x` from it: ``xhat = (act^-1(y) - bias) / weight`` (Rota Bulò, Porzi and
    Kontschieder 2018). It reads `y` and `dy` alone, and may write `dx` over `dy`. The activation
    must be one-to-one and nowhere flat: None, or "leaky_relu" with a slope above 0. "relu",
    "relu6", "silu", "hardswish", "gelu" and "gelu_tanh" are not one-to-one, "sigmoid" and "tanh"
    saturate, and a residual would be needed again: all of these are refused.

    `y` is rounded, so this `xhat` differs from the exact one by up to ``(2 |bias / weight| + 3
    |xhat|) u``, where u is the unit roundoff of the dtype of `x` (2**-24 for float32), and by
    ``2 u |act^-1(y) / weight|`` more below 0 after "leaky_relu". Gradients have an error of that
    size, times `dy`. So that half of the p significant bits of the dtype are left, weights below
    ``|bias| / 2**(p // 2)``, 0 and subnormal weights are refused; p is 53, 24, 11 (float16) or 8
    (bfloat16). The derivative of "leaky_relu" is taken at `y` as it is stored.

    *Positions* are the indices of all axes but the channels'. With weights w (1 and 0 of a mask),
    the statistics are ``mean = sum(w x) / W`` and ``var = sum(w (x - mean)**2) / W``, with ``W =
    sum(w)``. Weights are frequencies: a 2 is two copies of a position, Bessel's correction is
    ``W / (W - 1)``, and ``saved.count`` is W. A position of weight 0 does not count: what `x` and
    `dy` have there is not part of any sum, NaN and infinities neither. Gradients there, also the
    residual's, are 0, whatever `masked` is. `saved` has a copy of the weights: a byte a position
    for a mask. A mask that is True everywhere is none, to the bit.

    Where W is at most 1, running statistics of a layer stay; the batch is counted. Where nothing
    counts, mean and variance are 0. In a group W is the sum of all members'; of one value in the
    whole group it raises, as without masks.
    """
    if _by_name is not BY_NAME:
        given_by_position(batch_norm_forward)
    part = ALONE
    if group is not None:
        check_group(group)
        part = group.part(None)
    # (By position: names cost a small call 0.1 us in CPython.)
    epilogue = None
    if activation is not None or residual is not None:
        epilogue = residual, activation, negative_slope
    result: tuple[Any, Saved | DeviceSaved | SyncSaved]
    if not (
        mask is None
        and sample_weight is None
        and lengths is None
        and offsets is None
        and masked is ZERO
    ):
        with part:
            weighting = weighting_of(x, channel_axis, mask, sample_weight, lengths, masked, offsets)
        result = spine.forward(
            x, weight, bias, eps, channel_axis, out, None, None, part, epilogue, weighting=weighting
        )
        return result
    result = spine.forward(x, weight, bias, eps, channel_axis, out, None, None, part, epilogue)
    return result


@overload
def batch_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: NumpyT | None = None,
    residual: None = None,
) -> tuple[NumpyT, Array, Array]: ...


@overload
def batch_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: ArrayT | None = None,
    residual: None = None,
) -> tuple[ArrayT, ArrayT, ArrayT]: ...


@overload
def batch_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: Array | None = None,
    residual: None = None,
) -> tuple[Array, Array, Array]: ...


@overload
def batch_norm_backward(
    dy: Values,
    x: NumpyT,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: NumpyT | None = None,
    residual: Values,
) -> tuple[NumpyT, Array, Array, NumpyT]: ...


@overload
def batch_norm_backward(
    dy: Values,
    x: ArrayT,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: ArrayT | None = None,
    residual: Values,
) -> tuple[ArrayT, ArrayT, ArrayT, ArrayT]: ...


@overload
def batch_norm_backward(
    dy: Values,
    x: npt.ArrayLike,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: Array | None = None,
    residual: Values,
) -> tuple[Array, Array, Array, Array]: ...


def batch_norm_backward(
    dy: Values,
    x: Any,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    group: Group | None = None,
    parameter_gradients: str = "local",
    out: Any = None,
    residual: Values | None = None,
) -> tuple[Any, ...]:
    """Gradients of `batch_norm_forward`, taken through the batch's mean and variance.

    With an activation, ``g = dy * act'(z)`` takes the place of `dy` in all formulas below. The
    argument of the activation, z, is made again from `x` by the arithmetic of the forward call, and
    has the same bits.

    Parameters
    ----------
    dy : array, shape of `x`
        Gradient of the loss by `y`; of the dtype of `x`.
    x : array, shape (N, C, ...)
        The input of the forward call, unchanged; where ``saved.in_place`` is true, `y`.
    saved : Saved or DeviceSaved
        What the forward call returned.
    weight : array, shape (C,), optional
        As in the forward call. (For z, `saved` has the weight and bias of that call.)
    group : bnext.sync.Group, optional
        That of the forward call, which `saved` knows: not needed.
    parameter_gradients : {"local", "total"}
        In a group: whether `dweight` and `dbias` are sums over the caller's shard, as the averaging
        of gradients expects them, or over the whole batch.
    out : array, shape of `x`, optional
        Where to put `dx`: of the dtype of `x`, with memory of its own; or `dy` itself, on the CPU,
        unless it is `dresidual` as well.
    residual : array, shape of `x`, optional
        The residual of the forward call, unchanged. It must be given where ``saved.reads_residual``
        is true: where there was one, and "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid" or
        "tanh" followed, on a GPU any activation. Otherwise it is not read.

    Returns
    -------
    dx : array, shape of `x`
        With weights of positions ``weight * rstd * (dy - w / W * (sum(dy) + xhat * sum(dy *
        xhat)))`` over what counts, and 0 elsewhere; without,
        ``weight * rstd * (dy - E[dy] - xhat * E[dy * xhat])`` with ``xhat = (x - mean) * rstd`` and
        E the mean over a channel's values (Ioffe and Szegedy 2015, section 3), or `out`.
    dweight, dbias : array, shape (C,)
        ``sum(dy * xhat)`` and ``sum(dy)``, of the dtype of `x`, float32 for 16-bit data; also where
        no weight was given.
    dresidual : array, shape of `x`
        ``g``, as a fourth result; only if the forward call had a residual. Without an activation it
        is `dy` itself, not a copy. (Type checkers go by whether `residual` is given, since they
        cannot know of the forward call: with it they see four results, also where it is not read.)

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input, or `x` has changed since (which is
        noticed on the CPU only); `out` is read-only or overlaps an input; `residual` is missing
        where it is read, is another or has changed since, or the forward call had none.
    TypeError, RuntimeError, bnext.sync.GroupError
        As from `batch_norm_forward`; a TypeError also where `saved` is something else.
    """
    if group is not None:
        check_group(group)
        if not isinstance(saved, SyncSaved):
            raise ValueError("group: expected None, since the forward call had no group")
        if group is not saved.group:
            raise ValueError(
                f"group: expected that of the forward call, {saved.group!r}, got {group!r}"
            )
    result: tuple[Any, ...] = spine.backward(
        dy, x, saved, weight, out, parameter_gradients, residual
    )
    return result
