"""Group and instance normalization as pure functions, in and outside of JAX's transformations."""

from __future__ import annotations

from typing import Any

import jax

from bnext import _core
from bnext.arguments import index_of
from bnext.jax import examples
from bnext.jax.arguments import arrays_of, described

__all__ = ["group_norm", "instance_norm"]


def group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, *, eps: float = 1e-5,
    channel_axis: int = -1, residual: Any = None, activation: str | None = None,
    negative_slope: float = 0.01,
) -> jax.Array:  # fmt: skip
    """Normalize each example of `x` by the mean and variance of every group of its channels.

    A pure function, as `layer_norm`.

    Parameters
    ----------
    x : array, shape (N, ..., C) with N at axis 0 and C at `channel_axis`
        float32, bfloat16, float16, or float64 where JAX has it enabled; of rank 2 or more.
    num_groups : int
        Groups that the channels are divided into, neighbours together; a divisor of C.
    weight, bias : array, shape (C,), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    channel_axis : int
        Which axis of `x` has the channels: the last, as JAX's users have it. Not axis 0.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last; `batch_norm` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Returns
    -------
    array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the mean and the
        biased variance over the values of a group of channels of an example; of the dtype of `x`.

    Raises
    ------
    ValueError
        While a program is traced: a shape does not fit, `num_groups` does not divide C, all of `x`
        has one value per group, `eps` is negative or not finite, `channel_axis` is not an axis of
        `x` behind the first.
    TypeError
        A dtype does not fit, or an argument is not an array, or not an integer.
    """
    groups = index_of(num_groups, "num_groups")
    applied = residual, activation, negative_slope
    return _normalized(x, groups, weight, bias, eps, channel_axis, *applied)


def instance_norm(
    x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5, channel_axis: int = -1,
    residual: Any = None, activation: str | None = None, negative_slope: float = 0.01,
) -> jax.Array:  # fmt: skip
    """Normalize each channel of each example of `x` by its own mean and variance.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, residual, activation, negative_slope
        As for `group_norm`.

    Returns
    -------
    array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``, with the mean and the
        biased variance over a channel's values in an example; of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        As `group_norm`; a ValueError also where a channel of an example has one value.
    """
    applied = residual, activation, negative_slope
    return _normalized(x, None, weight, bias, eps, channel_axis, *applied)


def _normalized(
    x: Any, groups: int | None, weight: Any, bias: Any, eps: Any, channel_axis: Any, residual: Any,
    activation: Any, negative_slope: Any,
) -> jax.Array:  # fmt: skip
    _core.check_activation(activation)
    if x is None:
        raise TypeError("x: expected an array, got None")
    x, weight, bias, residual = arrays_of(x=x, weight=weight, bias=bias, residual=residual)
    eps = _core.check_eps(eps)
    axis = _core.check_axis(channel_axis, x.ndim)
    arrays = described({"x": x, "weight": weight, "bias": bias, "residual": residual})
    _core.check_described("cells", arrays, axis, eps, groups)
    how = examples.Cells(
        eps=eps, channel_axis=axis, num_groups=groups or 0, weight=weight is not None,
        bias=bias is not None, activation=None if activation == "none" else activation,
        negative_slope=_core.check_negative_slope(negative_slope), residual=residual is not None,
    )  # fmt: skip
    return examples.normalized(how, x, weight, bias, residual)
