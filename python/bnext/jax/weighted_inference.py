"""Normalization over positions with weights, by statistics that are given, and its derivatives."""

from __future__ import annotations

import functools
from typing import Any

import jax

from bnext.jax import formulas, weighted_formulas
from bnext.jax.foreign import ROWS, How, Struct, together, words
from bnext.jax.training import no_tangent
from bnext.jax.weighted import Weighted
from bnext.jax.weighting import Positions

__all__ = ["normalized_by"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalize(
    of: Weighted, x: Any, mean: Any, var: Any, weight: Any, bias: Any, positions: Any
) -> tuple[Any, Any]:
    """Give y and the statistics."""
    channels = x.shape[of.how.channel_axis]
    arguments = {"x": x, "mean": mean, "var": var, "weight": weight, "bias": bias}
    results: dict[str, Struct] = {"y": (x.shape, x.dtype), "statistics": words(ROWS, channels)}
    found = of.call("normalize", arguments, positions, results)
    return found["y"], found["statistics"]


@_normalize.defjvp
def _normalize_jvp(of: Weighted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    results = _normalize(of, *primals)
    positions = primals[5]

    def formula(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
        return weighted_formulas.forward_given(of.how, x, mean, var, weight, bias, positions)

    _, of_y = jax.jvp(formula, primals[:5], tangents[:5])
    return results, (of_y, no_tangent(results[1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalize_backward(
    of: Weighted, dy: Any, x: Any, mean: Any, var: Any, weight: Any, positions: Any,
    statistics: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Give dx, dmean, dvar, dweight and dbias."""
    arguments = {"x": x, "dy": dy, "weight": weight, "statistics": statistics}
    vector = (x.shape[of.how.channel_axis],), formulas.param_dtype(x)
    results: dict[str, Struct] = {"dx": (x.shape, x.dtype), "dweight": vector, "dbias": vector}
    found = of.call("backward_given", arguments, positions, results)
    dweight, dbias = found["dweight"], found["dbias"]
    of_statistics = formulas.given_gradients(of.how, var, weight, dweight, dbias)
    return found["dx"], *of_statistics, dweight, dbias


@_normalize_backward.defjvp
def _normalize_backward_jvp(of: Weighted, primals: Any, tangents: Any) -> tuple[Any, Any]:
    positions = primals[5]

    def formula(dy: Any, x: Any, mean: Any, var: Any, weight: Any) -> Any:
        return weighted_formulas.backward_given(of.how, dy, x, mean, var, weight, positions)

    _, of_results = jax.jvp(formula, primals[:5], tangents[:5])
    return _normalize_backward(of, *primals), of_results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized_by(
    of: Weighted, x: Any, mean: Any, var: Any, weight: Any, bias: Any, positions: Any
) -> Any:
    return _normalize(of, x, mean, var, weight, bias, positions)[0]


def _normalized_by_forward(
    of: Weighted, x: Any, mean: Any, var: Any, weight: Any, bias: Any, positions: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, statistics = _normalize(of, x, mean, var, weight, bias, positions)
    has_bias = None if bias is None else ()
    return y, (x, mean, var, weight, positions, statistics, has_bias)


def _normalized_by_backward(of: Weighted, saved: tuple[Any, ...], dy: Any) -> tuple[Any, ...]:
    *inputs, has_bias = saved
    dx, dmean, dvar, dweight, dbias = _normalize_backward(of, dy, *inputs)
    of_weight = None if inputs[3] is None else dweight
    return dx, dmean, dvar, of_weight, None if has_bias is None else dbias, None


_normalized_by.defvjp(_normalized_by_forward, _normalized_by_backward)


def normalized_by(
    how: How, x: Any, mean: Any, var: Any, weight: Any, bias: Any, positions: Positions
) -> Any:
    """Give y."""
    arrays = together(x, mean, var, weight, bias, positions.values)
    return _normalized_by(Weighted(how, positions.outside), *arrays)
