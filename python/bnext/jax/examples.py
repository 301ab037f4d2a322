"""Norms that normalize each example by itself, and their derivatives.

Layer and RMS normalization (`Rows`) and group and instance normalization (`Cells`) are one pair of
passes: values that are normalized together are a slab, and parameters go along some of its axes.
As in `training`, kernels compute values and first gradients, and tangents of both passes come from
formulas in JAX's own operations. On arrays in shards each device computes on its examples, and
gradients of parameters are added up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jax import lax

from bnext.jax.folding import folding
from bnext.jax.foreign import ROWS, Factors, Struct, add_parts, call, together, words
from bnext.jax.formulas import activated, param_dtype, rstd_of, slope
from bnext.jax.partition import Arrays, across, alike
from bnext.jax.training import no_tangent

__all__ = ["Cells", "Rows", "normalized"]

Axes = tuple[tuple[Any, int], ...]  # names and sizes
DATA = ("x", "dy", "residual", "y", "dx", "dresidual")


@dataclasses.dataclass(frozen=True)
class Rows:
    """Layer or RMS normalization of the axes from `first` on; a constant of the program."""

    eps: float
    first: int
    centered: bool
    weight: bool  # whether there is one
    bias: bool
    activation: str | None = None
    negative_slope: float = 0.01
    residual: bool = False
    axes: Axes = ()  # of a mesh, along which lie other examples

    kind: ClassVar[str] = "rows"

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""
        return {
            "eps": np.float64(self.eps), "first": np.int64(self.first), "centered": self.centered,
            **_applied(self),
        }  # fmt: skip

    def statistics(self, x: Any) -> dict[str, Struct]:
        """Describe what the forward pass leaves for the backward pass."""
        rows = x.shape[: self.first]
        return {name: words(*rows) for name in ("row_mean", "row_mean_low", "row_rstd")}

    def made_gradients(self) -> tuple[str, ...]:
        """Name the gradients of parameters that the kernel makes."""
        if not (self.weight or self.bias):
            return ()
        if self.centered:
            return "dweight", "dbias"
        return ("dweight",) if self.weight else ()

    def factors(self, name: str, rank: int) -> Factors:
        """Name the factors of an array: axes before the rows' own may be divided."""
        if name in DATA or name.startswith("row_"):
            return [f"d{axis}" if axis < self.first else None for axis in range(rank)]
        return [None] * rank

    def over(self, axes: Mapping[int, Axes]) -> Rows:
        """Give the norm of shards, by the axes of x that axes of a mesh divide."""
        return dataclasses.replace(self, axes=tuple(each for a in sorted(axes) for each in axes[a]))

    def folded(self, x: Any) -> tuple[Rows, Any]:
        """Give the norm of x with one more axis of examples, the first."""
        return dataclasses.replace(self, first=self.first + 1), x

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
    activation: str | None
    negative_slope: float
    residual: bool = False
    axes: Axes = ()  # of a mesh, along which lie other examples

    kind: ClassVar[str] = "cells"
    centered: ClassVar[bool] = True

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""
        return {
            "eps": np.float64(self.eps), "channel_axis": np.int64(self.channel_axis),
            "num_groups": np.int64(self.num_groups), **_applied(self),
        }  # fmt: skip

    def groups(self, x: Any) -> int:
        """Give the number of groups that the channels are divided into."""
        return self.num_groups or max(x.shape[self.channel_axis], 1)

    def statistics(self, x: Any) -> dict[str, Struct]:
        """Describe what the forward pass leaves for the backward pass."""
        return {"statistics": words(ROWS, x.shape[0], self.groups(x))}

    def made_gradients(self) -> tuple[str, ...]:
        """Name the gradients of parameters that the kernel makes."""
        return ("dweight", "dbias") if self.weight or self.bias else ()

    def factors(self, name: str, rank: int) -> Factors:
        """Name the factors of an array: examples may be divided, and single channels."""
        found: Factors = [None] * rank
        channels = None if self.num_groups else f"d{self.channel_axis}"
        if name in DATA:
            found[0], found[self.channel_axis] = "d0", channels
        elif name == "statistics":
            found[1], found[2] = "d0", channels
        else:
            found[-1] = channels
        return found

    def over(self, axes: Mapping[int, Axes]) -> Cells:
        """Give the norm of shards, by the axes of x that axes of a mesh divide."""
        return dataclasses.replace(self, axes=axes.get(0, ()))

    def folded(self, x: Any) -> tuple[Cells, Any]:
        """Give the norm of x with one more axis of examples, the first."""
        return self, x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

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


def _applied(how: How) -> dict[str, Any]:
    """Give what handlers read of what follows normalization."""
    return {
        "activation": how.activation or "none", "negative_slope": np.float64(how.negative_slope),
        "residual": how.residual,
    }  # fmt: skip


def _makes_dresidual(how: How) -> bool:
    """Whether the residual's gradient is another than dy; then its backward pass reads it."""
    return how.residual and how.activation is not None


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


def _affine(how: How, xhat: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    """Give z, which the activation is applied to."""
    z = xhat.reshape(x.shape)
    z = z if weight is None else z * how.beside(weight, x)
    z = z if bias is None else z + how.beside(bias, x)
    return z if residual is None else z + residual.astype(z.dtype)


def _forward_formula(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    z = _affine(how, _standardized(how, x)[0], x, weight, bias, residual)
    return activated(how, z).astype(x.dtype)


def _through(how: How, dy: Any, xhat: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    """Give the gradient by z."""
    dy = dy.astype(xhat.dtype)
    if how.activation is None:
        return dy
    return dy * slope(how, _affine(how, xhat, x, weight, bias, residual))


def _backward_formula(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any
) -> tuple[Any, ...]:
    """Give dx, dweight, dbias and dresidual; None for the gradient of what is not there."""
    xhat, rstd = _standardized(how, x)
    axes = how.slabs(x)[1]
    dy = _through(how, dy, xhat, x, weight, bias, residual)
    g = (dy if weight is None else dy * how.beside(weight, x)).reshape(xhat.shape)
    if how.centered:
        g = g - g.mean(axes, keepdims=True)
    dx = rstd * (g - xhat * (g * xhat).mean(axes, keepdims=True))
    along = how.parameter_axes(x)
    dweight = (dy * xhat.reshape(x.shape)).sum(along) if how.weight else None
    return (
        dx.reshape(x.shape).astype(x.dtype),
        dweight,
        dy.sum(along) if how.bias else None,
        dy.astype(x.dtype) if how.residual else None,
    )


# --- both passes by kernels -----------------------------------------------------------------------


def _forward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    results = {"y": (x.shape, x.dtype), **how.statistics(x)}
    return call(f"{how.kind}_forward", how, arguments, results)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> tuple[Any, dict[str, Any]]:
    """Give y and the statistics."""
    statistics = how.statistics(x)
    arguments = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    found = across(_forward_of, how, arguments, ["y", *statistics])
    return found["y"], {name: found[name] for name in statistics}


@_forward.defjvp
def _forward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    y, statistics = _forward(how, *primals)
    _, of_y = jax.jvp(functools.partial(_forward_formula, how), primals, tangents)
    return (y, statistics), (of_y, {name: no_tangent(each) for name, each in statistics.items()})


def _backward_of(how: How, arguments: Arrays) -> Arrays:
    x = arguments["x"]
    results: dict[str, Struct] = {"dx": (x.shape, x.dtype)}
    along = how.parameter_axes(x)
    shape = tuple(extent for a, extent in enumerate(x.shape) if a not in along)
    of_parameters = how.made_gradients()
    results |= dict.fromkeys(of_parameters, (shape, param_dtype(x)))
    if _makes_dresidual(how):
        results["dresidual"] = x.shape, x.dtype
    found = call(f"{how.kind}_backward", how, arguments, results)
    return found | {name: add_parts(how, found[name]) for name in of_parameters}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _backward(
    how: How, dy: Any, x: Any, weight: Any, bias: Any, residual: Any, statistics: dict[str, Any]
) -> tuple[Any, ...]:
    """Give dx, dweight, dbias and dresidual; None for the gradient of what is not there."""
    arguments = {
        "x": x, "dy": dy, "weight": weight, "bias": bias, "residual": residual, **statistics
    }  # fmt: skip
    results = ["dx", *how.made_gradients(), *["dresidual"] * _makes_dresidual(how)]
    found = across(_backward_of, how, arguments, results)
    dbias = found.get("dbias")
    if how.bias and dbias is None:  # of RMS normalization, which has none as a rule
        xhat = _standardized(how, x)[0]
        g = _through(how, dy, xhat, x, weight, bias, residual)
        dbias = g.sum(how.parameter_axes(x))
    return (
        found["dx"],
        found["dweight"] if how.weight else None,
        dbias if how.bias else None,
        found.get("dresidual", dy) if how.residual else None,
    )


@_backward.defjvp
def _backward_jvp(how: How, primals: Any, tangents: Any) -> tuple[Any, Any]:
    formula = functools.partial(_backward_formula, how)
    _, of_results = jax.jvp(formula, primals[:5], tangents[:5])
    return _backward(how, *primals), of_results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalized(how: How, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    return _forward(how, x, weight, bias, residual)[0]


def _normalized_forward(
    how: How, x: Any, weight: Any, bias: Any, residual: Any
) -> tuple[Any, tuple[Any, ...]]:
    y, statistics = _forward(how, x, weight, bias, residual)
    of_z = (bias, residual) if how.activation is not None else (None, None)
    return y, (x, weight, *of_z, statistics)


def _normalized_backward(how: How, saved: tuple[Any, ...], dy: Any) -> tuple[Any, ...]:
    return _backward(how, dy, *saved)


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _of_present(how: How, x: Any, *others: Any) -> Any:
    """Give y, of the arrays that are there."""
    present = iter(others)
    residual = next(present) if how.residual else None
    weight = next(present) if how.weight else None
    return _normalized(how, x, weight, next(present) if how.bias else None, residual)


_folding = folding(
    "bnext_norm_of_examples", _of_present, lambda how, x: how.folded(x),
    lambda how: 1 + int(how.residual),
)  # fmt: skip


def normalized(how: How, x: Any, weight: Any, bias: Any, residual: Any = None) -> jax.Array:
    """Give y."""
    x, residual, weight, bias = together(x, residual, weight, bias)
    arrays = alike(how, x=x, residual=residual, weight=weight, bias=bias)
    y: jax.Array = _folding(how, *(each for each in arrays if each is not None))
    return y
