"""Normalization by the batch's own statistics, and its derivatives.

`normalized` has the kernels' backward pass as its gradient. Both passes, by themselves, have
tangents from the formulas, so that a gradient can be differentiated again, in either mode.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnext.jax import formulas
from bnext.jax.foreign import (
    ROWS,
    SHARD_ROWS,
    How,
    add_parts,
    call,
    even_shards,
    gathered,
    together,
    varying_axes,
    words,
    words_of_flags,
)
from bnext.jax.partition import Arrays, across, alike, phase

__all__ = ["no_tangent", "normalized", "shown"]


def no_tangent(array: Any) -> Any:
    """Give the tangent of words and flags, which have none."""
    return array if array is None else np.zeros(array.shape, jax.dtypes.float0)


# --- statistics of parts --------------------------------------------------------------------------


def _collect(how: How, x: Any) -> tuple[Any, Any, Any]:
    """Give the statistics of the whole batch, what is shown of them, and all parts' moments."""
    channels = x.shape[how.channel_axis]
    part = phase("collect_stats", how, {"x": x}, {"shard": words(SHARD_ROWS, channels)})
    shards = gathered(how, part["shard"])
    dtype = formulas.param_dtype(x)
    statistics, values = call(
        "merge_shards", how, {"shards": shards},
        {"statistics": words(ROWS, channels), "values": ((3, channels), dtype)},
    )  # fmt: skip
    return statistics, values, shards


# --- forward --------------------------------------------------------------------------------------


def _forward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    results: dict[str, Any] = {"y": (x.shape, x.dtype)}
    if how.keeps_flags:
        results["flags"] = words_of_flags(x)
    if not how.axes:
        channels = x.shape[how.channel_axis]
        results["statistics"] = words(ROWS, channels)
        results["values"] = (3, channels), formulas.param_dtype(x)
        return dict(zip(results, call("forward", how, arguments, results), strict=True))
    statistics, values, shards = _collect(how, x)
    arguments = {**arguments, "statistics": statistics}
    found = phase("apply_norm", how, arguments, results)
    return {**found, "statistics": statistics, "values": values, "shards": shards}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> tuple[Any, ...]:
    """Give y, the statistics and what is shown of them; of parts their moments, and flags."""
    arguments = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    results = ["y", "statistics", "values"] + ["flags"] * how.keeps_flags
    found = across(_forward_of, how, arguments, results)
    every = ("y", "statistics", "values", "shards", "flags")
    return tuple(found.get(name) for name in every)


@_forward.defjvp
def _forward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = _forward(how, *primals)
    _, statistics, values, shards, flags = results

    def formula(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        return formulas.forward(how, x, weight, bias, residual, values)

    _, (of_y, of_mean, of_m2) = jax.jvp(formula, primals, tangents)
    of_values = jnp.stack([of_mean, of_m2, jnp.zeros_like(of_mean)])
    return results, (of_y, no_tangent(statistics), of_values, no_tangent(shards), no_tangent(flags))


# --- backward -------------------------------------------------------------------------------------


def _backward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    channels = x.shape[how.channel_axis]
    data = {"dx": (x.shape, x.dtype)}
    if how.writes_dresidual:
        data["dresidual"] = x.shape, x.dtype
    vector = (channels,), formulas.param_dtype(x)
    parameters = {"dweight": vector, "dbias": vector}
    if not how.axes:
        results = data | parameters
        return dict(zip(results, call("backward", how, arguments, results), strict=True))
    inputs = {name: array for name, array in arguments.items() if name != "shards"}
    results = {"sums": words(2, channels)} | parameters
    found = phase("backward_reduce", how, inputs, results)
    # A program of jit's has no moments of shards, and gradients of the whole batch.
    shards = arguments.get("shards")
    results = data if shards is not None else data | parameters
    inputs |= {
        "sums": gathered(how, found["sums"]),
        "shards": even_shards(how, x) if shards is None else shards,
    }
    return {**found, **phase("backward_apply", how, inputs, results)}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any, statistics: Any, values: Any,
    shards: Any, flags: Any,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Give dx, dweight, dbias and dresidual (None without a residual)."""
    del values
    arguments = {
        "x": x, "dy": dy, "weight": weight, "bias": bias, "residual": residual,
        "statistics": statistics, "shards": shards, "flags": flags,
    }  # fmt: skip
    results = ["dx", "dweight", "dbias"] + ["dresidual"] * how.writes_dresidual
    found = across(_backward_of, how, arguments, results)
    dresidual = found.get("dresidual", dy) if how.residual else None
    return found["dx"], found["dweight"], found["dbias"], dresidual


@_backward.defjvp
def _backward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    *_, values, _, flags = primals

    def formula(dy: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        inputs = dy, x, weight, bias, residual
        *gradients, dresidual = formulas.backward(how, *inputs, values, flags)
        return *gradients, dresidual if how.residual else None

    _, of_results = jax.jvp(formula, primals[:5], tangents[:5])
    return _backward(how, *primals), of_results


# --- both -----------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> tuple[Any, Any]:
    y, _, values, *_ = _forward(how, x, weight, bias, residual)
    return y, values


def _normalized_forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, statistics, values, shards, flags = _forward(how, x, weight, bias, residual)
    read = residual if how.reads_residual else None
    offset = None if how.activation is None or how.keeps_flags else bias
    has_bias = None if bias is None else ()  # a structure, since values would be traced
    return (y, values), (x, weight, offset, read, statistics, values, shards, flags, has_bias)


def _normalized_backward(how: How, saved: tuple[Any, ...], gradients: Any) -> tuple[Any, ...]:
    *inputs, has_bias = saved
    dx, dweight, dbias, dresidual = _backward(how, gradients[0], *inputs)
    of_weight = None if inputs[1] is None else dweight
    return dx, of_weight, None if has_bias is None else dbias, dresidual


_normalized.defvjp(_normalized_forward, _normalized_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of(how: How, x: Any, values: Any) -> Any:
    """Give the values, as statistics of x that a gradient goes through."""
    del how, x
    return values


def _of_forward(how: How, x: Any, values: Any) -> tuple[Any, Any]:
    del how
    return values, (x, values)


def _of_backward(how: How, saved: Any, gradient: Any) -> tuple[Any, None]:
    x, values = saved
    if not varying_axes(x):
        # Without knowledge of what is the same everywhere, each part has a share of the gradient.
        gradient = add_parts(how, gradient)
    return formulas.moments_gradient(how, gradient, x, values), None


_of.defvjp(_of_forward, _of_backward)


def normalized(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> tuple[Any, Any]:
    """Give y, and what is shown of the statistics: rows of the mean, m2 and the mean's low part."""
    x, weight, bias, residual = together(x, weight, bias, residual)
    x, weight, bias, residual = alike(how, x=x, weight=weight, bias=bias, residual=residual)
    y, values = _normalized(how, x, weight, bias, residual)
    return y, _of(how, x, values)


# --- statistics alone -----------------------------------------------------------------------------


def _shown_of(how: How, arguments: Arrays) -> Arrays:
    return {"values": _collect(how, arguments["x"])[1]}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def shown(how: How, x: Any) -> Any:
    """Give what is shown of the statistics of x."""
    return across(_shown_of, how, {"x": x}, ["values"])["values"]


@shown.defjvp
def _shown_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    values = shown(how, *primals)

    def formula(x: Any) -> Any:
        _, mean, m2 = formulas.forward(how, x, None, None, None, values)
        return jnp.stack([mean, m2, jnp.zeros_like(mean)])

    return values, jax.jvp(formula, primals, tangents)[1]
