"""The gradients of a backward pass as they are defined, in float64 NumPy.

A backward pass with its activation is a function of dy, x, weight, bias and residual. Here are the
products of its transposed Jacobian with (ddx, ddweight, ddbias, ddresidual), from the definition of
each intermediate, backwards through all of them, one row a channel. Nothing is shared with the
package, whose formulas are these in closed form.
"""

from typing import NamedTuple

import numpy as np

from . import activations, reference
from .activations import inner, normal_density, sigmoid


def _of_gelu_tanh(z):
    t, slope = np.tanh(inner(z)), np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2)
    bent = np.sqrt(2 / np.pi) * 6 * 0.044715 * z
    steep = 1 / np.cosh(inner(z)) ** 2
    return steep * slope + z / 2 * (-2 * t * steep * slope**2 + steep * bent)


def _of_sigmoid(z):
    s = sigmoid(z)
    return s * (1 - s) * (1 - 2 * s)


def _of_silu(z):
    s = sigmoid(z)
    return s * (1 - s) * (2 + z * (1 - 2 * s))


# Second derivatives; of the others they are 0.
CURVED = {
    "silu": _of_silu,
    "hardswish": lambda z: np.where((z > -3) & (z < 3), 1 / 3, 0.0),
    "gelu": lambda z: normal_density(z) * (2 - z**2),
    "gelu_tanh": _of_gelu_tanh,
    "sigmoid": _of_sigmoid,
    "tanh": lambda z: -2 * np.tanh(z) * (1 - np.tanh(z) ** 2),
}


class SecondGradients(NamedTuple):
    """By what each is a gradient of; data with one row a channel."""

    dy: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray


def _mean(values):
    """The mean of each row, exact beside float64 also where deviations are small."""
    mean = values.mean(axis=1, keepdims=True)
    return mean + (values - mean).mean(axis=1, keepdims=True)


def double_backward(
    dy, x, weight=None, bias=None, residual=None, *, ddx=None, ddweight=None, ddbias=None,
    ddresidual=None, activation=None, eps=1e-5, channel_axis=1, given=None,
):  # fmt: skip
    """All five gradients; `given` = (mean, var) where the statistics are constants.

    ddweight and ddbias may have a value for each of a channel's values, where dweight and dbias are
    sums of parts of them.
    """

    def rows(values):
        if values is None:
            return np.zeros_like(reference.per_channel(x, channel_axis))
        return reference.per_channel(values, channel_axis)

    xs, dys, u, v = rows(x), rows(dy), rows(ddx), rows(ddresidual)
    channels, n = xs.shape
    w = reference.column(weight, channels, 1.0)
    p, q = (
        each if np.ndim(each) == 2 else reference.column(each, channels, 0.0)
        for each in (ddweight, ddbias)
    )
    mean = _mean(xs) if given is None else np.asarray(given[0], np.float64)[:, None]
    d = xs - mean
    var = (d * d).mean(axis=1, keepdims=True)
    if given is not None:
        var = np.asarray(given[1], np.float64)[:, None]
    rstd = reference.rstd(var, eps)
    xhat = d * rstd
    act = activations.of(activation)
    z = xhat * w + reference.column(bias, channels, 0.0) + rows(residual)
    slope = act.derivative(z)
    g = dys * slope

    # dx = w rstd inside, dweight = sum g xhat, dbias = sum g, dresidual = g
    if given is None:
        gs, us = g - _mean(g), u - _mean(u)
        of_xhat = _mean(gs * xhat)
        inside = gs - xhat * of_xhat
        by_inside = w * rstd * us
        u = us  # the mean comes to nothing below, and would cost digits
        p_g = p * gs + (p - _mean(np.broadcast_to(p, g.shape))) * _mean(g)
        by_of_xhat = -(by_inside * xhat).sum(axis=1, keepdims=True)
        by_gs = by_inside + by_of_xhat * xhat / n
        by_g = by_gs - _mean(by_gs)
        by_xhat = -by_inside * of_xhat + by_of_xhat * gs / n
    else:
        inside, by_g, by_xhat, p_g = g, w * rstd * u, 0.0, p * g
    by_weight = (u * rstd * inside).sum(axis=1)
    by_rstd = (u * w * inside).sum(axis=1, keepdims=True)
    by_g = by_g + p * xhat + q + v
    by_xhat = by_xhat + p_g

    t = by_g * dys * CURVED[activation](z) if activation in CURVED else np.zeros_like(g)
    by_weight = by_weight + (t * xhat).sum(axis=1)
    by_d = (by_xhat + t * w) * rstd
    if given is None:
        by_rstd = by_rstd + ((by_xhat + t * w) * d).sum(axis=1, keepdims=True)
        by_d = by_d - by_rstd * rstd**3 * d / n  # var = mean of d * d
        by_d = by_d - _mean(by_d)
    return SecondGradients(by_g * slope, by_d, by_weight, t.sum(axis=1), t)
