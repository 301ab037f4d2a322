"""Both passes of batch normalization over positions with weights, and their derivatives.

As `training`, with n the sum of the weights of positions that count. What other
positions have is selected away, and has gradients of 0.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnext.jax import formulas, weighted_formulas
from bnext.jax.foreign import (
    ROWS,
    SHARD_ROWS,
    How,
    Struct,
    add_parts,
    call_by,
    gathered,
    together,
    varying_axes,
    words,
)
from bnext.jax.training import no_tangent
from bnext.jax.weighting import Positions

__all__ = ["Weighted", "normalized", "shown", "shown_in_reverse"]


class Weighted(NamedTuple):
    """What of a call is no array; a constant of the program."""

    how: How
    outside: str

    def call(
        self, name: str, arguments: dict[str, Any], positions: Any, results: dict[str, Struct]
    ) -> dict[str, Any]:
        """Call a handler, and give its results by name."""
        kind = "counts" if positions.dtype == np.bool_ else "weights"
        attributes = {**self.how.attributes(), "masked": self.outside}
        found = call_by(name, {**arguments, kind: positions}, results, attributes)
        return dict(zip(results, found, strict=True))


# --- by the batch's own statistics ----------------------------------------------------------------


def _collect(of: Weighted, x: Any, positions: Any) -> tuple[Any, Any, Any, Any]:
    """Give the whole batch's statistics, the rows that are shown, its weight, all moments."""
    channels = x.shape[of.how.channel_axis]
    part = of.call("collect_stats", {"x": x}, positions, {"shard": words(SHARD_ROWS, channels)})
    shards = gathered(of.how, part["shard"])
    dtype = formulas.param_dtype(x)
    statistics, values, count = call_by(
        "merge_shards", {"shards": shards},
        {"statistics": words(ROWS, channels), "values": ((3, channels), dtype),
         "count": ((), dtype)},
        of.how.attributes(),
    )  # fmt: skip
    return statistics, values, count, shards


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(of: Weighted, x: Any, weight: Any, bias: Any, positions: Any) -> tuple[Any, ...]:
    """Give y, the statistics, the rows that are shown, the batch's weight; moments of parts."""
    how = of.how
    arguments = {"x": x, "weight": weight, "bias": bias}
    results: dict[str, Struct] = {"y": (x.shape, x.dtype)}
    if how.axes:
        statistics, values, count, shards = _collect(of, x, positions)
        arguments["statistics"] = statistics
        found = of.call("apply_norm", arguments, positions, results)
        return found["y"], statistics, values, count, shards
    channels, dtype = x.shape[how.channel_axis], formulas.param_dtype(x)
    results["statistics"] = words(ROWS, channels)
    results |= {"values": ((3, channels), dtype), "count": ((), dtype)}
    found = of.call("forward", arguments, positions, results)
    return found["y"], found["statistics"], found["values"], found["count"], None


@_forward.defjvp
def _forward_jvp(of: Weighted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = _forward(of, *primals)
    _, statistics, values, count, shards = results
    positions = primals[3]

    def formula(x: Any, weight: Any, bias: Any) -> Any:
        return weighted_formulas.forward(of.how, x, weight, bias, positions, values, count)

    _, (of_y, of_mean, of_m2) = jax.jvp(formula, primals[:3], tangents[:3])
    of_values = jnp.stack([of_mean, of_m2, jnp.zeros_like(of_mean)])
    nothing = jnp.zeros_like(count)
    return results, (of_y, no_tangent(statistics), of_values, nothing, no_tangent(shards))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    of: Weighted, dy: Any, x: Any, weight: Any, positions: Any, statistics: Any, values: Any,
    count: Any, shards: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Give dx, dweight and dbias."""
    del values, count
    how = of.how
    channels = x.shape[how.channel_axis]
    arguments = {"x": x, "dy": dy, "weight": weight, "statistics": statistics}
    data: dict[str, Struct] = {"dx": (x.shape, x.dtype)}
    vector = (channels,), formulas.param_dtype(x)
    parameters: dict[str, Struct] = {"dweight": vector, "dbias": vector}
    if not how.axes:
        found = of.call("backward", arguments, positions, data | parameters)
    else:
        results = {"sums": words(2, channels)} | parameters
        found = of.call("backward_reduce", arguments, positions, results)
        arguments |= {"sums": gathered(how, found["sums"]), "shards": shards}
        found |= of.call("backward_apply", arguments, positions, data)
    return found["dx"], found["dweight"], found["dbias"]


@_backward.defjvp
def _backward_jvp(of: Weighted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    positions, _, values, count = primals[3:7]

    def formula(dy: Any, x: Any, weight: Any) -> Any:
        return weighted_formulas.backward(of.how, dy, x, weight, positions, values, count)

    _, of_results = jax.jvp(formula, primals[:3], tangents[:3])
    return _backward(of, *primals), of_results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(of: Weighted, x: Any, weight: Any, bias: Any, positions: Any) -> tuple[Any, ...]:
    y, _, values, count, _ = _forward(of, x, weight, bias, positions)
    return y, values, count


def _normalized_forward(
    of: Weighted, x: Any, weight: Any, bias: Any, positions: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, *rest = _forward(of, x, weight, bias, positions)
    has_bias = None if bias is None else ()  # a structure, since values would be traced
    return (y, *rest[1:3]), (x, weight, positions, *rest, has_bias)


def _normalized_backward(of: Weighted, saved: tuple[Any, ...], gradients: Any) -> tuple[Any, ...]:
    *inputs, has_bias = saved
    dx, dweight, dbias = _backward(of, gradients[0], *inputs)
    of_weight = None if inputs[1] is None else dweight
    return dx, of_weight, None if has_bias is None else dbias, None


_normalized.defvjp(_normalized_forward, _normalized_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of(how: How, x: Any, positions: Any, values: Any, count: Any) -> Any:
    """Give the values, as statistics of x that a gradient goes through."""
    del how, x, positions, count
    return values


def _of_forward(how: How, x: Any, positions: Any, values: Any, count: Any) -> tuple[Any, Any]:
    del how
    return values, (x, positions, values, count)


def _of_backward(how: How, saved: Any, gradient: Any) -> tuple[Any, ...]:
    if not varying_axes(saved[0]):
        # Without knowledge of what is the same everywhere, each part has a share of the gradient.
        gradient = add_parts(how, gradient)
    return weighted_formulas.moments_gradient(how, gradient, *saved), None, None, None


_of.defvjp(_of_forward, _of_backward)


def normalized(
    how: How, x: Any, weight: Any, bias: Any, positions: Positions
) -> tuple[Any, Any, Any]:
    """Give y, the rows of statistics that are shown, and the weight of the whole batch."""
    x, weight, bias, of_positions = together(x, weight, bias, positions.values)
    of = Weighted(how, positions.outside)
    y, values, count = _normalized(of, x, weight, bias, of_positions)
    count = lax.stop_gradient(count)
    return y, _of(how, x, of_positions, values, count), count


# --- statistics alone -----------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shown(of: Weighted, x: Any, positions: Any) -> tuple[Any, Any]:
    _, values, count, _ = _collect(of, x, positions)
    return values, count


@_shown.defjvp
def _shown_jvp(of: Weighted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    values, count = _shown(of, *primals)

    def formula(x: Any) -> Any:
        _, mean, m2 = weighted_formulas.forward(of.how, x, None, None, primals[1], values, count)
        return jnp.stack([mean, m2, jnp.zeros_like(mean)])

    of_values = jax.jvp(formula, primals[:1], tangents[:1])[1]
    return (values, count), (of_values, jnp.zeros_like(count))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(of: Weighted, x: Any, positions: Any) -> tuple[Any, Any]:
    """Do `_shown` without a gradient in reverse mode, which `_of` has at a lower price."""
    return _shown(of, x, positions)


def _known_forward(of: Weighted, x: Any, positions: Any) -> tuple[Any, None]:
    return _shown(of, x, positions), None


def _known_backward(of: Weighted, saved: None, gradient: Any) -> tuple[None, None]:
    del of, saved, gradient
    return None, None


_known.defvjp(_known_forward, _known_backward)


def shown_in_reverse(how: How, x: Any, positions: Positions) -> tuple[Any, Any]:
    """Do `shown`, with derivatives in reverse mode, and of these in either mode."""
    x, of_positions = together(x, positions.values)
    values, count = _known(Weighted(how, positions.outside), x, of_positions)
    count = lax.stop_gradient(count)
    return _of(how, x, of_positions, values, count), count


def shown(how: How, x: Any, positions: Positions) -> tuple[Any, Any]:
    """Give the rows of statistics of x that are shown, and the weight of the whole batch."""
    x, of_positions = together(x, positions.values)
    found: tuple[Any, Any] = _shown(Weighted(how, positions.outside), x, of_positions)
    return found
