"""What masks, lengths and weights may not be: exact texts, and nothing is changed."""

import numpy as np
import pytest

import bnext

from .snapshots import layer_state, raises_exactly

SHAPE = (4, 3, 5)
ALL = np.ones((4, 5), bool)
SHAPES = "expected shape (4, 5) or (4, 1, 5)"
ONES = np.ones((4, 5), np.float32)


def but(value, dtype=np.float32):
    weights = np.ones((4, 5), dtype)
    weights[1, 2] = value
    return weights


WRONG = {
    "mask-of-x": (
        {"mask": np.ones(SHAPE, bool)}, ValueError,
        f"mask: {SHAPES} (an axis may be 1), got (4, 3, 5)",
    ),
    "mask-of-examples": (
        {"mask": np.ones(4, bool)}, ValueError, f"mask: {SHAPES} (an axis may be 1), got (4,)",
    ),
    "mask-of-another-length": (
        {"mask": np.ones((4, 6), bool)}, ValueError,
        f"mask: {SHAPES} (an axis may be 1), got (4, 6)",
    ),
    "mask-of-floats": ({"mask": ONES}, TypeError, "mask: expected dtype bool, got float32"),
    "mask-of-integers": (
        {"mask": np.ones((4, 5), np.int64)}, TypeError, "mask: expected dtype bool, got int64",
    ),
    "weights-of-x": (
        {"sample_weight": np.ones(SHAPE, np.float32)}, ValueError,
        f"sample_weight: {SHAPES}, (4,) (an axis may be 1), got (4, 3, 5)",
    ),
    "negative": (
        {"sample_weight": but(-1)}, ValueError,
        "sample_weight: expected weights of at least 0, finite in float32, got -1.0",
    ),
    "nan": (
        {"sample_weight": but(np.nan)}, ValueError,
        "sample_weight: expected weights of at least 0, finite in float32, got nan",
    ),
    "infinite": (
        {"sample_weight": but(np.inf)}, ValueError,
        "sample_weight: expected weights of at least 0, finite in float32, got inf",
    ),
    "infinite-in-float32": (
        {"sample_weight": but(1e39, np.float64)}, ValueError,
        "sample_weight: expected weights of at least 0, finite in float32, got 1e+39",
    ),
    "weights-of-bools": (
        {"sample_weight": ALL}, TypeError,
        "sample_weight: expected an array of real numbers, got bool",
    ),
    "lengths-of-floats": (
        {"lengths": np.ones(4)}, TypeError,
        "lengths: expected dtype int64 or another of integers, got float64",
    ),
    "too-many-lengths": (
        {"lengths": np.ones(5, int)}, ValueError, "lengths: expected shape (4,), got (5,)",
    ),
    "too-long": (
        {"lengths": np.array([1, 6, 2, 3])}, ValueError,
        "lengths: expected integers from 0 to 5, got 6",
    ),
    "negative-length": (
        {"lengths": np.array([1, 2, -2, 3])}, ValueError,
        "lengths: expected integers from 0 to 5, got -2",
    ),
    "mask-and-lengths": (
        {"lengths": np.ones(4, int), "mask": ALL}, ValueError,
        "lengths: expected None beside a mask, got both",
    ),
    "masked": (
        {"mask": ALL, "masked": "nan"}, ValueError,
        "masked: expected 'zero', 'normalized' or 'unchanged', got 'nan'",
    ),
    "masked-alone": (
        {"masked": 0}, TypeError, "masked: expected 'zero', 'normalized' or 'unchanged', got int",
    ),
    "masked-array": (
        {"mask": np.ma.array(ALL, mask=ALL)}, TypeError,
        "mask: expected an array without a mask, got a MaskedArray (mask.filled(value) has none)",
    ),
    "residual": (
        {"lengths": np.arange(4), "residual": np.ones((4, 3, 4), np.float32)}, ValueError,
        "residual: expected shape (4, 3, 5), got (4, 3, 4)",
    ),
    "residual-of-another-dtype": (
        {"lengths": np.arange(4), "residual": np.ones(SHAPE)}, TypeError,
        "residual: expected dtype float32, got float64",
    ),
    "activation": (
        {"mask": ALL & (np.arange(5) < 3), "activation": "swish"}, ValueError,
        "activation: expected 'relu', 'relu6', 'leaky_relu', 'silu', 'hardswish', 'gelu', "
        "'gelu_tanh', 'sigmoid', 'tanh', or None, got 'swish'",
    ),
    "mask-and-offsets": (
        {"offsets": np.array([0, 4]), "mask": ALL}, ValueError,
        "offsets: expected None beside a mask, got both",
    ),
    "offsets-of-floats": (
        {"offsets": np.ones(3)}, TypeError,
        "offsets: expected dtype int64 or another of integers, got float64",
    ),
    "no-offsets": (
        {"offsets": np.ones(0, int)}, ValueError,
        "offsets: expected shape (B + 1,) for B examples, got (0,)",
    ),
    "offsets-of-two-axes": (
        {"offsets": np.ones((2, 2), int)}, ValueError,
        "offsets: expected shape (B + 1,) for B examples, got (2, 2)",
    ),
    "offsets-that-decrease": (
        {"offsets": np.array([0, 3, 2, 4])}, ValueError,
        "offsets: expected integers that do not decrease, got some that do",
    ),
    "negative-offset": (
        {"offsets": np.array([-1, 3])}, ValueError,
        "offsets: expected integers from 0 to 4, got -1",
    ),
    "offsets-beyond": (
        {"offsets": np.array([0, 5])}, ValueError,
        "offsets: expected integers from 0 to 4, got 5",
    ),
    "lengths-of-other-examples": (
        {"offsets": np.array([0, 2, 4]), "lengths": np.ones(3, int)}, ValueError,
        "lengths: expected shape (2,) beside offsets, got (3,)",
    ),
    "longer-than-an-example": (
        {"offsets": np.array([0, 2, 4]), "lengths": np.array([1, 3])}, ValueError,
        "lengths: expected integers from 0 to the extent of each example, got 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_functions(rng, name):
    given, kind, text = WRONG[name]
    x, out = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    with raises_exactly(kind, text, {"x": x, "out": out}):
        bnext.batch_norm_forward(x, out=out, **given)
    with raises_exactly(kind, text, {"x": x, "out": out}):
        bnext.normalize(x, np.zeros(3), np.ones(3), out=out, **given)


@pytest.mark.parametrize("name", WRONG)
def test_layers(rng, name):
    given, kind, text = WRONG[name]
    given = dict(given)
    x = rng.normal(size=SHAPE).astype(np.float32)
    if "activation" in given:
        return  # a layer refuses its own when it is made
    layer = bnext.BatchNorm1d(3)
    with raises_exactly(kind, text, lambda: layer_state(layer)):
        layer(x, **given)


def test_in_place(rng):
    x = rng.normal(size=SHAPE).astype(np.float32)
    text = "sample_weight: expected None beside out=x, a call in place, got both"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, out=x, sample_weight=2 * ONES)


def test_lengths_want_one_axis(rng):
    x = rng.normal(size=(4, 3, 5, 2)).astype(np.float32)
    text = "lengths: expected x of 3 dimensions, examples, channels and one more, got 4"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, lengths=np.ones(4, int))


def test_another_x_is_refused_as_ever(rng):
    """What saved keeps of the mask does not replace the look at x."""
    x = rng.normal(size=SHAPE).astype(np.float32)
    _, saved = bnext.batch_norm_forward(x, lengths=np.arange(4))
    with pytest.raises(ValueError, match="another x"):
        bnext.batch_norm_backward(x, x + 1, saved)
