"""The double backward pass, for penalties of gradients and products with Hessians."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from bnext import spine
from bnext._core import Saved
from bnext.array_types import Values
from bnext.arrays import DeviceSaved
from bnext.groups.saved import SyncSaved

__all__ = ["SecondGradients", "batch_norm_double_backward"]


class SecondGradients(NamedTuple):
    """Gradients of a backward pass, by what each is a gradient of; None where one was not made.

    Parameters
    ----------
    dy, x, residual : array or None
        Gradients by `dy`, `x` and the residual, of the shape of `x`.
    weight, bias : array or None
        Gradients by the weight and the bias, shape (C,).
    """

    dy: Any
    x: Any
    weight: Any
    bias: Any
    residual: Any


NAMES = SecondGradients._fields


def batch_norm_double_backward(
    ddx: Values | None,
    dy: Values,
    x: Any,
    saved: Saved | DeviceSaved | SyncSaved,
    weight: Values | None = None,
    *,
    ddweight: Values | None = None,
    ddbias: Values | None = None,
    ddresidual: Values | None = None,
    residual: Values | None = None,
    wanted: Iterable[str] = NAMES,
    parameter_gradients: str = "local",
) -> SecondGradients:
    """Gradients of `batch_norm_backward`: by what it took, of a loss of what it gave.

    That is one more reverse step through ``dx, dweight, dbias = batch_norm_backward(dy, x, saved,
    weight)``, with the mean and the variance as functions of `x`. It takes two passes over memory,
    as the backward pass does, and no array of the size of `x` but its results.

    Parameters
    ----------
    ddx : array, shape of `x`, optional
        Gradient of the loss by `dx`; of the dtype of `x`. None stands for 0, as in all arguments
        of this kind.
    dy : array, shape of `x`
        As the backward call had it.
    x : array, shape (N, C, ...)
        The input of the forward call, unchanged.
    saved : Saved
        What the forward call returned. Where it was in a group, every member calls this function,
        as it calls `batch_norm_backward`; the loss is the sum of the members' losses.
    weight : array, shape (C,), optional
        As in the backward call; in a group, the same for all members.
    ddweight, ddbias : array, shape (C,), optional
        Gradients of the loss by `dweight` and `dbias`; of the dtype of `x`, float32 for 16-bit
        data.
    ddresidual : array, shape of `x`, optional
        Gradient of the loss by `dresidual`; only if the forward call had a residual.
    residual : array, shape of `x`, optional
        The residual of the forward call, unchanged, where ``saved.reads_residual``.
    wanted : collection of str
        Which results are made, by the names of the fields below; the others are None.
    parameter_gradients : {"local", "total"}
        In a group: whether the backward call gave `dweight` and `dbias` of the member's shard
        ("local"), each with a `ddweight` and `ddbias` of its member, or of the whole batch. The
        gradients by the weight and the bias are of the same kind: shares of the shard, whose sum
        over members is the gradient, or the gradient itself.

    Returns
    -------
    SecondGradients
        ``dy``, ``x`` and ``residual`` of the shape of `x`, in its memory order; ``weight`` and
        ``bias`` of shape (C,), also where no weight was given. ``bias`` and ``residual`` are None
        where both are 0: where the activation's second derivative is, without an activation and
        for "relu", "relu6" and "leaky_relu".

    Raises
    ------
    ValueError
        A shape does not fit, `saved` is from another input, or `x` has changed since; `residual` is
        missing where it is read; the forward call was in place, or had weights of positions;
        `wanted` or `parameter_gradients` has another name.
    TypeError
        A dtype does not fit, or an argument is not an array.
    GroupError
        A member of the group is missing, has failed, or differentiates another call.

    Notes
    -----
    With ``u = ddx``, ``v = ddresidual``, ``p = ddweight``, ``q = ddbias``, ``scale = weight *
    rstd``, ``g = dy * act'(z)`` and E the mean over a channel's values::

        U = E[u xhat]    G = E[g xhat]    K = E[u g] - E[u] E[g]
        slope = rstd (p - scale U)
        h = scale (u - E[u]) + slope (x - mean) + q + v
        t = h dy act''(z)
        by dy: h act'(z)        by residual: t        by bias: sum(t)
        by weight: rstd n (K - U G) + sum(t xhat)
        by x: -rstd scale G (u - E[u]) + slope (g - E[g]) + scale (t - E[t])
              - rstd xhat (scale (K - 3 U G) + p G + weight E[t xhat])

    All sums and this arithmetic are in float64, about the mean of `x` and about a value of each
    other array, so that results are as exact where means are large beside deviations. Where the
    statistics were given, they are constants: E, U and G are 0, and by weight it is ``rstd sum(u g)
    + sum(t xhat)``. The second derivative of a piece of a line is 0, at its ends too.
    """
    bits = 0
    for name in wanted:
        if name not in NAMES:
            raise ValueError(f"wanted: expected names among {', '.join(NAMES)}, got {name!r}")
        bits |= 1 << NAMES.index(name)
    found = spine.double_backward(
        dy=dy, x=x, saved=saved, weight=weight, residual=residual, ddx=ddx, ddweight=ddweight,
        ddbias=ddbias, ddresidual=ddresidual, wanted=bits, parameter_gradients=parameter_gradients,
    )  # fmt: skip
    return SecondGradients(*found)
