"""Norms that normalize each example by itself, and their derivatives.

Layer and RMS normalization (`Rows`) and group and instance normalization (`Cells`) are one pair of
passes: values that are normalized together are a slab, and parameters go along some of its axes.
As in `training`, kernels compute values and first gradients, and tangents of both passes come from
formulas in JAX's own operations.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np
from jax import lax

from bnext.jax.foreign import ROWS, Struct, call_by, together, words
from bnext.jax.formulas import param_dtype, rstd_of
from bnext.jax.training import no_tangent

__all__ = ["Cells", "Rows", "normalized"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Layer or RMS normalization of the axes from `first` on; a constant of the program."""

    eps: float
    first: int
    centered: bool
    weight: bool  # whether there is one
    bias: bool

    kind: ClassVar[str] = "rows"

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""
        return {
            "eps": np.float64(self.eps), "first": np.int64(self.first), "centered": self.centered
        }  # fmt: skip

    def statistics(self, x: Any) -> dict[str, Struct]:
        """Describe what the forward pass leaves for the backward pass."""
        rows = int(np.prod(x.shape[: self.first]))
        return {name: words(rows) for name in ("row_mean", "row_mean_low", "row_rstd")}

    def made_gradients(self) -> tuple[str, ...]:
        """Name the gradients of parameters that the kernel makes."""
        if not (self.weight or self.bias):
            return ()
        if self.centered:
            return "dweight", "dbias"
        return ("dweight",) if self.weight else ()

    def slabs(self, x: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shape in which slabs have axes of their own, and these axes."""
        return x.shape, tuple(range(self.first, x.ndim))

    def parameter_axes(self, x: Any) -> tuple[int, ...]:
        """Give the axes of x along which parameters are the same."""
        return tuple(range(self.first)) if x.ndim else ()

    def beside(self, parameter: Any, x: Any) -> Any:
        """Shape a parameter so that it broadcasts against x."""
        del x
        return parameter


@dataclasses.dataclass(frozen=True)
class Cells:
    """Group normalization, or of 0 groups instance normalization; a constant of the program."""

    eps: float
    channel_axis: int  # from the front
    num_groups: int
    weight: bool  # whether there is one
    bias: bool

    kind: ClassVar[str] = "cells"
    centered: ClassVar[bool] = True

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""
        return {
            "eps": np.float64(self.eps), "channel_axis": np.int64(self.channel_axis),
            "num_groups": np.int64(self.num_groups),
        }  # fmt: skip

    def groups(self, x: Any) -> int:
        """Give the number of groups that the channels are divided into."""
        return self.num_groups or max(x.shape[self.channel_axis], 1)

    def statistics(self, x: Any) -> dict[str, Struct]:
        """Describe what the forward pass leaves for the backward pass."""
        return {"statistics": words(ROWS, x.shape[0] * self.groups(x))}

    def made_gradients(self) -> tuple[str, ...]:
        """Name the gradients of parameters that the kernel makes."""
        return ("dweight", "dbias") if self.weight or self.bias else ()

    def slabs(self, x: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shape in which slabs have axes of their own, and these axes."""
        axis, groups = self.channel_axis, self.groups(x)
        shape = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
        return shape, tuple(a for a in range(1, len(shape)) if a != axis)

    def parameter_axes(self, x: Any) -> tuple[int, ...]:
        """Give the axes of x along which parameters are the same."""
        return tuple(a for a in range(x.ndim) if a != self.channel_axis)

    def beside(self, parameter: Any, x: Any) -> Any:
        """Shape a parameter so that it broadcasts against x."""
        return parameter.reshape(-1, *(1,) * (x.ndim - self.channel_axis - 1))


How = Rows | Cells

# --- both passes in JAX's own operations ----------------------------------------------------------


def _standardized(how: How, x: Any) -> tuple[Any, Any]:
    """Give the normalized values, with axes for slabs, and rstd."""
    shape, axes = how.slabs(x)
    values = x.astype(param_dtype(x)).reshape(shape)
    if how.centered:
        # About a pilot, which has no derivative: the mean of the rest is small.
        pilot = lax.stop_gradient(values).mean(axes, keepdims=True)
        values = values - pilot
        values = values - values.mean(axes, keepdims=True)
    rstd = rstd_of(how.eps, (values * values).mean(axes, keepdims=True))
    return values * rstd, rstd


def _forward_formula(how: How, x: Any, weight: Any, bias: Any) -> Any:
    y = _standardized(how, x)[0].reshape(x.shape)
    y = y if weight is None else y * how.beside(weight, x)
    y = y if bias is None else y + how.beside(bias, x)
    return y.astype(x.dtype)


def _backward_formula(how: How, dy: Any, x: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Give dx, dweight and dbias; None for the gradient of a parameter that is not there."""
    xhat, rstd = _standardized(how, x)
    axes = how.slabs(x)[1]
    dy = dy.astype(xhat.dtype)
    g = (dy if weight is None else dy * how.beside(weight, x)).reshape(xhat.shape)
    if how.centered:
        g = g - g.mean(axes, keepdims=True)
    dx = rstd * (g - xhat * (g * xhat).mean(axes, keepdims=True))
    along = how.parameter_axes(x)
    dweight = (dy * xhat.reshape(x.shape)).sum(along) if how.weight else None
    return dx.reshape(x.shape).astype(x.dtype), dweight, dy.sum(along) if how.bias else None


# --- both passes by kernels -----------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how: How, x: Any, weight: Any, bias: Any) -> tuple[Any, dict[str, Any]]:
    """Give y and the statistics."""
    results = {"y": (x.shape, x.dtype), **how.statistics(x)}
    arguments = {"x": x, "weight": weight, "bias": bias}
    found = call_by(f"{how.kind}_forward", arguments, results, how.attributes())
    y, *statistics = found
    return y, dict(zip(how.statistics(x), statistics, strict=True))


@_forward.defjvp
def _forward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    y, statistics = _forward(how, *primals)
    _, of_y = jax.jvp(functools.partial(_forward_formula, how), primals, tangents)
    return (y, statistics), (of_y, {name: no_tangent(each) for name, each in statistics.items()})


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    how: How, dy: Any, x: Any, weight: Any, statistics: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Give dx, dweight and dbias; None for the gradient of a parameter that is not there."""
    results: dict[str, Struct] = {"dx": (x.shape, x.dtype)}
    along = how.parameter_axes(x)
    shape = tuple(extent for a, extent in enumerate(x.shape) if a not in along)
    results |= dict.fromkeys(how.made_gradients(), (shape, param_dtype(x)))
    arguments = {"x": x, "dy": dy, "weight": weight, **statistics}
    found = dict(
        zip(results, call_by(f"{how.kind}_backward", arguments, results, how.attributes()),
            strict=True)
    )  # fmt: skip
    dbias = found.get("dbias")
    if how.bias and dbias is None:  # of RMS normalization, which has none as a rule
        dbias = dy.astype(param_dtype(x)).sum(along)
    return (
        found["dx"],
        found["dweight"] if how.weight else None,
        dbias if how.bias else None,
    )


@_backward.defjvp
def _backward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    formula = functools.partial(_backward_formula, how)
    _, of_results = jax.jvp(formula, primals[:3], tangents[:3])
    return _backward(how, *primals), of_results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(how: How, x: Any, weight: Any, bias: Any) -> Any:
    return _forward(how, x, weight, bias)[0]


def _normalized_forward(how: How, x: Any, weight: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
    y, statistics = _forward(how, x, weight, bias)
    return y, (x, weight, statistics)


def _normalized_backward(how: How, saved: tuple[Any, ...], dy: Any) -> tuple[Any, Any, Any]:
    return _backward(how, dy, *saved)


_normalized.defvjp(_normalized_forward, _normalized_backward)


def normalized(how: How, x: Any, weight: Any, bias: Any) -> jax.Array:
    """Give y."""
    y: jax.Array = _normalized(how, *together(x, weight, bias))
    return y
