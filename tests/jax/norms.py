"""The norms of `bnext.jax` that normalize each example by itself, as the tests call them.

A subject has one norm three times: in a program, as the functions for NumPy have it, and as one
would write it, to be differentiated in float64.
"""

from typing import NamedTuple

import numpy as np

import bnext

from .support import activated, jax, jnp, parameters_dtype


def standardized(values, axes, eps, centered=True):
    if centered:
        values = values - values.mean(axes, keepdims=True)
    return values / jnp.sqrt((values * values).mean(axes, keepdims=True) + eps)


class LayerNorm(NamedTuple):
    dims: int
    eps: float = 1e-5
    activation: str | None = None
    has_bias = True

    @property
    def options(self):
        return {"eps": self.eps, "activation": self.activation}

    def parameter_shape(self, shape):
        return shape[len(shape) - self.dims :]

    def by_jax(self, x, *affine):
        shape = self.parameter_shape(x.shape)
        return bnext.jax.layer_norm(x, shape, *affine, **self.options)

    def by_numpy(self, x, *affine):
        shape = self.parameter_shape(x.shape)
        return bnext.layer_norm_forward(x, shape, *affine, **self.options)

    def gradients_by_numpy(self, dy, x, saved, weight):
        return bnext.layer_norm_backward(dy, x, saved, weight)

    def plain(self, x, weight, bias):
        axes = tuple(range(x.ndim - self.dims, x.ndim))
        return activated(self.activation, standardized(x, axes, self.eps) * weight + bias)


class RMSNorm(NamedTuple):
    dims: int
    eps: float = 1e-5
    activation: str | None = None
    has_bias = False

    @property
    def options(self):
        return {"eps": self.eps, "activation": self.activation}

    def parameter_shape(self, shape):
        return shape[len(shape) - self.dims :]

    def by_jax(self, x, *affine):
        shape = self.parameter_shape(x.shape)
        return bnext.jax.rms_norm(x, shape, *affine, **self.options)

    def by_numpy(self, x, *affine):
        shape = self.parameter_shape(x.shape)
        return bnext.rms_norm_forward(x, shape, *affine, **self.options)

    def gradients_by_numpy(self, dy, x, saved, weight):
        return bnext.rms_norm_backward(dy, x, saved, weight)

    def plain(self, x, weight):
        axes = tuple(range(x.ndim - self.dims, x.ndim))
        y = standardized(x, axes, self.eps, centered=False) * weight
        return activated(self.activation, y)


class GroupNorm(NamedTuple):
    groups: int | None  # None: instance normalization
    axis: int = -1
    eps: float = 1e-5
    activation: str | None = None
    has_bias = True

    @property
    def options(self):
        return {"eps": self.eps, "channel_axis": self.axis, "activation": self.activation}

    def parameter_shape(self, shape):
        return (shape[self.axis],)

    def by_jax(self, x, *affine):
        if self.groups is None:
            return bnext.jax.instance_norm(x, *affine, **self.options)
        return bnext.jax.group_norm(x, self.groups, *affine, **self.options)

    def by_numpy(self, x, *affine):
        if self.groups is None:
            return bnext.instance_norm_forward(x, *affine, **self.options)
        return bnext.group_norm_forward(x, self.groups, *affine, **self.options)

    def gradients_by_numpy(self, dy, x, saved, weight):
        return bnext.group_norm_backward(dy, x, saved, weight)

    def plain(self, x, weight, bias):
        last = jnp.moveaxis(x, self.axis, -1)
        channels = last.shape[-1]
        groups = self.groups or channels
        slabs = last.reshape(last.shape[0], -1, groups, channels // groups)
        y = standardized(slabs, (1, 3), self.eps).reshape(last.shape) * weight + bias
        return activated(self.activation, jnp.moveaxis(y, -1, self.axis))


# A norm, and a shape of its input.
SUBJECTS = {
    "layer": (LayerNorm(1), (5, 7, 19)),
    "layer of two axes": (LayerNorm(2), (6, 5, 9)),
    "layer of all axes": (LayerNorm(2, 1e-3), (13, 8)),
    "rms": (RMSNorm(1), (5, 7, 19)),
    "rms of two axes": (RMSNorm(2, 1e-3), (6, 5, 9)),
    "layer, activated": (LayerNorm(1, 1e-5, "gelu"), (5, 7, 19)),
    "rms, activated": (RMSNorm(1, 1e-5, "silu"), (4, 33)),
    "group, channels last": (GroupNorm(3), (4, 5, 6, 12)),
    "group, channels first": (GroupNorm(4, 1), (4, 12, 5, 7)),
    "group of vectors": (GroupNorm(5), (9, 20)),
    "one group": (GroupNorm(1, -1, 1e-3), (3, 7, 10)),
    "instance, channels last": (GroupNorm(None), (4, 5, 6, 11)),
    "instance, channels first": (GroupNorm(None, 1), (4, 11, 17)),
    "group, activated": (GroupNorm(3, 1, 1e-5, "silu"), (3, 6, 5)),
    "instance, activated": (GroupNorm(None, -1, 1e-5, "gelu_tanh"), (3, 5, 6)),
}


class Inputs:
    """Arrays of one call of each pass, as NumPy has them."""

    def __init__(self, rng, subject, dtype=np.float32):
        self.norm, shape = SUBJECTS[subject]
        parameters = parameters_dtype(dtype)
        of_parameters = self.norm.parameter_shape(shape)
        self.x = (rng.normal(size=shape) * 2 + 3).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.affine = (rng.uniform(0.5, 1.5, of_parameters).astype(parameters),)
        if self.norm.has_bias:
            self.affine += (rng.normal(size=of_parameters).astype(parameters),)

    @property
    def arrays(self):
        return (self.x, *self.affine)

    def by_numpy(self):
        """y and the gradients of each array by the functions for NumPy."""
        y, saved = self.norm.by_numpy(*self.arrays)
        return y, *self.norm.gradients_by_numpy(self.dy, self.x, saved, self.affine[0])

    def gradients(self, dy, *arrays):
        """The same by `bnext.jax`."""
        y, pull_back = jax.vjp(self.norm.by_jax, *arrays)
        return y, *pull_back(dy)
