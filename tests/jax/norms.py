"""The norms of `bnext.jax`, as the tests call them.

A subject has one norm three times: in a program, as the functions for NumPy have it, and as one
would write it, to be differentiated in float64.
"""

import dataclasses

import numpy as np

import bnext

from ..activations import SLOPE
from .support import activated, jax, jnp, parameters_dtype


def standardized(values, axes, eps, centered=True):
    if centered:
        values = values - values.mean(axes, keepdims=True)
    return values / jnp.sqrt((values * values).mean(axes, keepdims=True) + eps)


class Norm:
    """What norms have in common; `name` is of their functions, `kernel` of their kernels."""

    has_bias, axis = True, None

    def arguments(self, shape):
        """Behind x, before the parameters."""
        return ()

    @property
    def options(self):
        given = {"eps": self.eps, "activation": self.activation, "negative_slope": SLOPE}
        return given if self.axis is None else given | {"channel_axis": self.axis}

    def by_jax(self, x, *affine, residual=None):
        function = getattr(bnext.jax, f"{self.name}_norm")
        given = self.arguments(x.shape)
        return function(x, *given, *affine, residual=residual, **self.options)

    def results(self, *arrays, **residual):
        """y, and what else one differentiates."""
        return (self.by_jax(*arrays, **residual),)

    def plain_results(self, *arrays, **residual):
        return (self.plain(*arrays, **residual),)

    def by_numpy(self, x, *affine, residual=None):
        function = getattr(bnext, f"{self.name}_norm_forward")
        given = self.arguments(x.shape)
        return function(x, *given, *affine, residual=residual, **self.options)

    def gradients_by_numpy(self, dy, x, saved, weight, residual=None):
        function = getattr(bnext, f"{self.name}_norm_backward")
        return function(dy, x, saved, weight, residual=residual if saved.reads_residual else None)

    def plain(self, x, *affine, residual=0.0):
        return activated(self.activation, self.normalized(x, *affine) + residual)


@dataclasses.dataclass(frozen=True)
class Rows(Norm):
    """Layer normalization, and RMS normalization where it is not centered."""

    dims: int
    eps: float = 1e-5
    activation: str | None = None
    centered: bool = True
    kernel = "bnext_rows"

    name = property(lambda self: "layer" if self.centered else "rms")
    has_bias = property(lambda self: self.centered)

    def arguments(self, shape):
        return (self.parameter_shape(shape),)

    def parameter_shape(self, shape):
        return shape[len(shape) - self.dims :]

    def normalized(self, x, weight, bias=0.0):
        axes = tuple(range(x.ndim - self.dims, x.ndim))
        return standardized(x, axes, self.eps, self.centered) * weight + bias


@dataclasses.dataclass(frozen=True)
class Cells(Norm):
    """Group normalization, and instance normalization of no number of groups."""

    groups: int | None
    axis: int = -1
    eps: float = 1e-5
    activation: str | None = None
    kernel = "bnext_cells"

    name = property(lambda self: "instance" if self.groups is None else "group")

    def arguments(self, shape):
        return () if self.groups is None else (self.groups,)

    def parameter_shape(self, shape):
        return (shape[self.axis],)

    def normalized(self, x, weight, bias):
        last = jnp.moveaxis(x, self.axis, -1)
        channels = last.shape[-1]
        groups = self.groups or channels
        slabs = last.reshape(last.shape[0], -1, groups, channels // groups)
        y = standardized(slabs, (1, 3), self.eps).reshape(last.shape) * weight + bias
        return jnp.moveaxis(y, -1, self.axis)


@dataclasses.dataclass(frozen=True)
class Batch(Norm):
    axis: int = -1
    eps: float = 1e-5
    activation: str | None = None
    name, kernel = "batch", "bnext"

    def parameter_shape(self, shape):
        return (shape[self.axis],)

    def normalized(self, x, weight, bias):
        return standardized(x, tuple(range(x.ndim - 1)), self.eps) * weight + bias

    def results(self, *arrays, **residual):
        y, moments = super().by_jax(*arrays, **residual)
        return y, moments.mean, moments.var

    def by_jax(self, *arrays, **residual):
        return super().by_jax(*arrays, **residual)[0]

    def plain_results(self, x, *arrays, **residual):
        axes = tuple(range(x.ndim - 1))
        return self.plain(x, *arrays, **residual), x.mean(axes), x.var(axes)


# A norm, and a shape of its input.
SUBJECTS = {
    "layer": (Rows(1), (5, 7, 19)),
    "layer of two axes": (Rows(2), (6, 5, 9)),
    "layer of all axes": (Rows(2, 1e-3), (13, 8)),
    "rms": (Rows(1, centered=False), (5, 7, 19)),
    "rms of two axes": (Rows(2, 1e-3, None, False), (6, 5, 9)),
    "layer, activated": (Rows(1, 1e-5, "gelu"), (5, 7, 19)),
    "rms, activated": (Rows(1, 1e-5, "silu", False), (4, 33)),
    "group, channels last": (Cells(3), (4, 5, 6, 12)),
    "group, channels first": (Cells(4, 1), (4, 12, 5, 7)),
    "group of vectors": (Cells(5), (9, 20)),
    "one group": (Cells(1, -1, 1e-3), (3, 7, 10)),
    "instance, channels last": (Cells(None), (4, 5, 6, 11)),
    "instance, channels first": (Cells(None, 1), (4, 11, 17)),
    "group, activated": (Cells(3, 1, 1e-5, "silu"), (3, 6, 5)),
    "instance, activated": (Cells(None, -1, 1e-5, "gelu_tanh"), (3, 5, 6)),
}


# With a residual.
ADDED = ("layer", "layer of two axes", "rms", "group, channels last", "group, channels first",
         "instance, channels last")  # fmt: skip
# With batches' own statistics as well, whose calls give moments besides.
ALL = {"batch": (Batch(), (6, 5, 19)), **SUBJECTS}


class Inputs:
    """Arrays of one call of each pass, as NumPy has them; the last is a residual, if it `adds`."""

    def __init__(self, rng, subject, dtype=np.float32, adds=False, shape=None, **changed):
        norm, of_subject = ALL[subject]
        self.norm, shape = dataclasses.replace(norm, **changed), shape or of_subject
        parameters = parameters_dtype(dtype)
        of_parameters = self.norm.parameter_shape(shape)
        self.x = (rng.normal(size=shape) * 2 + 3).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.affine = (rng.uniform(0.5, 1.5, of_parameters).astype(parameters),)
        if self.norm.has_bias:
            self.affine += (rng.normal(size=of_parameters).astype(parameters),)
        self.residual = rng.normal(size=shape).astype(dtype) if adds else None

    @property
    def arrays(self):
        added = () if self.residual is None else (self.residual,)
        return (self.x, *self.affine, *added)

    def with_residual(self, function, arrays):
        """A function of the norm's, of arrays as `arrays` has them."""
        if self.residual is None:
            return function(*arrays)
        *others, residual = arrays
        return function(*others, residual=residual)

    def by_jax(self, *arrays):
        return self.with_residual(self.norm.by_jax, arrays)

    def results(self, *arrays):
        return self.with_residual(self.norm.results, arrays)

    def plain_results(self, *arrays):
        return self.with_residual(self.norm.plain_results, arrays)

    def by_numpy(self):
        """y and the gradients of each array by the functions for NumPy."""
        y, saved = self.with_residual(self.norm.by_numpy, self.arrays)
        gradients = self.norm.gradients_by_numpy(
            self.dy, self.x, saved, self.affine[0], self.residual
        )
        return y, *gradients

    def gradients(self, dy, *arrays):
        """The same by `bnext.jax`."""
        y, pull_back = jax.vjp(self.by_jax, *arrays)
        return y, *pull_back(dy)
