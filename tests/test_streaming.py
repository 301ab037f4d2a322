"""Arrays larger than the caches, which are written around them: the same bits, and no others.

The reference is the same call on slices along the batch, small enough to be written through the
caches. On machines where the plan does not stream, both go through them.
"""

import functools

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext import _core

from .cases import NHWC, Case, Memory
from .compare import assert_same_bits
from .conftest import AVAILABLE_ISAS
from .limits import SOAK

TOTAL = 34 << 20  # bytes of the input and the output together
GUARD = 7.0
PIECES = 8

# (shape behind the batch, channel axis, memory): C is a multiple of packs and lines, or not.
LAYOUTS = {
    "NC-64": Case("", (1, 64)),
    "NC-40": Case("", (1, 40)),
    "NC-3": Case("", (1, 3)),
    "NC-257": Case("", (1, 257)),
    "NC-128-of-more": Case("", (1, 128), memory=Memory(margins={1: (64, 64)})),
    "NC-72-of-more": Case("", (1, 72), memory=Memory(margins={1: (8, 48)})),
    "stored-NHWC-50": Case("", (1, 50, 17, 19), memory=Memory(order=NHWC)),
    "NHWC-cropped-96": Case(
        "", (1, 17, 19, 96), channel_axis=3, memory=Memory(margins={2: (1, 1)})
    ),
    "NCHW-7x7": Case("", (1, 67, 7, 7)),
    "NCHW-13x13": Case("", (1, 50, 13, 13)),
    "NCHW-2x2": Case("", (1, 50, 2, 2)),
    "NCHW-2x2-of-more": Case("", (1, 48, 2, 2), memory=Memory(margins={1: (8, 8)})),
    "NCL-3": Case("", (1, 3, 3)),
    "NCL-15": Case("", (1, 64, 15)),
    "NCHW-56x56": Case("", (1, 5, 56, 56)),
    "NCHW-67x67": Case("", (1, 5, 67, 67)),
}
OFFSETS = {2: (0, 2), 4: (0, 4, 16, 36), 8: (8,)}  # one that is aligned, and others


@functools.lru_cache(maxsize=1)
def data(dtype):
    """Random x and dy, in one dimension, enough for every shape here."""
    rng = np.random.default_rng(3)
    size = TOTAL // 2 // np.dtype(dtype).itemsize + (1 << 17)
    return [rng.standard_normal(size, np.float32).astype(dtype) for _ in range(2)]


def guarded(case, shape, dtype, offset):
    """All memory, filled with `GUARD`, and an output that lies in it with elements around it."""
    memory = case.memory
    margins = {0: (1, 1)} | dict(memory.margins)
    return Memory(memory.order, memory.steps, margins, offset).allocate(shape, dtype, GUARD)


DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def combinations():
    """Every second layout of a dtype with the best instruction set, every fourth with others.

    So each layout is there with two dtypes, or one. With BNEXT_SOAK each layout with every dtype,
    on instruction sets in turn, so that each two of the three meet.
    """

    def chosen(j, k, i):
        if SOAK == 1:
            return (i + j + k) % (4 if k else 2) == 0
        return (i + j) % len(AVAILABLE_ISAS) == k

    return [
        pytest.param(isa, dtype, layout, id=f"{isa}-{np.dtype(dtype).name}-{layout}")
        for j, dtype in enumerate(DTYPES)
        for k, isa in enumerate(AVAILABLE_ISAS)
        for i, layout in enumerate(LAYOUTS)
        if chosen(j, k, i)
    ]


@pytest.mark.parametrize(("isa", "dtype", "layout"), combinations(), indirect=["isa"])
def test_large_outputs(isa, dtype, layout):
    case = LAYOUTS[layout]
    item = np.dtype(dtype).itemsize
    examples = TOTAL // 2 // item // int(np.prod(case.shape)) + 1
    shape = (examples, *case.shape[1:])
    axis, channels = case.channel_axis, case.channels
    parameter = np.float64 if item == 8 else np.float32
    rng = np.random.default_rng(4)
    weight, bias = rng.normal(size=(2, channels)).astype(parameter)

    size = int(np.prod(shape))
    x, dy = (case.memory.place(values[:size].reshape(shape)) for values in data(dtype))
    whole, out = guarded(case, shape, dtype, 0)  # sums follow the layout of the output as well
    _, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, out=out)
    sums = _core.backward_reduce(dy, x, saved)
    expected_y, expected_dx = np.empty_like(x), np.empty_like(x)
    step = -(-examples // PIECES)
    for first in range(0, examples, step):
        part = slice(first, first + step)
        given = x[part], saved.mean, saved.var, weight, bias, saved.eps, axis
        _, part_saved = _core.normalize(*given, expected_y[part])
        some = dy[part], x[part], part_saved, weight, *sums, saved.count
        _core.backward_apply(*some, expected_dx[part])
    aligned, *others = OFFSETS[item]
    if others and SOAK == 1:  # each of them with some of the layouts, in every instruction set
        others = [others[list(LAYOUTS).index(layout) % len(others)]]
    for offset in (aligned, *others):
        what = f"{offset} bytes off"
        whole, out = guarded(case, shape, dtype, offset)
        bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, out=out)
        assert_same_bits(out, expected_y, f"y, {what}")
        bnext.batch_norm_backward(dy, x, saved, weight, out=out)
        assert_same_bits(out, expected_dx, f"dx, {what}")
        out[...] = GUARD
        assert (whole == np.asarray(GUARD, dtype)).all(), f"written beyond the output, {what}"
    bnext.normalize(x, saved.mean, saved.var, weight, bias, channel_axis=axis, out=out)
    assert_same_bits(out, expected_y, "normalize")
