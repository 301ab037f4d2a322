"""Masks, lengths and weights as the tests draw them, and the definition: the batch compressed.

Positions that count are gathered into rows of shape (C, n), without the others, and the reference
is batch normalization of these. A weight of 2 or 4 is that many copies of a position, each with its
share of the gradient.
"""

import math

import numpy as np

import bnext

from .cases import NHWC, Case, Memory

CASES = [
    Case("NC", (64, 20)),
    Case("NC-257", (67, 257)),
    Case("NC-many-chunks", (1100, 5)),
    Case("NCL", (5, 7, 33)),
    Case("NCL-16", (9, 5, 16)),
    Case("NCL-3", (40, 9, 3)),
    Case("NLC", (5, 33, 7), channel_axis=-1),
    Case("NLC-64", (4, 19, 64), channel_axis=-1),
    Case("NCHW", (3, 6, 5, 7)),
    Case("NCHW-many-chunks", (5, 2, 67, 101)),
    Case("NCHW-stored-NHWC", (3, 33, 5, 7), memory=Memory(order=NHWC)),
    Case("NCHW-stored-WHCN", (5, 6, 3, 4), memory=Memory(order=(3, 2, 1, 0))),
    Case("NHWC-cropped", (3, 7, 5, 9), 3, Memory(margins={2: (1, 1)})),
    Case("every-second-backwards", (5, 9, 35), 1, Memory(steps={0: -1, 2: 1}, offset=4)),
    Case("inner-every-third", (3, 5, 29), 1, Memory(steps={2: 3})),
    Case("C-first", (3, 53), 0),
]


def positions_of(case):
    """The shape of the positions: of x without its channels."""
    axis = case.channel_axis % len(case.shape)
    return case.shape[:axis] + case.shape[axis + 1 :]


def over_channels(case, positions):
    """An array over positions, that broadcasts against x."""
    return np.expand_dims(positions, case.channel_axis % len(case.shape))


def drawn_mask(case, rng, share=0.5):
    """Some positions count, one at least."""
    mask = rng.random(positions_of(case)) < share
    mask.flat[rng.integers(mask.size)] = True
    return mask


def drawn_weights(case, rng, dtype=np.float32):
    """0, 1, 2 and 4, as copies of a position."""
    drawn = rng.choice([0, 1, 2, 4], positions_of(case))
    return np.maximum(drawn, drawn_mask(case, rng, 0.01)).astype(dtype)


def spoiled(case, values, mask, rng):
    """A copy of `values` in the memory of the case, with NaN and infinities where `mask` is not."""
    with np.errstate(all="ignore"):
        bad = rng.choice([np.nan, np.inf, -np.inf, 3e38], values.shape).astype(values.dtype)
        return case.memory.place(np.where(over_channels(case, mask), values, bad))


def compressed(case, values, weights):
    """Rows of the positions that count, each as often as it weighs: shape (C, n)."""
    rows = np.moveaxis(np.asarray(values), case.channel_axis, 0).reshape(case.channels, -1)
    return np.repeat(rows, np.asarray(weights, np.int64).reshape(-1), axis=1)


def shares_of(case, dy, weights):
    """`compressed` of gradients: copies have equal shares of a position's."""
    share = compressed(
        case, np.broadcast_to(over_channels(case, 1 / np.maximum(weights, 1)), case.shape), weights
    )
    return compressed(case, dy, weights) * share.astype(dy.dtype)


def sums_of_copies(case, rows, weights):
    """The other way, of gradients by x: what the copies of a position sum up to, shape (C, n)."""
    copies = np.asarray(weights, np.int64).reshape(-1)
    begins = np.cumsum(copies)[copies > 0] - copies[copies > 0]
    return np.add.reduceat(np.asarray(rows, np.float64), begins, axis=1)


def both_passes(x, dy, weight, bias, axis, **given):
    """Results of the forward and the backward pass, by name."""
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, **given)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    return {
        "y": y, "mean": saved.mean, "m2": saved.m2, "rstd": saved.rstd, "dx": dx,
        "dweight": dweight, "dbias": dbias, "count": np.asarray(saved.count, np.float64),
    }  # fmt: skip


def weighted(x, weights, dy, weight, bias, eps=1e-5):
    """The definition with any weights, of rows (C, n), in long double: y, dx, dweight, dbias."""
    wide = np.longdouble
    x, dy, w = (np.asarray(each, wide) for each in (x, dy, weights))
    weight, bias = (np.asarray(each, wide)[:, None] for each in (weight, bias))
    n = w.sum()
    mean = (w * x).sum(1, keepdims=True) / n
    rstd = 1 / np.sqrt((w * (x - mean) ** 2).sum(1, keepdims=True) / n + wide(eps))
    xhat = (x - mean) * rstd
    dweight, dbias = (dy * xhat).sum(1, keepdims=True), dy.sum(1, keepdims=True)
    dx = weight * rstd * (dy - w * (dbias + xhat * dweight) / n)
    return xhat * weight + bias, dx, dweight[:, 0], dbias[:, 0]


def size_of(case):
    return math.prod(positions_of(case))
