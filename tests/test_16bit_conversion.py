"""How 16-bit values are read and written, exhaustively, by every instruction set."""

import ml_dtypes
import numpy as np
import pytest

import bnext

from .sixteen import (
    TYPES,
    all_values,
    bits_of,
    finite_values,
    is_nan,
    magnitudes,
    name_of,
    nearest,
)
from .subprocesses import output_of

F4 = np.float32
by_dtype = pytest.mark.parametrize("dtype", TYPES, ids=name_of)

# Packs and what is left of them, along a run and across columns.
SHAPES = {"run": (1, 1, -1), "short-runs": (-1, 1, 32), "rows": (-1, 64), "odd-rows": (-1, 17)}


def arranged(values, shape):
    """`values` in `shape`, cut so that they fit; what is missing are zeros."""
    size = abs(int(np.prod(shape)))
    padded = np.zeros(-(-values.size // size) * size, values.dtype)
    padded[: values.size] = values
    return padded.reshape(shape)


def scaled(x, weight=1.0, bias=-0.0):
    """x * weight + bias, of which only the result is rounded. (-0 + -0 is -0, -0 + 0 is not.)"""
    channels = x.shape[1]
    return bnext.normalize(
        x, np.zeros(channels, F4), np.ones(channels, F4), np.full(channels, weight, F4),
        np.full(channels, bias, F4), eps=0.0,
    )  # fmt: skip


@by_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_value_passes(isa, shape, dtype):
    x = arranged(all_values(dtype), shape)
    y = scaled(x)
    number = ~is_nan(x)
    np.testing.assert_array_equal(bits_of(y)[number], bits_of(x)[number])
    assert is_nan(y[~number]).all()


@by_dtype
def test_every_value_is_read_exactly(isa, dtype):
    """The moments of two equal values are that value, in float64."""
    values = finite_values(dtype)
    for x, axis in ((np.stack([values, values]), 1), (np.stack([values, values], axis=1), 0)):
        m = bnext.moments(x, channel_axis=axis)
        np.testing.assert_array_equal(m.mean, values.astype(np.float64))
        np.testing.assert_array_equal(m.m2, 0.0)


@by_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_rounded_to_nearest_even(isa, shape, dtype):
    """float32 results between all neighbours: the middle, and a float32 step to each side of it."""
    x = arranged(finite_values(dtype), shape)
    wide = x.astype(np.float64)
    # weight = 1 + half a unit of 1: x * weight is the middle for powers of two, and all over the
    # place for the others; exact in float64, and once rounded to float32 by the kernel.
    half = float(ml_dtypes.finfo(dtype).eps) / 2
    for weight in (1 + half, 1 + 3 * half, 1 + half + 2.0**-23, 1 + half - 2.0**-23, 0.5, 0.25):
        y = scaled(x, weight)
        with np.errstate(over="ignore"):
            exact = (wide * np.float64(F4(weight))).astype(F4)
        np.testing.assert_array_equal(bits_of(y), bits_of(nearest(exact, dtype)))


def middles(dtype):
    """float32 values: every middle between neighbours, with a float32 step to each side."""
    steps = magnitudes(dtype)
    middle = ((steps[1:] + steps[:-1]) / 2).astype(F4)
    exact = middle.astype(np.float64) == (steps[1:] + steps[:-1]) / 2
    assert exact[1:].all()  # bfloat16's first one is below float32's range
    middle = middle[exact]
    ends = np.nextafter(middle, F4(0)), middle, np.nextafter(middle, F4(np.inf))
    return np.concatenate([*ends, *(-end for end in ends)])


@by_dtype
@pytest.mark.parametrize("channel_axis", [0, 1])
def test_ties_go_to_the_even_one(isa, channel_axis, dtype):
    """A bias of its own for every channel is the result, as float32 has it."""
    results = middles(dtype)
    shape = (results.size, 2) if channel_axis == 0 else (2, results.size)
    zeros, ones = np.zeros(results.size, F4), np.ones(results.size, F4)
    y = bnext.normalize(np.zeros(shape, dtype), zeros, ones, ones, results,
                        eps=0.0, channel_axis=channel_axis)  # fmt: skip
    expected = bits_of(nearest(results, dtype))
    for row in y if channel_axis == 1 else y.T:
        np.testing.assert_array_equal(bits_of(row), expected)


def test_overflow(isa):
    cases = [
        (np.float16, 65504.0, 65504.0),
        (np.float16, np.nextafter(F4(65520), F4(0)), 65504.0),
        (np.float16, 65520.0, np.inf),
        (np.float16, -65520.0, -np.inf),
        (np.float16, 1e30, np.inf),
        (np.float16, 2.0**-25, 0.0),
        (np.float16, 2.0**-25 * (1 + 2.0**-23), 2.0**-24),
        (np.float16, 1e-30, 0.0),
        (ml_dtypes.bfloat16, 3.3895314e38, 3.3895314e38),
        (ml_dtypes.bfloat16, np.finfo(F4).max, np.inf),
        (ml_dtypes.bfloat16, -np.finfo(F4).max, -np.inf),
    ]
    for dtype, result, expected in cases:
        y = scaled(np.zeros((2, 19, 3), dtype), 1.0, result)
        assert (y.astype(F4) == F4(expected)).all(), (dtype, result)


@by_dtype
def test_not_a_number_is_quiet_and_keeps_its_sign(isa, dtype):
    values = all_values(dtype)
    x = arranged(values[is_nan(values)], (-1, 17))
    y = scaled(x)
    number = bits_of(x) == 0  # what `arranged` added
    quiet = 1 << (ml_dtypes.finfo(dtype).nmant - 1)
    np.testing.assert_array_equal(bits_of(y)[~number], bits_of(x)[~number] | quiet)


def test_without_ml_dtypes():
    """It is needed for bfloat16 alone."""
    program = """
        import sys
        sys.modules["ml_dtypes"] = None
        import numpy as np, bnext
        x = np.arange(24, dtype=np.float16).reshape(4, 3, 2)
        y, saved = bnext.batch_norm_forward(x)
        dx, dweight, dbias = bnext.batch_norm_backward(y, x, saved)
        assert y.dtype == dx.dtype == np.float16 and dweight.dtype == np.float32
        assert bnext.BatchNorm1d(3)(x).dtype == np.float16
        for other in (np.int16, np.dtype("V2"), np.dtype([("bfloat16", "i2")])):
            try:
                bnext.moments(np.zeros((4, 3), other))
            except TypeError as error:
                print(str(error).split(", got ")[0])
        print("ml_dtypes" in {name for name, module in sys.modules.items() if module})
    """
    text = "x: expected dtype float16, bfloat16, float32 or float64"
    assert output_of(program).splitlines() == [text] * 3 + ["False"]
