"""Activations as they are defined, their derivatives, and passes with them, in float64 NumPy.

Per channel, with the means and xhat of `reference.py`::

    z = xhat * weight + bias + residual     y = act(z)     g = dy * act'(z) = dresidual

and dx, dweight and dbias follow from g as they do from dy without an activation. Nothing is shared
with the package.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import reference

SLOPE = 0.25  # of leaky_relu, other than its default

erfc = np.vectorize(math.erfc, otypes=[np.float64])


class Activation(NamedTuple):
    """A function, its derivative, and where that jumps."""

    value: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[float, ...] = ()


def sigmoid(z):
    return (1 + np.tanh(z / 2)) / 2


def inner(z):
    """The argument of the tanh by which GELU is approximated (Hendrycks and Gimpel 2016)."""
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def normal_density(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def normal_distribution(z):
    return erfc(-z / math.sqrt(2)) / 2


def gelu_tanh_derivative(z):
    t = np.tanh(inner(z))
    of_inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return (1 + t) / 2 + z / 2 * (1 - t**2) * of_inner


def hardswish_derivative(z):
    return np.where(z <= -3, 0.0, np.where(z < 3, z / 3 + 0.5, 1.0))


ACTIVATIONS = {
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0), (0.0,)),
    "relu6": Activation(
        lambda z: np.clip(z, 0, 6), lambda z: 1.0 * ((z > 0) & (z < 6)), (0.0, 6.0)
    ),
    "leaky_relu": Activation(
        lambda z: np.where(z > 0, z, SLOPE * z), lambda z: np.where(z > 0, 1.0, SLOPE), (0.0,)
    ),
    "silu": Activation(lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z)))),
    "hardswish": Activation(
        lambda z: z * np.clip(z + 3, 0, 6) / 6, hardswish_derivative, (-3.0, 3.0)
    ),
    "gelu": Activation(
        lambda z: z * normal_distribution(z),
        lambda z: normal_distribution(z) + z * normal_density(z),
    ),
    "gelu_tanh": Activation(lambda z: z * (1 + np.tanh(inner(z))) / 2, gelu_tanh_derivative),
    "sigmoid": Activation(sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z))),
    "tanh": Activation(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
}
KEEP_FLAGS = ("relu", "relu6", "leaky_relu")  # with a residual
SMOOTH = tuple(name for name in ACTIVATIONS if name not in KEEP_FLAGS)
IDENTITY = Activation(lambda z: z, np.ones_like)

# Values act' and act'' are nowhere larger than these.
STEEPEST, MOST_CURVED = 1.5, 1.0


def of(name):
    """The activation of that name; None is the identity."""
    return IDENTITY if name is None else ACTIVATIONS[name]


def pre_activation(x, residual, mean, var, weight=None, bias=None, *, eps=1e-5, channel_axis=1):
    """z, in the shape of `x`."""
    z = reference.normalize(x, mean, var, weight, bias, eps=eps, channel_axis=channel_axis)
    return z if residual is None else z + np.asarray(residual, np.float64)


def without_kinks(dy, z, name, margin=1e-3):
    """`dy`, with 0 where z is so near to a jump of act' that rounding decides its side."""
    kept = dy.copy()
    for kink in of(name).kinks:
        kept[np.abs(z - kink) < margin] = 0
    return kept
