"""What the backward pass knows of the forward's: flags, and z made again with its bits."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext import _core

from .activations import ACTIVATIONS, KEEP_FLAGS, SLOPE, SMOOTH
from .cases import Case
from .compare import assert_same_bits
from .epilogues import CASES, DTYPES, both_passes, computed, drawn, is_16_bit
from .sixteen import name_of

pytestmark = pytest.mark.usefixtures("isa")

# Values of z at and about the kinks, and what is no number; as exact in float16.
SPECIAL = [0.0, -0.0, 6e-8, -6e-8, 5.9961, 6.0, 6.0039, -1.0, 3.5, np.inf, -np.inf, np.nan]


def passed_through(name, z, dy):
    """dy * act'(z), with PyTorch's values at kinks and for NaN."""
    z = z.astype(np.float64)  # bfloat16's comparisons warn of NaN
    if name == "relu":
        return np.where(~(z <= 0), dy, dy.dtype.type(0))
    if name == "relu6":
        return np.where(~((z <= 0) | (z >= 6)), dy, dy.dtype.type(0))
    return np.where(z > 0, dy, (dy.astype(computed(dy.dtype)) * SLOPE).astype(dy.dtype))


def assert_equal(actual, expected):
    """In value: 0 is -0, and NaN is NaN."""
    np.testing.assert_array_equal(actual.astype(np.float64), expected.astype(np.float64))


def value_of(name, z):
    with np.errstate(invalid="ignore"):
        y = ACTIVATIONS[name].value(z.astype(np.float64))
    return np.where(np.isnan(z.astype(np.float64)), np.nan, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", KEEP_FLAGS)
@pytest.mark.parametrize("of_residual", [True, False], ids=["residual", "bias"])
def test_at_kinks_and_for_nan(rng, name, dtype, of_residual):
    """z is the residual, or the bias, and no other value has a part in it."""
    parameters = computed(dtype)
    special = np.array(SPECIAL)
    x = rng.normal(size=(23, len(special))).astype(dtype)
    dy = rng.normal(size=x.shape).astype(dtype)
    z = np.broadcast_to(special, x.shape).astype(dtype)
    if of_residual:
        z = rng.permuted(z, axis=1)
        bias = np.full(len(special), -0.0, parameters)
        residual = z
    else:
        bias, residual = special.astype(parameters), np.zeros_like(x)
        z = np.broadcast_to(bias, x.shape)
    weight = np.zeros(len(special), parameters)
    y, saved = bnext.batch_norm_forward(
        x, weight, bias, residual=residual, activation=name, negative_slope=SLOPE
    )
    *_, dbias, dresidual = bnext.batch_norm_backward(dy, x, saved, weight)
    assert_equal(y, value_of(name, z).astype(dtype))
    assert_equal(dresidual, passed_through(name, z, dy))
    if not of_residual:  # without flags, from z
        _, alone = bnext.batch_norm_forward(x, weight, bias, activation=name, negative_slope=SLOPE)
        assert_same_bits(bnext.batch_norm_backward(dy, x, alone, weight)[2], dbias)


@pytest.mark.parametrize("name", KEEP_FLAGS)
def test_subnormal_values_are_no_zeros(dtype, name):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([[1.0], [2.0], [4.0]], dtype)
    residual = np.array([[tiny], [-tiny], [tiny]], dtype)
    zero, dy = np.zeros(1, dtype), np.ones((3, 1), dtype)
    y, saved = bnext.batch_norm_forward(
        x, zero, zero, residual=residual, activation=name, negative_slope=SLOPE
    )
    below = SLOPE if name == "leaky_relu" else 0.0
    assert y[0] == y[2] == tiny
    dresidual = bnext.batch_norm_backward(dy, x, saved, zero)[3]
    assert dresidual[:, 0].tolist() == [1.0, below, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flags_are_the_forward_s(rng, case, dtype):
    """After relu: the residual's gradient is dy where y is not 0, and 0 where it is."""
    inputs = drawn(rng, case, dtype, "relu", True)
    inputs = inputs._replace(dy=case.dy(rng, dtype))
    results = both_passes(inputs)
    assert 0 < np.count_nonzero(results.y) < results.y.size
    expected = np.where(results.y == 0, dtype(0), inputs.dy)
    if is_16_bit(dtype):  # a y that is 0 may have been rounded to it
        assert_same_bits(results.dresidual[results.y != 0], inputs.dy[results.y != 0])
        differ = np.count_nonzero(results.dresidual != expected)
        assert differ <= results.y.size // 100
    else:
        assert_same_bits(results.dresidual, expected)


def about(rng, case, dtype, kink):
    """Inputs without a residual, whose z lie within a few roundings of `kink` or on it.

    dy are whole numbers, so that their sums are exact.
    """
    parameters = computed(dtype)
    base = case.per_channel(rng.uniform(1, 2, case.channels).astype(dtype))
    steps = rng.integers(-6, 7, case.shape) * float(ml_dtypes.finfo(dtype).eps)
    x = case.memory.place((base.astype(np.float64) + steps).astype(dtype))
    weight = case.weight(rng, parameters)
    z, _ = bnext.batch_norm_forward(x, weight, None, channel_axis=case.channel_axis)
    first = np.moveaxis(z, case.channel_axis, 0).reshape(case.channels, -1)[:, 0]
    bias = (kink - first.astype(np.float64)).astype(parameters)
    dy = case.memory.place(rng.integers(1, 9, case.shape).astype(dtype))
    return x, dy, weight, bias


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", ["relu", "relu6"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_z_is_made_again_with_the_forward_s_bits(rng, case, name, dtype):
    """dbias is the exact sum of the dy whose z, as the forward pass had it, is above 0."""
    axis = case.channel_axis
    other_axes = tuple(a for a in range(len(case.shape)) if a != axis % len(case.shape))
    for kink in ACTIVATIONS[name].kinks:
        x, dy, weight, bias = about(rng, case, dtype, kink)
        z, _ = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
        _, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis, activation=name)
        if is_16_bit(dtype) and kink:
            continue  # its z has been rounded to the kink itself; about 0 it keeps its sign
        expected = passed_through(name, z, dy).sum(axis=other_axes, dtype=np.float64)
        assert (np.abs(expected) < dy.sum(axis=other_axes, dtype=np.float64)).any()
        dbias = bnext.batch_norm_backward(dy, x, saved, weight)[2]
        np.testing.assert_array_equal(dbias, expected)

        # Of given statistics: dx is dy * weight, or 0.
        mean, one = saved.mean, np.ones(case.channels)
        given = (x, mean, one, weight, bias, 0.0, axis, None)
        z, _ = _core.normalize(*given)
        _, saved = _core.normalize(*given, epilogue=(None, name, SLOPE))
        dx = bnext.batch_norm_backward(dy, x, saved, np.ones_like(weight))[0]
        assert_same_bits(np.abs(dx), np.abs(passed_through(name, z, dy)))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_smooth_derivatives_are_of_the_forward_s_bits(rng, case, name, dtype):
    """act'(z) with z from x, and with z as a residual beside a weight of 0."""
    inputs = drawn(rng, case, dtype, name, True)
    one, none = np.ones_like(inputs.dy), np.zeros_like(inputs.residual)
    z, _ = bnext.batch_norm_forward(
        inputs.x, inputs.weight, inputs.bias, channel_axis=case.channel_axis
    )
    of_x = inputs._replace(dy=one, residual=none)
    zero = np.zeros_like(inputs.weight)
    of_residual = inputs._replace(dy=one, residual=z, weight=zero, bias=zero)
    first, second = both_passes(of_x), both_passes(of_residual)
    assert_same_bits(first.y, second.y)
    assert_same_bits(first.dresidual, second.dresidual)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_parameters_may_change_until_the_backward_pass(rng, name):
    """An optimizer's step in between changes scales, and not which values were above 0."""
    inputs = drawn(rng, CASES[0], np.float32, name, False)
    weight, bias = inputs.weight.copy(), inputs.bias.copy()
    _, saved = bnext.batch_norm_forward(inputs.x, weight, bias, **inputs.options)
    expected = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight)
    weight[...], bias[...] = 7, -3
    actual = bnext.batch_norm_backward(inputs.dy, inputs.x, saved, inputs.weight)
    for each, other in zip(actual, expected, strict=True):
        assert_same_bits(each, other)


@pytest.mark.parametrize("name", [None, "relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda saved: pickle.loads(pickle.dumps(saved))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
def test_copies_give_the_same_gradients(rng, name, dtype, copied):
    for case in (CASES[0], CASES[5]):
        inputs = drawn(rng, case, dtype, name, True)
        _, saved = bnext.batch_norm_forward(inputs.x, inputs.weight, inputs.bias, **inputs.options)
        other = copied(saved)
        for what in ("activation", "residual", "reads_residual"):
            assert getattr(other, what) == getattr(saved, what)
        arguments = (inputs.dy, inputs.x)
        expected = bnext.batch_norm_backward(
            *arguments, saved, inputs.weight, **inputs.again(saved)
        )
        actual = bnext.batch_norm_backward(*arguments, other, inputs.weight, **inputs.again(other))
        for each, same in zip(actual, expected, strict=True):
            assert_same_bits(each, same)


def restored(state):
    saved = bnext.Saved.__new__(bnext.Saved)
    saved.__setstate__(state)
    return saved


def test_pickles_from_before_activations(rng):
    """Their state has one part less."""
    x = rng.normal(size=(7, 3))
    _, saved = bnext.batch_norm_forward(x)
    *older, epilogue, _, _ = saved.__getstate__()
    assert epilogue is None
    saved_then = restored(tuple(older))
    assert (saved_then.activation, saved_then.residual) == (None, False)
    expected = bnext.batch_norm_backward(x, x, saved)
    for each, other in zip(bnext.batch_norm_backward(x, x, saved_then), expected, strict=True):
        assert_same_bits(each, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[:-2],
        lambda parts: ("nothing", *parts[1:]),
        lambda parts: (*parts[:6], parts[6][:-1], parts[7]),
        lambda parts: (*parts[:5], (1,), *parts[6:]),
    ],
    ids=["fewer", "name", "flags", "strides"],
)
def test_states_that_are_none_are_refused(rng, change):
    x = rng.normal(size=(7, 3))
    _, saved = bnext.batch_norm_forward(x, activation="relu", residual=x)
    *state, epilogue, weights, groups = saved.__getstate__()
    assert restored((*state, epilogue, weights, groups)).activation == "relu"
    assert restored((*state, epilogue)).activation == "relu"  # of older versions
    assert restored((*state, epilogue[:-1])).activation == "relu"
    with pytest.raises(ValueError, match=r"^state: expected the state of a pickled Saved$"):
        restored((*state, change(epilogue), weights, groups))


def test_a_transposed_order_of_flags_goes_with_pickles(rng):
    """Flags lie in the memory order of x, which backward's x need not have."""
    case = Case("stored-NHWC", (3, 5, 7, 2), memory=CASES[5].memory)
    inputs = drawn(rng, case, np.float32, "relu", True)
    expected = both_passes(inputs)
    _, saved = bnext.batch_norm_forward(inputs.x, inputs.weight, inputs.bias, **inputs.options)
    x = np.ascontiguousarray(inputs.x)
    dresidual = bnext.batch_norm_backward(
        np.ascontiguousarray(inputs.dy), x, pickle.loads(pickle.dumps(saved)), inputs.weight
    )[3]
    assert_same_bits(np.ascontiguousarray(dresidual), np.ascontiguousarray(expected.dresidual))


def beginning_at(array, values):
    """A copy that begins so many values behind a line of a cache."""
    room = np.empty(array.nbytes + 64 + values * array.itemsize, np.uint8)
    begin = -room.ctypes.data % 64 + values * array.itemsize
    copied = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copied[...] = array
    return copied


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 37, 9, 11), 1), ((5, 48, 49), 1), ((2, 3, 4099), 1), ((6, 7, 9, 64), -1), ((601, 96), 1)],
    ids=str,
)
def test_flags_do_not_depend_on_where_arrays_begin(rng, shape, axis, dtype, restore_threads):
    """Words of flags are shared by planes, rows and threads, and hold other values each time."""
    channels = shape[axis]
    x, dy, residual = (rng.normal(size=shape).astype(dtype) for _ in range(3))
    weight, bias = rng.normal(size=(2, channels)).astype(computed(dtype))

    def passes_at(begin, threads):
        bnext.set_num_threads(threads)
        place = [beginning_at(each, begin) for each in (x, dy, residual, x, dy)]
        y, saved = bnext.batch_norm_forward(
            place[0], weight, bias, channel_axis=axis, residual=place[2], activation="relu",
            out=place[3],
        )  # fmt: skip
        return y, *bnext.batch_norm_backward(place[1], place[0], saved, weight, out=place[4])

    expected = passes_at(0, 1)
    assert_equal(expected[4], np.where(expected[4] == 0, dtype(0), dy))
    assert 0.2 < np.count_nonzero(expected[4]) / x.size < 0.8
    for begin, threads in ((1, 1), (8, 2), (16, 3), (24, 2), (5, 3)):
        for actual, one in zip(passes_at(begin, threads), expected, strict=True):
            assert_same_bits(actual, one)
