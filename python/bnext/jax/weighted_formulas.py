"""The passes of `weighted` in JAX's own operations, to be differentiated, as in `formulas`."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from bnext.jax import formulas
from bnext.jax.foreign import How, add_parts

__all__ = ["backward", "backward_given", "forward", "forward_given", "moments_gradient"]


class Weights(NamedTuple):
    """The weights of positions, so that they broadcast against x."""

    counts: Any
    weights: Any

    @classmethod
    def of(cls, how: How, positions: Any, x: Any) -> Weights:
        beside = jnp.expand_dims(positions, how.channel_axis)
        counts = beside if beside.dtype == np.bool_ else ~(beside <= 0)  # NaN counts
        return cls(counts, beside.astype(formulas.param_dtype(x)))

    def select(self, values: Any) -> Any:
        """Give the values where positions count, and 0 elsewhere."""
        return jnp.where(self.counts, values, jnp.zeros_like(values))


def _sum(how: How, values: Any) -> Any:
    return values.sum([a for a in range(values.ndim) if a != how.channel_axis])


def _mean(how: How, values: Any, count: Any) -> Any:
    """Sum values of the whole batch, by its weight."""
    return add_parts(how, _sum(how, values)) / jnp.where(count == 0, 1, count)


def _deviations(how: How, x: Any, values: Any) -> Any:
    """Give x about the mean that the kernels have found."""
    deviations = x.astype(values.dtype) - formulas.per_channel(how, values[0], x)
    return deviations - formulas.per_channel(how, values[formulas.LOW], x)


def _standardized(
    how: How, x: Any, values: Any, weights: Weights, count: Any
) -> tuple[Any, Any, Any, Any]:
    """Give the normalized values, the mean about the kernels' mean, the variance and rstd."""
    deviations = weights.select(_deviations(how, x, lax.stop_gradient(values)))
    mean = _mean(how, weights.weights * deviations, count)
    deviations = weights.select(deviations - formulas.per_channel(how, mean, x))
    var = _mean(how, weights.weights * (deviations * deviations), count)
    rstd = formulas.rstd_of(how.eps, var)
    return deviations * formulas.per_channel(how, rstd, x), mean, var, rstd


def _affine(how: How, xhat: Any, weight: Any, bias: Any) -> Any:
    y = xhat if weight is None else xhat * formulas.per_channel(how, weight, xhat)
    return y if bias is None else y + formulas.per_channel(how, bias, xhat)


def forward(
    how: How, x: Any, weight: Any, bias: Any, positions: Any, values: Any, count: Any
) -> tuple[Any, Any, Any]:
    """Give y, 0 where positions do not count; the mean about the kernels' mean, and m2."""
    weights = Weights.of(how, positions, x)
    xhat, mean, var, _ = _standardized(how, x, values, weights, count)
    y = weights.select(_affine(how, xhat, weight, bias))
    return y.astype(x.dtype), mean, var * count


def backward(
    how: How, dy: Any, x: Any, weight: Any, positions: Any, values: Any, count: Any
) -> tuple[Any, Any, Any]:
    """Give dx, dweight and dbias; the parameters' gradients are this part's."""
    weights = Weights.of(how, positions, x)
    xhat, _, _, rstd = _standardized(how, x, values, weights, count)
    g = weights.select(dy.astype(xhat.dtype))
    shares = formulas.per_channel(how, _mean(how, g, count), x)
    shares = shares + xhat * formulas.per_channel(how, _mean(how, g * xhat, count), x)
    scale = rstd if weight is None else rstd * weight
    dx = (g - weights.weights * shares) * formulas.per_channel(how, scale, x)
    return weights.select(dx).astype(x.dtype), _sum(how, g * xhat), _sum(how, g)


def moments_gradient(
    how: How, gradient: Any, x: Any, positions: Any, values: Any, count: Any
) -> Any:
    """Give dx from the gradient by the mean and by m2."""
    weights = Weights.of(how, positions, x)
    of_mean = gradient[0] / jnp.where(count == 0, 1, count)
    dx = formulas.per_channel(how, of_mean, x)
    dx = dx + 2 * formulas.per_channel(how, gradient[1], x) * _deviations(how, x, values)
    return weights.select(weights.weights * dx).astype(x.dtype)


# --- statistics that are given --------------------------------------------------------------------


def forward_given(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, positions: Any
) -> Any:
    """Give y, 0 where positions do not count."""
    weights = Weights.of(how, positions, x)
    xhat = _standardized_given(how, x, mean, var, weights)
    return weights.select(_affine(how, xhat, weight, bias)).astype(x.dtype)


def _standardized_given(how: How, x: Any, mean: Any, var: Any, weights: Weights) -> Any:
    deviations = weights.select(x.astype(mean.dtype) - formulas.per_channel(how, mean, x))
    return deviations * formulas.per_channel(how, formulas.rstd_of(how.eps, var), x)


def backward_given(
    how: How, dy: Any, x: Any, mean: Any, var: Any, weight: Any, positions: Any
) -> tuple[Any, ...]:
    """Give dx, dmean, dvar, dweight and dbias."""
    weights = Weights.of(how, positions, x)
    xhat = _standardized_given(how, x, mean, var, weights)
    g = weights.select(dy.astype(xhat.dtype))
    rstd = formulas.rstd_of(how.eps, var)
    scale = rstd if weight is None else rstd * weight
    dweight, dbias = _sum(how, g * xhat), _sum(how, g)
    dx = (g * formulas.per_channel(how, scale, x)).astype(x.dtype)
    return dx, *formulas.given_gradients(how, var, weight, dweight, dbias), dweight, dbias
