"""Group normalization by its definition, in long double: of x (N, C, ...), channels at axis 1."""

import numpy as np

from .remembered import remembered


@remembered
def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    """y, and the mean and the variance of shape (N, G)."""
    x = np.asarray(x, np.longdouble)
    slabs = x.reshape(x.shape[0], groups, -1)
    near = slabs[:, :, :1] if slabs.size else np.zeros((*slabs.shape[:2], 1))  # a mean far from 0
    deviation = slabs - near
    offset = deviation.mean(axis=2, keepdims=True)
    deviation -= offset
    mean, var = near + offset, (deviation**2).mean(axis=2, keepdims=True)
    xhat = (deviation / np.sqrt(var + eps)).reshape(x.shape)
    y = xhat * _beside(x, 1 if weight is None else weight)
    return y + _beside(x, 0 if bias is None else bias), mean[..., 0], var[..., 0]


@remembered
def group_norm_backward(dy, x, groups, weight=None, eps=1e-5):
    """dx, dweight, dbias."""
    x, dy = np.asarray(x, np.longdouble), np.asarray(dy, np.longdouble)
    xhat, _, var = group_norm(x, groups, eps=eps)
    g = (dy * _beside(x, 1 if weight is None else weight)).reshape(x.shape[0], groups, -1)
    slabs = xhat.reshape(g.shape)
    inner = g - g.mean(axis=2, keepdims=True)
    inner -= slabs * (g * slabs).mean(axis=2, keepdims=True)
    dx = (inner / np.sqrt(var + eps)[..., None]).reshape(x.shape)
    axes = (0, *range(2, x.ndim))
    return dx, (dy * xhat).sum(axis=axes), dy.sum(axis=axes)


def _beside(x, values):
    """A value for each channel, so that it broadcasts against x."""
    values = np.asarray(values, np.longdouble)
    return values if values.ndim == 0 else values.reshape(-1, *(1,) * (x.ndim - 2))
