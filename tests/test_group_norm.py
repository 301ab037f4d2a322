"""Group and instance normalization: functions, against their definition in long double."""

import hashlib
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import cell_reference as reference
from .conftest import AVAILABLE_ISAS, SCHEDULES, runtimes
from .numerical import numerical_gradient

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
# One value of a channel, small planes, planes of odd lengths, few long slabs, slabs wider than a
# block of channels, one example, one group, a group for each channel.
SHAPES = (
    ((64, 20), 4), ((7, 6, 1), 3), ((5, 12, 2, 2), 4), ((3, 8, 5, 7), 8), ((2, 6, 64, 65), 2),
    ((1, 4, 130, 130), 1), ((4, 32, 14, 14), 8), ((2, 600, 3, 3), 2), ((7, 33, 2, 1), 11),
    ((1, 3, 33_001), 3), ((3, 5, 1, 2, 17), 5),
)  # fmt: skip
LAYOUTS = ("planar", "interleaved", "channels", "examples", "reversed")
UNIT = {np.float32: 2**-23, np.float64: 2**-52, np.float16: 2**-10, ml_dtypes.bfloat16: 2**-7}
# Units of the largest value of a slab and its terms. y has the roundings of x - center, of scale,
# of shift and of the fused multiply-add, and dx seven. Of 16 bits only the last rounding is seen.
Y = {np.float32: 3.0, np.float64: 12.0, np.float16: 0.6, ml_dtypes.bfloat16: 0.6}
DX = {np.float32: 5.0, np.float64: 24.0, np.float16: 0.7, ml_dtypes.bfloat16: 0.7}
PARAMETERS = {np.float32: 2.0, np.float64: 64.0, np.float16: 2.0, ml_dtypes.bfloat16: 2.0}


def param(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def laid_out(array, layout):
    """The same values in memory of another order, with gaps, or turned around."""
    if layout == "interleaved":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if layout == "reversed":  # neither walk: copied
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    axis = {"channels": 1, "examples": 0}.get(layout)
    if axis is None:
        return array
    shape = list(array.shape)
    shape[axis] = 2 * shape[axis] + 3 if axis == 0 else shape[axis] + 3
    larger = np.full(shape, np.nan, array.dtype)
    part = larger[1 : 1 + 2 * array.shape[0] : 2] if axis == 0 else larger[:, 2:-1]
    part[...] = array
    return part


def data(rng, shape, dtype, layout="planar"):
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight = (1 + 0.5 * rng.standard_normal(shape[1])).astype(param(dtype))
    bias = rng.standard_normal(shape[1]).astype(param(dtype))
    return laid_out(x, layout), laid_out(dy, layout), weight, bias


def both(x, dy, groups, weight, bias, eps=1e-5):
    if groups == x.shape[1] and x[0, 0].size > 1:
        y, saved = bnext.instance_norm_forward(x, weight, bias, eps)
        return y, saved, *bnext.instance_norm_backward(dy, x, saved, weight)
    y, saved = bnext.group_norm_forward(x, groups, weight, bias, eps)
    return y, saved, *bnext.group_norm_backward(dy, x, saved, weight)


def digest(*arrays):
    """The bytes of arrays, hashed."""
    state = hashlib.blake2b(digest_size=8)
    for array in arrays:
        state.update(np.array(array, order="C").tobytes())
    return state.hexdigest()


def assert_close(actual, expected, units, unit, groups, beside=0.0):
    """By the largest value of each slab; `beside`: of terms that the values are sums of."""
    assert actual.shape == expected.shape
    error = np.abs(np.asarray(actual, np.longdouble) - expected)
    slabs = (expected.shape[0], groups, -1)
    largest = np.abs(expected).reshape(slabs).max(axis=2, keepdims=True) + beside
    assert np.max(error.reshape(slabs) / np.maximum(largest, 1e-300)) <= units * unit


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_values(rng, shape, groups, dtype):
    """Layouts and instruction sets take turns."""
    weights = (True, False, True, True, False)
    for i, layout in enumerate(LAYOUTS):
        x, dy, weight, bias = data(rng, shape, dtype, layout)
        if not weights[i]:
            weight = bias = None
        else:
            weight[0] = 0
        expected, mean, var = reference.group_norm(x, groups, weight, bias)
        gradients = reference.group_norm_backward(dy, x, groups, weight)
        chosen = runtimes()
        isa, threads = chosen[(i + len(shape)) % len(chosen)]
        bnext.set_num_threads(threads)
        with bnext.use_isa(isa):
            y, saved, dx, dweight, dbias = both(x, dy, groups, weight, bias)
            assert bnext._core.last_isa() == isa
        assert y.dtype == dx.dtype == x.dtype
        assert dweight.dtype == dbias.dtype == param(dtype)
        unit = UNIT[dtype]
        assert_close(y, expected, Y[dtype], unit, groups, beside=1)
        terms = np.abs(dy if weight is None else dy * weight.reshape(-1, *(1,) * (x.ndim - 2)))
        terms = terms.reshape(shape[0], groups, -1).max(axis=2) / np.sqrt(var + 1e-5)
        assert_close(dx, gradients[0], DX[dtype], unit, groups, beside=terms[..., None])
        count = x.size / x.shape[1]
        of_sums = UNIT[param(dtype)] * PARAMETERS[dtype] * np.sqrt(count)
        for got, wanted in zip((dweight, dbias), gradients[1:], strict=True):
            scale = np.sqrt(count) + np.abs(wanted)
            near = 2**-18 if dtype not in (np.float32, np.float64) else of_sums
            assert np.all(np.abs(got - wanted) <= max(of_sums, near) * scale)
        assert saved.mean.shape == saved.var.shape == (shape[0], groups)
        assert saved.count == x[0].size // groups
        near = 1e-5 if dtype not in (np.float32, np.float64) else 1e-12
        assert np.all(np.abs(saved.mean - mean) <= near * np.sqrt(var + 1e-3))
        assert np.all(np.abs(saved.var - var) <= near * (var + 1e-3))


FUSED = [isa for isa in AVAILABLE_ISAS if isa != "baseline"]


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["planar", "interleaved", "channels"])
def test_same_bits_for_any_threads_schedule_and_instruction_set(rng, dtype, layout):
    for shape, groups in (((64, 20), 4), ((3, 12, 7, 9), 3), ((1, 4, 90, 91), 2)):
        x, dy, weight, bias = data(rng, shape, dtype, layout)
        found = {}
        for i, (schedule, isa) in enumerate((s, isa) for s in (*SCHEDULES, None) for isa in FUSED):
            bnext._core.force_schedule(schedule)
            for threads in (1, 2, 3, 5)[i % 2 :: 2] if schedule else (1, 2, 3, 4, 5):
                bnext.set_num_threads(threads)
                with bnext.use_isa(isa):
                    y, saved, *gradients = both(x, dy, groups, weight, bias)
                found[digest(y, saved.rows, *gradients)] = schedule, isa, threads
        bnext._core.force_schedule(None)
        assert len(found) == 1, found


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_gradients_against_finite_differences(rng, groups):
    x, dy, weight, bias = data(rng, (2, 6, 3), np.float64)
    weight[1] = 0

    def loss(x, weight, bias):
        return float((bnext.group_norm_forward(x, groups, weight, bias)[0] * dy).sum())

    _, saved = bnext.group_norm_forward(x, groups, weight, bias)
    dx, dweight, dbias = bnext.group_norm_backward(dy, x, saved, weight)
    for got, wanted in (
        (dx, numerical_gradient(lambda v: loss(v, weight, bias), x)),
        (dweight, numerical_gradient(lambda v: loss(x, v, bias), weight)),
        (dbias, numerical_gradient(lambda v: loss(x, weight, v), bias)),
    ):
        assert np.max(np.abs(got - wanted)) < 1e-7


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_a_large_mean_cancels_nothing(rng, layout):
    """Where mean / std is 1e8 in float64, and 1e3 in float32; each slab at a place of its own."""
    for dtype, far in ((np.float64, 1e8), (np.float32, 1e3)):
        x = rng.standard_normal((3, 8, 6, 7))
        x += far * (1 + np.arange(12)).reshape(3, 4, 1, 1).repeat(2, axis=1)
        x, dy = (
            laid_out(x.astype(dtype), layout),
            laid_out(rng.random(x.shape).astype(dtype), layout),
        )
        y, _, dx, *_ = both(x, dy, 4, None, None)
        assert_close(y, reference.group_norm(x, 4)[0], Y[dtype], UNIT[dtype], 4)
        assert_close(dx, reference.group_norm_backward(dy, x, 4)[0], DX[dtype], UNIT[dtype], 4)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_nan_stays_in_its_slab(rng, layout, dtype):
    x, dy, weight, bias = data(rng, (3, 6, 4, 5), dtype, layout)
    expected = both(x, dy, 3, weight, bias)
    broken = x.copy(order="K")
    broken[1, 2, 0, 0] = np.nan
    y, saved, dx, *_ = both(broken, dy, 3, weight, bias)
    hit = np.zeros(x.shape, bool)
    hit[1, 2:4] = True
    for got, before in ((y, expected[0]), (dx, expected[2])):
        got, before = got.astype(np.float64), before.astype(np.float64)
        assert np.isnan(got[hit]).all()
        assert np.array_equal(got[~hit], before[~hit])
    assert np.isnan(saved.mean).sum() == 1


# Lanes of several short planes are added up together: as many as fill a register, and the rest.
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("isa", AVAILABLE_ISAS)
def test_sums_of_a_channel_are_its_own(rng, isa, dtype):
    for inner in (16, 17, 49, 196, 255, 256):
        x, dy, weight, _ = data(rng, (1, 19, inner), dtype)
        with bnext.use_isa(isa):
            saved = bnext.instance_norm_forward(x, weight)[1]
            together = bnext.instance_norm_backward(dy, x, saved, weight)
            for c in range(19):
                part = x[:, c : c + 1].copy(), dy[:, c : c + 1].copy(), weight[c : c + 1].copy()
                saved = bnext.instance_norm_forward(part[0], part[2])[1]
                alone = bnext.instance_norm_backward(part[1], part[0], saved, part[2])
                for one, all_of_them in zip(alone, together, strict=True):
                    axis = 1 if all_of_them.ndim > 1 else 0
                    assert one.tobytes() == all_of_them.take([c], axis).tobytes()


def test_weights_of_other_sizes(rng):
    """Some 0, some far below the others, all of a group 0."""
    x, dy, weight, bias = data(rng, (4, 8, 33), np.float64)
    weight[:] = 1, 0, 1e-30, -2, 0, 0, 1e-200, 3e-200
    _, _, dx, dweight, _ = both(x, dy, 2, weight, bias)
    expected = reference.group_norm_backward(dy, x, 2, weight)
    assert np.max(np.abs(dx[:, :4] - expected[0][:, :4])) < 1e-14
    assert np.max(np.abs(dx[:, 4:] - expected[0][:, 4:])) < 1e-214
    assert np.max(np.abs(dweight - expected[1])) < 1e-12
    _, _, dx, *_ = both(x, dy, 2, np.zeros(8), bias)
    assert not dx.any()


def test_out_and_channels_last_axis(rng):
    x, dy, weight, bias = data(rng, (4, 6, 5, 3), np.float32)
    y, _, dx, dweight, dbias = both(x, dy, 3, weight, bias)
    last, dy_last = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
    out = np.empty_like(last)
    again, saved_last = bnext.group_norm_forward(last, 3, weight, bias, channel_axis=-1, out=out)
    assert again is out
    assert np.allclose(np.moveaxis(out, -1, 1), y, atol=1e-6)
    gradients = bnext.group_norm_backward(dy_last, last, saved_last, weight, out=dy_last)
    assert gradients[0] is dy_last
    assert np.allclose(np.moveaxis(dy_last, -1, 1), dx, atol=1e-5)
    assert np.allclose(gradients[1:], (dweight, dbias), atol=1e-4)
    strided = np.empty((4, 6, 5, 6), np.float32)[..., ::2]  # as no kernel writes
    assert bnext.group_norm_forward(x, 3, weight, bias, out=strided)[0] is strided
    assert np.array_equal(strided, y)


def test_empty_batches():
    for shape in ((0, 6, 3), (2, 6, 0)):
        x = np.empty(shape, np.float32)
        y, saved, dx, dweight, dbias = both(x, x, 3, None, None)
        assert y.shape == dx.shape == shape
        assert saved.mean.shape == (shape[0], 3)
        assert not dweight.any()
        assert dweight.shape == dbias.shape == (6,)


def test_no_channels():
    x = np.empty((4, 0, 8), np.float32)
    for num_groups in (1, 3):
        y, saved, dx, dweight, dbias = both(x, x, num_groups, None, None)
        assert y.shape == dx.shape == x.shape
        assert saved.mean.shape == (4, num_groups)
        assert not saved.mean.any()
        assert dweight.shape == dbias.shape == (0,)
    y, saved = bnext.instance_norm_forward(x)
    assert bnext.instance_norm_backward(y, x, saved)[0].shape == x.shape


def test_saved_of_norms(rng):
    x, dy, weight, bias = data(rng, (2, 6, 5), np.float32)
    _, saved = bnext.group_norm_forward(x, 3, weight, bias)
    _, of_batch = bnext.batch_norm_forward(x)
    assert (saved.num_groups, of_batch.num_groups) == (3, None)
    again = pickle.loads(pickle.dumps(saved))
    assert np.array_equal(again.rows, saved.rows)
    assert again.rows.shape == (5, 2, 3)
    first = bnext.group_norm_backward(dy, x, again, weight)[0]
    assert np.array_equal(first, bnext.group_norm_backward(dy, x, saved, weight)[0])
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned, got what gr"):
        bnext.batch_norm_backward(dy, x, saved)
    with pytest.raises(ValueError, match="expected what group_norm_forward returned, got what ba"):
        bnext.group_norm_backward(dy, x, of_batch)
    with pytest.raises(ValueError, match="expected what batch_norm_forward returned"):
        bnext.recompute(x, saved)
    with pytest.raises(ValueError, match="x was changed"):
        bnext.group_norm_backward(dy, x + 1, saved)


WRONG = {
    "num_groups: expected a divisor of the number of channels, 6, got 4": {"num_groups": 4},
    "num_groups: expected a divisor of the number of channels, 6, got 0": {"num_groups": 0},
    "num_groups: expected an integer, got None": {"num_groups": None},
    "num_groups: expected an integer, got float": {"num_groups": 2.0},
    "x: expected at least 2 dimensions, got 1": {"x": np.ones(6, np.float32), "channel_axis": -1},
    "x: expected dtype float16, bfloat16, float32 or float64, got int64": {
        "x": np.ones((2, 6), int)
    },
    "channel_axis: expected an axis behind the first, which has the examples, got 0": {
        "x": np.ones((6, 6), np.float32), "channel_axis": 0,
    },
    "channel_axis: expected an axis of a 3-dimensional array": {"channel_axis": 3},
    "weight: expected shape (6,), got (5,)": {"weight": np.ones(5, np.float32)},
    "bias: expected dtype float32, got float64": {"bias": np.ones(6)},
    "eps: expected a finite number >= 0, got -1": {"eps": -1.0},
    "Expected more than 1 value per channel when training, got input size (1, 6, 1)": {
        "x": np.ones((1, 6, 1), np.float32), "num_groups": 6,
    },
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_errors(text):
    x = np.zeros((2, 6, 3), np.float32)
    with pytest.raises((ValueError, TypeError)) as caught:
        bnext.group_norm_forward(**{"x": x, "num_groups": 3} | WRONG[text])
    assert str(caught.value).startswith(text)


def test_errors_of_out_and_of_single_values():
    x = np.zeros((2, 6, 3), np.float32)
    with pytest.raises(ValueError, match=r"out: expected memory of its own, got .* overlaps x"):
        bnext.group_norm_forward(x, 3, out=x)
    with pytest.raises(ValueError, match=r"more than 1 spatial element .* \(2, 6, 1\)"):
        bnext.instance_norm_forward(x[:, :, :1])
    _, saved = bnext.group_norm_forward(x, 3)
    with pytest.raises(ValueError, match="dy: expected shape"):
        bnext.group_norm_backward(x[:1], x, saved)
    with pytest.raises(TypeError, match="saved: expected what"):
        bnext.group_norm_backward(x, x, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, _ = bnext.group_norm_forward(x, 3, eps=0.0)  # constant slabs
    assert not y.any()
