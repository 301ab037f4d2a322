"""Both passes in JAX's own operations, to be differentiated.

Kernels compute every value and every first gradient. Tangents, and with them second derivatives,
come from here: the passes as functions of their inputs, statistics included. Values are centred
about the mean that the kernels have found, with its low part, before anything is multiplied, so
that no digits of the deviations are lost to a large mean. Sums over a batch that is held in parts
go over all parts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnext.jax.foreign import How, add_parts

__all__ = [
    "backward", "backward_given", "count_of", "forward", "forward_given", "given_gradients",
    "moments_gradient", "param_dtype", "per_channel", "rstd_of",
]  # fmt: skip

LOW = 2  # the place of the mean's low part among the values that the kernels show


def param_dtype(x: Any) -> Any:
    """Give the dtype of parameters and statistics beside x."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def per_channel(how: How, vector: Any, x: Any) -> Any:
    """Shape a vector of channels so that it broadcasts against x."""
    shape = [1] * x.ndim
    shape[how.channel_axis] = vector.shape[0]
    return vector.reshape(shape)


def count_of(how: How, x: Any) -> int:
    """Give the number of values of a channel, of all parts of the batch."""
    channels = x.shape[how.channel_axis]
    return (x.size // channels if channels else 0) * how.parts


def _sum(how: How, values: Any) -> Any:
    """Add the values of each channel."""
    return values.sum([a for a in range(values.ndim) if a != how.channel_axis])


def _mean(how: How, values: Any) -> Any:
    """Average the values of each channel, of all parts of the batch."""
    return add_parts(how, _sum(how, values)) / max(count_of(how, values), 1)


def rstd_of(eps: float, var: Any) -> Any:
    """``1 / sqrt(var + eps)``, and 0 where both are 0."""
    shifted = var + jnp.asarray(eps, var.dtype)
    positive = shifted > 0
    return jnp.where(positive, lax.rsqrt(jnp.where(positive, shifted, 1)), 0)


def _activated(how: How, z: Any) -> Any:
    match how.activation:
        case None:
            return z
        case "relu":
            return jnp.where(z > 0, z, 0)
        case "relu6":
            return jnp.where(z > 0, jnp.where(z < 6, z, 6), 0)
        case "leaky_relu":
            return jnp.where(z > 0, z, z * how.negative_slope)
        case "silu":
            return z * jax.nn.sigmoid(z)
        case "hardswish":
            return jnp.where(z > -3, jnp.where(z < 3, z * (z + 3) / 6, z), 0)
        case "gelu":
            return jax.nn.gelu(z, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(z, approximate=True)
        case "sigmoid":
            return jax.nn.sigmoid(z)
    return jnp.tanh(z)


def _slope(how: How, z: Any, flags: Any) -> Any:
    """Differentiate the activation: at z, or by the flags that the forward pass has left."""
    if flags is None:
        return jax.jvp(lambda z: _activated(how, z), (z,), (jnp.ones_like(z),))[1]
    bits = (flags[:, None] >> jnp.arange(16, dtype=flags.dtype)) & 1
    other = how.negative_slope if how.activation == "leaky_relu" else 0.0
    ones = bits.reshape(-1)[: z.size].reshape(z.shape) != 0
    return jnp.where(ones, jnp.ones_like(z), jnp.full_like(z, other))


def _standardized(how: How, x: Any, values: Any) -> tuple[Any, Any, Any, Any]:
    """Give the normalized values, the mean about the kernels' mean, the variance and rstd."""
    pilot = lax.stop_gradient(values)
    deviations = x.astype(pilot.dtype) - per_channel(how, pilot[0], x)
    deviations = deviations - per_channel(how, pilot[LOW], x)
    mean = _mean(how, deviations)  # small; the pilot has no derivative, so this has the mean's
    deviations = deviations - per_channel(how, mean, x)
    var = _mean(how, deviations * deviations)
    rstd = rstd_of(how.eps, var)
    return deviations * per_channel(how, rstd, x), mean, var, rstd


def _affine(how: How, xhat: Any, weight: Any, bias: Any, residual: Any) -> Any:
    """Give z, which the activation is applied to."""
    z = xhat if weight is None else xhat * per_channel(how, weight, xhat)
    z = z if bias is None else z + per_channel(how, bias, xhat)
    return z if residual is None else z + residual.astype(z.dtype)


def forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, values: Any
) -> tuple[Any, Any, Any]:
    """Give y, the mean about the kernels' mean, and m2."""
    xhat, mean, var, _ = _standardized(how, x, values)
    z = _affine(how, xhat, weight, bias, residual)
    return _activated(how, z).astype(x.dtype), mean, var * count_of(how, x)


def backward(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any, values: Any, flags: Any
) -> tuple[Any, Any, Any, Any]:
    """Give dx, dweight, dbias and dresidual; the parameters' gradients are this part's."""
    xhat, _, _, rstd = _standardized(how, x, values)
    g = dy.astype(xhat.dtype)
    if how.activation is not None:
        g = g * _slope(how, _affine(how, xhat, weight, bias, residual), flags)
    centred = g - per_channel(how, _mean(how, g), x)
    dx = centred - xhat * per_channel(how, _mean(how, centred * xhat), x)
    scale = rstd if weight is None else rstd * weight
    of_weight = g if how.axes else centred  # xhat adds up to 0 over all parts
    dx = dx * per_channel(how, scale, x)
    return dx.astype(x.dtype), _sum(how, of_weight * xhat), _sum(how, g), g.astype(x.dtype)


def moments_gradient(how: How, gradient: Any, x: Any, values: Any) -> Any:
    """Give dx from the gradient by the mean and by m2."""
    deviations = x.astype(values.dtype) - per_channel(how, values[0], x)
    deviations = deviations - per_channel(how, values[LOW], x)
    of_mean = gradient[0] / max(count_of(how, x), 1)
    dx = per_channel(how, of_mean, x) + 2 * per_channel(how, gradient[1], x) * deviations
    return dx.astype(x.dtype)


# --- statistics that are given --------------------------------------------------------------------


def _standardized_given(how: How, x: Any, mean: Any, var: Any) -> tuple[Any, Any]:
    rstd = rstd_of(how.eps, var)
    deviations = x.astype(mean.dtype) - per_channel(how, mean, x)
    return deviations * per_channel(how, rstd, x), rstd


def forward_given(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any
) -> Any:
    """Give y."""
    xhat, _ = _standardized_given(how, x, mean, var)
    z = _affine(how, xhat, weight, bias, residual)
    return _activated(how, z).astype(x.dtype)


def backward_given(
    how: How, dy: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any,
    flags: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Give dx, dmean, dvar, dweight, dbias and dresidual."""
    xhat, rstd = _standardized_given(how, x, mean, var)
    g = dy.astype(xhat.dtype)
    if how.activation is not None:
        g = g * _slope(how, _affine(how, xhat, weight, bias, residual), flags)
    scale = rstd if weight is None else rstd * weight
    dweight, dbias = _sum(how, g * xhat), _sum(how, g)
    dx = (g * per_channel(how, scale, x)).astype(x.dtype)
    of_statistics = given_gradients(how, var, weight, dweight, dbias)
    return dx, *of_statistics, dweight, dbias, g.astype(x.dtype)


def given_gradients(how: How, var: Any, weight: Any, dweight: Any, dbias: Any) -> tuple[Any, Any]:
    """Give dmean and dvar from the gradients of the parameters."""
    rstd = rstd_of(how.eps, var)
    scale = rstd if weight is None else rstd * weight
    return -scale * dbias, -0.5 * scale * rstd * dweight
