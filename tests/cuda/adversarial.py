"""Data that break careless sums, for kernels on a GPU and for emulated ones.

`tensors` puts NumPy arrays there and gets them back.
"""

import numpy as np

import bnext

from .. import reference
from ..cases import named
from ..compare import assert_are_gradients, assert_is_forward
from ..tolerances import VARIANCE_FAR_FROM_ZERO
from . import gpu
from .compare_there import assert_close_to_outliers

CASES = named("NC-many-rows", "NCHW-many-chunks", "NCHW-stored-NHWC", "NHWC-many-chunks")
NOT_FINITE = (np.nan, np.inf, -np.inf)


def check_numerics(tensors, case, dtype, path, rng):
    """Far from zero; no variance; an outlier first; the ends of the range."""
    axis = {"channel_axis": case.channel_axis}

    def both(x, eps):
        """What is computed from x, and where it differs in kind, its float64 reference."""
        x_, dy_ = tensors.put(x), tensors.put(dy)
        y, saved = bnext.batch_norm_forward(x_, eps=eps, **axis)
        gradients = bnext.batch_norm_backward(dy_, x_, saved)
        return tensors.get(y), saved, [tensors.get(gradient) for gradient in gradients]

    def run(x, eps=1e-5):
        return both(x, eps) if path is None else gpu.forced(path, lambda: both(x, eps))

    dy = case.dy(rng, dtype)
    for ratio, std in ((1e4, 1.0), (-1e4, 1e-3), (1e6, 1.0), (-1e6, 1e3)):
        x = case.memory.place(rng.normal(ratio * std, std, case.shape).astype(dtype))
        y, saved, gradients = run(x, 0.0)
        assert_is_forward(y, x, eps=0.0, **axis)
        var = reference.moments(x, case.channel_axis).var
        np.testing.assert_allclose(tensors.get(saved.var), var, rtol=VARIANCE_FAR_FROM_ZERO)
        assert_are_gradients(gradients, dy, x, eps=0.0, **axis)
    for value in (0.0, 0.1, -1e4, 1e-30, 3e30):
        x = case.memory.place(np.full(case.shape, dtype(value)))
        y, saved, gradients = run(x)
        assert (tensors.get(saved.mean) == np.float64(dtype(value))).all()
        assert (tensors.get(saved.m2) == 0.0).all()
        assert (y == 0.0).all()
        assert (gradients[1] == 0.0).all()
    for outlier in (1e3, -1e6, 1e12):
        x = case.x(rng, dtype)
        np.moveaxis(x, case.channel_axis, -1)[(0,) * (x.ndim - 1)] = outlier
        y, _, gradients = run(x)
        assert_close_to_outliers((y, *gradients), dy, x, **axis)
    x = case.memory.place((rng.normal(size=case.shape) * 1e30).astype(dtype))
    y, _, _ = run(x)
    assert_is_forward(y, x, **axis)


def check_not_finite(tensors, case, dtype, path, value, rng):
    """What is not finite stays in its channel."""
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    channels_last = np.moveaxis(x, case.channel_axis, -1)
    channels_last[(-1,) * (x.ndim - 1) + (1,)] = value
    axis = {"channel_axis": case.channel_axis}

    def both():
        x_, dy_ = tensors.put(x), tensors.put(dy)
        y, saved = bnext.batch_norm_forward(x_, **axis)
        return [tensors.get(a) for a in (y, *bnext.batch_norm_backward(dy_, x_, saved))]

    y, *gradients = both() if path is None else gpu.forced(path, both)
    expected = reference.forward(x, **axis)
    for actual, value_of in ((y, expected), (gradients[0], reference.backward(dy, x, **axis).dx)):
        rows = reference.per_channel(actual, case.channel_axis)
        clean = np.isfinite(reference.per_channel(value_of, case.channel_axis)).all(axis=1)
        assert clean.sum() == case.channels - 1
        assert np.isfinite(rows[clean]).all()
        assert np.isnan(rows[~clean]).any()
    clean = np.delete(channels_last, 1, axis=-1)
    alone = np.moveaxis(clean, -1, case.channel_axis % x.ndim)
    others = np.delete(np.moveaxis(y, case.channel_axis, -1), 1, axis=-1)
    others = np.moveaxis(others, -1, case.channel_axis % x.ndim)
    assert_is_forward(np.ascontiguousarray(others), np.ascontiguousarray(alone), **axis)
