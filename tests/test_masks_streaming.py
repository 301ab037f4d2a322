"""Masked calls larger than the caches, written around them into memory that begins anywhere.

Planes that follow each other are one piece of memory then, and packs cross from one to the next. On
machines where the plan does not stream, they go through the caches.
"""

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations
from .conftest import AVAILABLE_ISAS
from .masks import weighted

TOTAL = 34 << 20  # bytes of the input and the output together
GUARD = 7.0
SHAPES = {
    "planes-of-49": ((67, 7, 7), 1), "planes-of-169": ((50, 13, 13), 1),
    "planes-of-15": ((64, 15), 1),
    "planes-of-16": ((30, 16), 1), "planes-of-4489": ((5, 67, 67), 1), "rows-of-257": ((257,), 1),
    "rows-of-40": ((40,), 1), "rows-of-96": ((19, 96), 2),
}  # fmt: skip
CALLS = [(np.float32, None, "mask"), (np.float32, "relu", "mask"), (np.float32, None, "weights"),
         (np.float32, "silu", "weights"), (np.float64, "relu", "mask"),
         (np.float64, None, "weights"),
         (ml_dtypes.bfloat16, None, "mask"), (np.float16, "relu", "weights")]  # fmt: skip


def guarded(shape, dtype, offset):
    """All memory, and an output in it that begins `offset` values behind a line."""
    size, rest = int(np.prod(shape)), 256
    memory = np.full(size + 2 * rest, GUARD, dtype)
    begin = -memory.ctypes.data % 64 // memory.itemsize + 64 + offset
    return memory, begin, memory[begin : begin + size].reshape(shape)


def only_that_was_written(memory, begin, size):
    return (memory[:begin] == GUARD).all() and (memory[begin + size :] == GUARD).all()


# Each shape with two of the calls.
PAIRS = [(name, *CALLS[(k + 3 * j) % len(CALLS)]) for j in (0, 1) for k, name in enumerate(SHAPES)]


@pytest.mark.parametrize(("name", "dtype", "activation", "kind"), PAIRS, ids=str)
def test_agrees_with_the_definition(rng, name, dtype, activation, kind):
    rest, axis = SHAPES[name]
    n = TOTAL // 2 // np.dtype(dtype).itemsize // int(np.prod(rest)) + 1
    shape = (n, *rest)
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    weight, bias = (rng.normal(size=shape[axis]).astype(np.float32) for _ in range(2))
    if dtype is np.float64:
        weight, bias = weight.astype(float), bias.astype(float)
    positions = shape[:axis] + shape[axis + 1 :]
    weights = rng.integers(0, 4, positions).astype(weight.dtype)
    weights[: n // 5] = 0
    given = {"mask": weights > 0} if kind == "mask" else {"sample_weight": weights}
    isa = AVAILABLE_ISAS[len(name) % len(AVAILABLE_ISAS)]
    offsets = rng.integers(0, 64 // np.dtype(dtype).itemsize, 2)
    y_memory, y_begin, y = guarded(shape, dtype, offsets[0])
    dx_memory, dx_begin, dx = guarded(shape, dtype, offsets[1])
    with bnext.use_isa(isa):
        _, saved = bnext.batch_norm_forward(
            x, weight, bias, channel_axis=axis, out=y, activation=activation, **given
        )
        _, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight, out=dx)
    assert only_that_was_written(y_memory, y_begin, y.size)
    assert only_that_was_written(dx_memory, dx_begin, dx.size)

    def rows(values, channels):
        return np.moveaxis(np.asarray(values), axis, 0).reshape(shape[axis], -1)[channels]

    counted = weights.reshape(-1) > 0
    channels = [0, 1, shape[axis] // 2, shape[axis] - 1]
    for each in (y, dx):
        assert not rows(each, slice(None))[:, ~counted].any()
    w = np.ones(counted.sum()) if kind == "mask" else weights.reshape(-1)[counted]
    part = [rows(each, channels)[:, counted].astype(np.float64) for each in (x, dy, y, dx)]
    act = activations.of(activation)
    scale, shift = (each[channels].astype(np.float64) for each in (weight, bias))
    z = np.asarray(weighted(part[0], w, part[1], scale, shift)[0], np.float64)
    g = part[1] * act.derivative(z)
    far = abs(z) > 1e-4 if activation == "relu" else np.ones(z.shape, bool)
    _, expected, of_weight, of_bias = weighted(part[0], w, g, scale, shift)
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(part[2], act.value(z), rtol=0, atol=40 * eps)
    error = np.abs(part[3] - np.asarray(expected, np.float64))
    allowed = 60 * eps + 2e-3 / np.sqrt(w.sum()) * (activation == "relu")
    assert error[far].max() <= allowed
    for actual, value in ((dweight, of_weight), (dbias, of_bias)):
        bound = 2e-3 * np.sqrt(w.size) if dtype != np.float64 or activation else 1e-9 * w.size
        assert np.abs(actual[channels] - np.asarray(value, np.float64)).max() <= bound
