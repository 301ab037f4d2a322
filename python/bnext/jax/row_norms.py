"""Layer and RMS normalization as pure functions, inside and outside of JAX's transformations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bnext import _core
from bnext.jax import examples
from bnext.jax.arguments import arrays_of, described

__all__ = ["layer_norm", "normalized_rows", "rms_norm"]

Shape = int | Sequence[int]


def layer_norm(
    x: Any, normalized_shape: Shape, weight: Any = None, bias: Any = None, *, eps: float = 1e-5,
    residual: Any = None, activation: str | None = None, negative_slope: float = 0.01,
) -> jax.Array:  # fmt: skip
    """Normalize each example of `x` by the mean and the biased variance of its own values.

    A pure function, as `batch_norm`: for `jax.jit`, `jax.grad` (its gradient is a kernel as well,
    and can be differentiated again), `jax.vmap`, `jax.lax.scan`, `jax.checkpoint` and
    `jax.shard_map`. `jax.jvp` of the function itself is refused by JAX.

    Parameters
    ----------
    x : array, shape (*, normalized_shape)
        float32, bfloat16, float16, or float64 where JAX has it enabled.
    normalized_shape : int or sequence of int
        Lengths of the trailing axes that are normalized together.
    weight, bias : array, shape (normalized_shape), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last; `batch_norm` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.

    Returns
    -------
    array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``, of the dtype of `x`.

    Raises
    ------
    ValueError
        While a program is traced: a shape does not fit, `normalized_shape` is empty, `eps` is
        negative or not finite, `activation` is not one of the names, `negative_slope` is not
        finite.
    TypeError
        A dtype does not fit, or an argument is not an array; `activation` is not a string.
    """
    applied = residual, activation, negative_slope
    return normalized_rows(x, normalized_shape, weight, bias, eps, *applied, centered=True)


def rms_norm(
    x: Any, normalized_shape: Shape, weight: Any = None, *, eps: float | None = None,
    residual: Any = None, activation: str | None = None, negative_slope: float = 0.01,
) -> jax.Array:  # fmt: skip
    """Divide each example of `x` by the root of the mean of its squares.

    Parameters
    ----------
    x : array, shape (*, normalized_shape)
        As for `layer_norm`.
    normalized_shape : int or sequence of int
        Lengths of the trailing axes that are normalized together.
    weight : array, shape (normalized_shape), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 if not given.
    eps : float, optional
        Added to the mean of squares. If not given, the machine epsilon of the arithmetic: 2**-52
        for float64, 2**-23 for all others.
    residual, activation, negative_slope
        As for `layer_norm`.

    Returns
    -------
    array, shape of `x`
        ``act(x / sqrt(mean(x * x) + eps) * weight + residual)``, of the dtype of `x`.

    Raises
    ------
    ValueError, TypeError
        As `layer_norm`.
    """
    applied = residual, activation, negative_slope
    return normalized_rows(x, normalized_shape, weight, None, eps, *applied, centered=False)


def normalized_rows(
    x: Any, normalized_shape: Any, weight: Any, bias: Any, eps: Any, residual: Any = None,
    activation: str | None = None, negative_slope: float = 0.01, *, centered: bool,
) -> jax.Array:  # fmt: skip
    """Do `layer_norm`; not centered `rms_norm`, with a bias if wanted."""
    _core.check_activation(activation)
    if x is None:
        raise TypeError("x: expected an array, got None")
    x, weight, bias, residual = arrays_of(x=x, weight=weight, bias=bias, residual=residual)
    shape = _core.check_normalized_shape(normalized_shape)
    if eps is None:
        eps = 2.0**-52 if x.dtype == jnp.float64 else 2.0**-23
    eps = _core.check_eps(eps)
    arrays = described({"x": x, "weight": weight, "bias": bias, "residual": residual})
    _core.check_described("rows", arrays, 0, eps, normalized_shape=shape)
    how = examples.Rows(
        eps=eps, first=x.ndim - len(shape), centered=centered, weight=weight is not None,
        bias=bias is not None, activation=None if activation == "none" else activation,
        negative_slope=_core.check_negative_slope(negative_slope), residual=residual is not None,
    )  # fmt: skip
    return examples.normalized(how, x, weight, bias, residual)
