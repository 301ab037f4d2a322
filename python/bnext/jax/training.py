"""Normalization by the batch's own statistics, and its derivatives.

`normalized` has the kernels' backward pass as its gradient. Both passes, by themselves, have
tangents from the formulas, so that a gradient can be differentiated again, in either mode.
`positions` are what `bnext.jax.weighting` makes of masks and weights, or None.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnext.jax import formulas
from bnext.jax.foreign import (
    ROWS,
    SHARD_ROWS,
    How,
    Struct,
    add_parts,
    call,
    gathered,
    shards_of,
    together,
    varying_axes,
    words,
    words_of_flags,
    words_of_total,
)
from bnext.jax.partition import Arrays, across, alike, phase
from bnext.jax.weighting import in_arguments, named

__all__ = ["no_tangent", "normalized", "shown", "shown_in_reverse"]


def no_tangent(array: Any) -> Any:
    """Give the tangent of words and flags, which have none."""
    return array if array is None else np.zeros(array.shape, jax.dtypes.float0)


class Left(NamedTuple):
    """What a forward pass leaves. None where there is nothing of the kind.

    Attributes
    ----------
    statistics : array
        Rows of the whole batch, as words.
    values : array
        What is shown of them: rows of the mean, m2 and the mean's low part.
    shards : array or None
        Moments of all parts of the batch, as words.
    flags : array or None
        A bit for every value, of an activation.
    count, total : array or None
        The sum of weights of the whole batch, as a number and as words; None where all positions
        count.
    """

    statistics: Any
    values: Any
    shards: Any
    flags: Any
    count: Any
    total: Any

    def tangents(self, of_values: Any) -> Left:
        """Give the tangents of all, by the tangents of the values."""
        return Left(
            no_tangent(self.statistics), of_values, no_tangent(self.shards), no_tangent(self.flags),
            None if self.count is None else jnp.zeros_like(self.count), no_tangent(self.total),
        )  # fmt: skip


# --- statistics of parts --------------------------------------------------------------------------


def _of_count(how: How, x: Any) -> dict[str, Struct]:
    """Describe the sum of weights."""
    if how.masked is None:
        return {}
    return {"count": ((), formulas.param_dtype(x)), "total": words()}


def _of_values(how: How, x: Any) -> dict[str, Struct]:
    """Describe statistics."""
    channels = x.shape[how.channel_axis]
    values = (3, channels), formulas.param_dtype(x)
    return {"statistics": words(ROWS, channels), "values": values, **_of_count(how, x)}


def _collect(how: How, arguments: Arrays) -> Arrays:
    """Give the statistics of the whole batch, and all parts' moments, the shards."""
    x = arguments["x"]
    inputs = {"x": x, **in_arguments(arguments)}
    part = phase(
        "collect_stats", how, inputs, {"shard": words(SHARD_ROWS, x.shape[how.channel_axis])}
    )
    shards = gathered(how, part["shard"])
    return {**call("merge_shards", how, {"shards": shards}, _of_values(how, x)), "shards": shards}


# --- forward --------------------------------------------------------------------------------------


def _forward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    results: dict[str, Struct] = {"y": (x.shape, x.dtype)}
    if how.keeps_flags:
        results["flags"] = words_of_flags(x)
    if not how.axes:
        return call("forward", how, arguments, results | _of_values(how, x))
    collected = _collect(how, arguments)
    arguments = {**arguments, "statistics": collected["statistics"]}
    return {**phase("apply_norm", how, arguments, results), **collected}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> tuple[Any, Left]:
    """Give y, and what the pass leaves."""
    arguments = {"x": x, "weight": weight, "bias": bias, "residual": residual, **named(positions)}
    results = ["y", "statistics", "values"] + ["flags"] * how.keeps_flags
    found = across(_forward_of, how, arguments, [*results, *_of_count(how, x)])
    return found["y"], Left(*(found.get(name) for name in Left._fields))


@_forward.defjvp
def _forward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    y, left = _forward(how, *primals)
    positions = primals[4]

    def formula(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        return formulas.forward(how, x, weight, bias, residual, positions, left.values, left.count)

    _, (of_y, of_mean, of_m2) = jax.jvp(formula, primals[:4], tangents[:4])
    of_values = jnp.stack([of_mean, of_m2, jnp.zeros_like(of_mean)])
    return (y, left), (of_y, left.tangents(of_values))


# --- backward -------------------------------------------------------------------------------------


def _backward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    channels = x.shape[how.channel_axis]
    data: dict[str, Struct] = {"dx": (x.shape, x.dtype)}
    if how.writes_dresidual:
        data["dresidual"] = x.shape, x.dtype
    vector = (channels,), formulas.param_dtype(x)
    parameters: dict[str, Struct] = {"dweight": vector, "dbias": vector}
    inputs = {name: each for name, each in arguments.items() if name not in ("shards", "total")}
    if not how.axes:
        return call("backward", how, inputs, data | parameters)
    found = phase("backward_reduce", how, inputs, {"sums": words(2, channels)} | parameters)
    # A program of jit's has no moments of shards, and gradients of the whole batch.
    shards, total = arguments.get("shards"), arguments.get("total")
    results = data if shards is not None else data | parameters
    if total is None:
        total = words_of_total(formulas.count_of(how, x))
    inputs |= {
        "sums": gathered(how, found["sums"]),
        "shards": shards_of(how, total, channels) if shards is None else shards,
    }
    return {**found, **phase("backward_apply", how, inputs, results)}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any, positions: Any, left: Left
) -> tuple[Any, Any, Any, Any]:
    """Give dx, dweight, dbias and dresidual (None without a residual)."""
    arguments = {
        "x": x, "dy": dy, "weight": weight, "bias": bias, "residual": residual, **named(positions),
        "statistics": left.statistics, "shards": left.shards, "flags": left.flags,
        "total": left.total,
    }  # fmt: skip
    results = ["dx", "dweight", "dbias"] + ["dresidual"] * how.writes_dresidual
    found = across(_backward_of, how, arguments, results)
    dresidual = found.get("dresidual", dy) if how.residual else None
    return found["dx"], found["dweight"], found["dbias"], dresidual


@_backward.defjvp
def _backward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    positions, left = primals[5:]

    def formula(dy: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        *gradients, dresidual = formulas.backward(
            how, dy, x, weight, bias, residual, positions, left.values, left.count, left.flags
        )
        return *gradients, dresidual if how.residual else None

    _, of_results = jax.jvp(formula, primals[:5], tangents[:5])
    return _backward(how, *primals), of_results


# --- both -----------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> tuple[Any, Any, Any]:
    y, left = _forward(how, x, weight, bias, residual, positions)
    return y, left.values, left.count


def _normalized_forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, left = _forward(how, x, weight, bias, residual, positions)
    read = residual if how.reads_residual else None
    offset = None if how.activation is None or how.keeps_flags else bias
    has_bias = None if bias is None else ()  # a structure, since values would be traced
    return (y, left.values, left.count), (x, weight, offset, read, positions, left, has_bias)


def _normalized_backward(how: How, saved: tuple[Any, ...], gradients: Any) -> tuple[Any, ...]:
    *inputs, has_bias = saved
    dx, dweight, dbias, dresidual = _backward(how, gradients[0], *inputs)
    of_weight = None if inputs[1] is None else dweight
    return dx, of_weight, None if has_bias is None else dbias, dresidual, None


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
    return formulas.moments_gradient(how, gradient, *saved), None, None, None


_of.defvjp(_of_forward, _of_backward)


def normalized(
    how: How, x: Any, weight: Any, bias: Any, residual: Any, positions: Any = None
) -> tuple[Any, Any, Any]:
    """Give y, what is shown of the statistics, and the weight of the batch.

    What is shown are rows of the mean, m2 and the mean's low part. The weight is None where all
    positions count.
    """
    names = "x", "weight", "bias", "residual", *named(positions)
    arrays = together(x, weight, bias, residual, *named(positions).values())
    x, weight, bias, residual, *rest = alike(how, **dict(zip(names, arrays, strict=True)))
    positions = rest[0] if rest else None
    y, values, count = _normalized(how, x, weight, bias, residual, positions)
    count = count if count is None else lax.stop_gradient(count)
    return y, _of(how, x, positions, values, count), count


# --- statistics alone -----------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _shown(how: How, x: Any, positions: Any) -> tuple[Any, Any]:
    results = ["values"] + ["count"] * (positions is not None)
    found = across(_collect, how, {"x": x, **named(positions)}, results)
    return found["values"], found.get("count")


@_shown.defjvp
def _shown_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    values, count = _shown(how, *primals)

    def formula(x: Any) -> Any:
        _, mean, m2 = formulas.forward(how, x, None, None, None, primals[1], values, count)
        return jnp.stack([mean, m2, jnp.zeros_like(mean)])

    of_values = jax.jvp(formula, primals[:1], tangents[:1])[1]
    return (values, count), (of_values, None if count is None else jnp.zeros_like(count))


def shown(how: How, x: Any, positions: Any = None) -> tuple[Any, Any]:
    """Give the rows of statistics of x that are shown, and the weight of the batch."""
    arrays = together(x, *named(positions).values())
    found: tuple[Any, Any] = _shown(how, *arrays, *[None] * (positions is None))
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(how: How, x: Any, positions: Any) -> tuple[Any, Any]:
    """Do `_shown` without a gradient in reverse mode, which `_of` has at a lower price."""
    return _shown(how, x, positions)


def _known_forward(how: How, x: Any, positions: Any) -> tuple[Any, None]:
    return _shown(how, x, positions), None


def _known_backward(how: How, saved: None, gradient: Any) -> tuple[None, None]:
    del how, saved, gradient
    return None, None


_known.defvjp(_known_forward, _known_backward)


def shown_in_reverse(how: How, x: Any, positions: Any) -> tuple[Any, Any]:
    """Do `shown`, with derivatives in reverse mode, and of these in either mode."""
    x, positions = together(x, positions)
    values, count = _known(how, x, positions)
    count = lax.stop_gradient(count)
    return _of(how, x, positions, values, count), count
