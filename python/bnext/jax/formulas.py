"""Both passes in JAX's own operations, to be differentiated.

Kernels compute every value and every first gradient. Tangents, and with them second derivatives,
come from here: the passes as functions of their inputs, statistics included. Values are centred
about the mean that the kernels have found, with its low part, before anything is multiplied, so
that no digits of the deviations are lost to a large mean. Sums over a batch that is held in parts
go over all parts. With weights of positions n is their sum; what other positions have is selected
away, and has gradients of 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnext.jax.foreign import How, add_parts

__all__ = [
    "Counting", "activated", "backward", "backward_given", "count_of", "forward", "forward_given",
    "given_gradients", "moments_gradient", "param_dtype", "per_channel", "rstd_of", "slope",
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


class Counting(NamedTuple):
    """How often each position counts, so that it broadcasts against x, and the sum of it all.

    Attributes
    ----------
    counts, weights : array or None
        Whether a position counts, and its weight; None where every position counts once.
    total : array or int
        Of the whole batch.
    """

    counts: Any
    weights: Any
    total: Any

    @classmethod
    def of(cls, how: How, positions: Any, x: Any, total: Any = None) -> Counting:
        """Take positions as `bnext.jax.weighting` makes them, and their sum."""
        if positions is None:
            return cls(None, None, max(count_of(how, x), 1))
        beside = jnp.expand_dims(positions, how.channel_axis)
        counts = beside if beside.dtype == np.bool_ else ~(beside <= 0)  # NaN counts
        total = total if total is None else jnp.where(total == 0, 1, total)
        return cls(counts, beside.astype(param_dtype(x)), total)

    def select(self, values: Any) -> Any:
        """Give the values where positions count, and 0 elsewhere."""
        if self.counts is None:
            return values
        return jnp.where(self.counts, values, jnp.zeros_like(values))

    def times(self, values: Any) -> Any:
        """Give each value as often as it counts."""
        return values if self.weights is None else self.weights * values

    def mean(self, how: How, values: Any) -> Any:
        """Divide the sums of channels, of all parts of the batch, by the sum of weights."""
        return add_parts(how, _sum(how, values)) / self.total


def _sum(how: How, values: Any) -> Any:
    """Add the values of each channel."""
    return values.sum([a for a in range(values.ndim) if a != how.channel_axis])


def rstd_of(eps: float, var: Any) -> Any:
    """``1 / sqrt(var + eps)``, and 0 where both are 0."""
    shifted = var + jnp.asarray(eps, var.dtype)
    positive = shifted > 0
    return jnp.where(positive, lax.rsqrt(jnp.where(positive, shifted, 1)), 0)


class Applied(Protocol):
    """What an activation needs of a call."""

    @property
    def activation(self) -> str | None:
        """Its name."""

    @property
    def negative_slope(self) -> float:
        """Slope of "leaky_relu"."""


def activated(how: Applied, z: Any) -> Any:
    """Apply the activation."""
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


def slope(how: Applied, z: Any, flags: Any = None) -> Any:
    """Differentiate the activation: at z, or by the flags that the forward pass has left."""
    if flags is None:
        return jax.jvp(lambda z: activated(how, z), (z,), (jnp.ones_like(z),))[1]
    if flags.dtype == jnp.uint8:
        ones = flags != 0
    else:
        bits = (flags[:, None] >> jnp.arange(16, dtype=flags.dtype)) & 1
        ones = bits.reshape(-1)[: z.size].reshape(z.shape) != 0
    other = how.negative_slope if how.activation == "leaky_relu" else 0.0
    return jnp.where(ones, jnp.ones_like(z), jnp.full_like(z, other))


def _deviations(how: How, x: Any, values: Any) -> Any:
    """Give x about the mean that the kernels have found."""
    deviations = x.astype(values.dtype) - per_channel(how, values[0], x)
    return deviations - per_channel(how, values[LOW], x)


def _standardized(how: How, x: Any, values: Any, of: Counting) -> tuple[Any, Any, Any, Any]:
    """Give the normalized values, the mean about the kernels' mean, the variance and rstd."""
    deviations = of.select(_deviations(how, x, lax.stop_gradient(values)))
    # Small; what the kernels have found has no derivative, so this has the mean's.
    mean = of.mean(how, of.times(deviations))
    deviations = of.select(deviations - per_channel(how, mean, x))
    var = of.mean(how, of.times(deviations * deviations))
    rstd = rstd_of(how.eps, var)
    return deviations * per_channel(how, rstd, x), mean, var, rstd


def _affine(how: How, xhat: Any, weight: Any, bias: Any, residual: Any) -> Any:
    """Give z, which the activation is applied to."""
    z = xhat if weight is None else xhat * per_channel(how, weight, xhat)
    z = z if bias is None else z + per_channel(how, bias, xhat)
    return z if residual is None else z + residual.astype(z.dtype)


def _through(how: How, dy: Any, z: Any, flags: Any, of: Counting) -> Any:
    """Give the gradient by z; `z` is a function, since not every activation needs it."""
    g = of.select(dy)
    return g if how.activation is None else g * of.select(slope(how, of.select(z()), flags))


def forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, positions: Any, values: Any, total: Any
) -> tuple[Any, Any, Any]:
    """Give y, 0 where positions do not count; the mean about the kernels' mean, and m2."""
    of = Counting.of(how, positions, x, total)
    xhat, mean, var, _ = _standardized(how, x, values, of)
    z = of.select(_affine(how, xhat, weight, bias, residual))
    y = of.select(activated(how, z)).astype(x.dtype)
    return y, mean, var * (count_of(how, x) if positions is None else total)


def backward(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any, positions: Any, values: Any,
    total: Any, flags: Any,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Give dx, dweight, dbias and dresidual; the parameters' gradients are this part's."""
    of = Counting.of(how, positions, x, total)
    xhat, _, _, rstd = _standardized(how, x, values, of)
    dy = dy.astype(xhat.dtype)
    g = _through(how, dy, lambda: _affine(how, xhat, weight, bias, residual), flags, of)
    centred = of.select(g - of.times(per_channel(how, of.mean(how, g), x)))
    share = xhat * per_channel(how, of.mean(how, centred * xhat), x)
    dx = of.select(centred - of.times(share))
    scale = rstd if weight is None else rstd * weight
    of_weight = g if how.axes else centred  # xhat adds up to 0 over all parts
    dx = dx * per_channel(how, scale, x)
    return dx.astype(x.dtype), _sum(how, of_weight * xhat), _sum(how, g), g.astype(x.dtype)


def moments_gradient(
    how: How, gradient: Any, x: Any, positions: Any, values: Any, total: Any
) -> Any:
    """Give dx from the gradient by the mean and by m2."""
    of = Counting.of(how, positions, x, total)
    dx = per_channel(how, gradient[0] / of.total, x)
    dx = dx + 2 * per_channel(how, gradient[1], x) * of.select(_deviations(how, x, values))
    return of.select(of.times(dx)).astype(x.dtype)


# --- statistics that are given --------------------------------------------------------------------


def _standardized_given(how: How, x: Any, mean: Any, var: Any, of: Counting) -> tuple[Any, Any]:
    rstd = rstd_of(how.eps, var)
    deviations = of.select(x.astype(mean.dtype) - per_channel(how, mean, x))
    return deviations * per_channel(how, rstd, x), rstd


def forward_given(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> Any:
    """Give y, 0 where positions do not count."""
    of = Counting.of(how, positions, x)
    xhat, _ = _standardized_given(how, x, mean, var, of)
    z = of.select(_affine(how, xhat, weight, bias, residual))
    return of.select(activated(how, z)).astype(x.dtype)


def backward_given(
    how: How, dy: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any,
    positions: Any, flags: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Give dx, dmean, dvar, dweight, dbias and dresidual."""
    of = Counting.of(how, positions, x)
    xhat, rstd = _standardized_given(how, x, mean, var, of)
    dy = dy.astype(xhat.dtype)
    g = _through(how, dy, lambda: _affine(how, xhat, weight, bias, residual), flags, of)
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
