"""Normalization by statistics that are given, and its derivatives, by the statistics too."""

from __future__ import annotations

import functools
from typing import Any

import jax

from bnext.jax import formulas
from bnext.jax.foreign import ROWS, How, Struct, add_parts, call, together, words, words_of_flags
from bnext.jax.partition import Arrays, across, alike
from bnext.jax.training import no_tangent
from bnext.jax.weighting import named

__all__ = ["normalized_by"]


def _forward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    results: dict[str, Struct] = {
        "y": (x.shape, x.dtype), "statistics": words(ROWS, x.shape[how.channel_axis])
    }  # fmt: skip
    if how.keeps_flags:
        results["flags"] = words_of_flags(x)
    return call("normalize", how, arguments, results)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> tuple[Any, Any, Any]:
    """Give y, the statistics and flags."""
    arguments = {
        "x": x, "mean": mean, "var": var, "weight": weight, "bias": bias, "residual": residual,
        **named(positions),
    }  # fmt: skip
    results = ["y", "statistics"] + ["flags"] * how.keeps_flags
    found = across(_forward_of, how, arguments, results)
    return found["y"], found["statistics"], found.get("flags")


@_forward.defjvp
def _forward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = _forward(how, *primals)
    positions = primals[6]

    def formula(x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any) -> Any:
        return formulas.forward_given(how, x, mean, var, weight, bias, residual, positions)

    _, of_y = jax.jvp(formula, primals[:6], tangents[:6])
    return results, (of_y, no_tangent(results[1]), no_tangent(results[2]))


def _backward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    vector = (x.shape[how.channel_axis],), formulas.param_dtype(x)
    results: dict[str, Struct] = {"dx": (x.shape, x.dtype), "dweight": vector, "dbias": vector}
    if how.writes_dresidual:
        results["dresidual"] = x.shape, x.dtype
    found = call("backward_given", how, arguments, results)
    return found | {name: add_parts(how, found[name]) for name in ("dweight", "dbias")}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    how: How, dy: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any,
    positions: Any, statistics: Any, flags: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Give dx, dmean, dvar, dweight, dbias and dresidual (None without a residual)."""
    arguments = {
        "x": x, "dy": dy, "weight": weight, "bias": bias, "residual": residual, **named(positions),
        "statistics": statistics, "flags": flags,
    }  # fmt: skip
    results = ["dx", "dweight", "dbias"] + ["dresidual"] * how.writes_dresidual
    found = across(_backward_of, how, arguments, results)
    dweight, dbias = found["dweight"], found["dbias"]
    of_statistics = formulas.given_gradients(how, var, weight, dweight, dbias)
    dresidual = found.get("dresidual", dy) if how.residual else None
    return found["dx"], *of_statistics, dweight, dbias, dresidual


@_backward.defjvp
def _backward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    positions, _, flags = primals[7:]

    def formula(dy: Any, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any) -> Any:
        inputs = dy, x, mean, var, weight, bias, residual
        *gradients, dresidual = formulas.backward_given(how, *inputs, positions, flags)
        return *gradients, dresidual if how.residual else None

    _, of_results = jax.jvp(formula, primals[:7], tangents[:7])
    return _backward(how, *primals), of_results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized_by(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> Any:
    return _forward(how, x, mean, var, weight, bias, residual, positions)[0]


def _normalized_by_forward(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, statistics, flags = _forward(how, x, mean, var, weight, bias, residual, positions)
    read = residual if how.reads_residual else None
    offset = None if how.activation is None or how.keeps_flags else bias
    has_bias = None if bias is None else ()  # a structure, since values would be traced
    saved = (x, mean, var, weight, offset, read, positions, statistics, flags, has_bias)
    return y, saved


def _normalized_by_backward(how: How, saved: tuple[Any, ...], dy: Any) -> tuple[Any, ...]:
    *inputs, has_bias = saved
    dx, dmean, dvar, dweight, dbias, dresidual = _backward(how, dy, *inputs)
    of_weight = None if inputs[3] is None else dweight
    return dx, dmean, dvar, of_weight, None if has_bias is None else dbias, dresidual, None


_normalized_by.defvjp(_normalized_by_forward, _normalized_by_backward)


def normalized_by(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any, positions: Any
) -> Any:
    """Give y."""
    names = "x", "mean", "var", "weight", "bias", "residual", *named(positions)
    arrays = together(x, mean, var, weight, bias, residual, *named(positions).values())
    inputs = alike(how, **dict(zip(names, arrays, strict=True)))
    return _normalized_by(how, *inputs, *[None] * (positions is None))
