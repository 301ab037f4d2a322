"""Layer and RMS normalization: functions, against their definition in long double."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import row_reference as reference
from .conftest import AVAILABLE_ISAS
from .fake_cuda import Array, InterfaceArray

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
# Many short rows, few long ones (of several pieces), none, lengths that fit nothing.
SHAPES = (
    ((7, 20), 1), ((1, 1), 1), ((3, 1), 1), ((33, 17), 1), ((2, 5, 3, 4), 2), ((130, 64), 1),
    ((5, 4097), 1), ((2, 70_001), 1), ((13,), 1), ((3, 2, 31), 3), ((70, 128), 1),
)  # fmt: skip
UNIT = {np.float32: 2**-23, np.float64: 2**-52, np.float16: 2**-10, ml_dtypes.bfloat16: 2**-7}
# Units of the largest value of a row, or of its gradient. xhat has the roundings of x - center, of
# rstd, of the shift and of the fused multiply-add, and y one or two more; dx has the roundings
# of xhat twice. Of 16 bits only the last rounding is seen.
Y = {np.float32: 3.0, np.float64: 4.0, np.float16: 0.51, ml_dtypes.bfloat16: 0.51}
DX = {np.float32: 5.0, np.float64: 8.0, np.float16: 0.6, ml_dtypes.bfloat16: 0.6}
PARAMETERS = {np.float32: 2.0, np.float64: 32.0, np.float16: 2.0, ml_dtypes.bfloat16: 2.0}


def param(dtype):
    return np.float64 if dtype is np.float64 else np.float32


def data(rng, shape, dims, dtype):
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    normalized = shape[len(shape) - dims :]
    weight = (1 + 0.5 * rng.standard_normal(normalized)).astype(param(dtype))
    bias = rng.standard_normal(normalized).astype(param(dtype))
    return x, dy, weight, bias


def both(x, dy, dims, weight, bias, eps, centered):
    """y, saved, dx, dweight, and dbias where rows are centered."""
    shape = x.shape[x.ndim - dims :]
    if centered:
        y, saved = bnext.layer_norm_forward(x, shape, weight, bias, eps)
        return y, saved, *bnext.layer_norm_backward(dy, x, saved, weight)
    y, saved = bnext.rms_norm_forward(x, shape, weight, eps)
    return y, saved, *bnext.rms_norm_backward(dy, x, saved, weight)


def check_close(got, expected, unit, scale=None):
    got, expected = np.asarray(got, np.longdouble), np.asarray(expected, np.longdouble)
    got = got.reshape(expected.shape)
    scale = np.abs(expected).max(axis=-1, keepdims=True) if scale is None else scale
    if not scale.size:
        return
    error = np.abs(got - expected) / np.maximum(scale, np.finfo(np.float32).tiny)
    assert error.max(initial=0) <= unit, float(error.max() / unit)


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_shape_against_the_reference(dtype, centered, rng, isa):
    unit, eps = UNIT[dtype], 1e-5
    for shape, dims in SHAPES:
        x, dy, weight, bias = data(rng, shape, dims, dtype)
        of = reference.forward(
            x, dims, weight, bias if centered else None, eps=eps, centered=centered
        )
        y, saved, dx, dweight, *dbias = both(x, dy, dims, weight, bias, eps, centered)
        assert y.dtype == dx.dtype == dtype
        assert y.shape == dx.shape == shape
        assert dweight.dtype == param(dtype)
        assert dweight.shape == weight.shape
        largest = np.abs(of.xhat).max() * np.abs(weight).max() + np.abs(bias).max()
        check_close(y, of.y, Y[dtype] * unit, largest)
        np.testing.assert_allclose(saved.rstd.ravel(), of.rstd[:, 0].astype(float), rtol=1e-11)
        if centered:
            np.testing.assert_allclose(saved.mean.ravel(), of.mean[:, 0].astype(float), rtol=1e-12)
        exact = reference.backward(dy, x, dims, weight, eps=eps, centered=centered)
        scale = of.rstd * np.abs(dy.astype(float)).max() * np.abs(weight).max() * 2
        check_close(dx, exact[0], DX[dtype] * unit, scale * (1 + np.abs(of.xhat).max() ** 2 / 4))
        rows = len(of.rstd)
        size = np.abs(dy.astype(float)).max() * max(1, np.abs(of.xhat).max()) * np.sqrt(rows)
        bound = PARAMETERS[dtype] * UNIT[param(dtype)]
        check_close(dweight.ravel(), exact[1], bound, size)
        if centered:
            check_close(dbias[0].ravel(), exact[2], bound, size)


def digests(x, dy, dims, weight, bias, centered):
    y, saved, *gradients = both(x, dy, dims, weight, bias, 1e-5, centered)
    return [np.asarray(a).tobytes() for a in (y, saved.rows, *gradients)]


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize(
    "shape", [(600, 257), (3, 200_003), (40, 5000)], ids=["many", "long", "some"]
)
def test_the_same_bits_for_any_threads_and_instruction_set(
    shape, centered, rng, restore_threads, fixed_team
):
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        given = data(rng, shape, 1, dtype)
        x, dy, weight, bias = given
        found = {}
        for isa in AVAILABLE_ISAS:
            if isa == "baseline":  # on x86-64 it has no fused multiply-add
                continue
            for threads in (1, 2, 3, 4, 5):
                bnext.set_num_threads(threads)
                with bnext.use_isa(isa):
                    found[isa, threads] = digests(x, dy, 1, weight, bias, centered)
        first, *others = found.values()
        assert all(other == first for other in others)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_large_means(dtype, rng, isa):
    mean = 1e4 if dtype is np.float32 else 1e8
    x = (rng.standard_normal((5, 3001)) + mean).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y, saved = bnext.layer_norm_forward(x, 3001)
    of = reference.forward(x, 1, eps=1e-5)
    check_close(y, of.y, 8 * UNIT[dtype] / 2)
    dx, dweight, _ = bnext.layer_norm_backward(dy, x, saved)
    exact = reference.backward(dy, x, 1, eps=1e-5)
    check_close(dx, exact[0], 8 * UNIT[dtype])
    check_close(dweight, exact[1], 16 * UNIT[dtype], np.abs(exact[1]).max())


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("scale", [1e-35, 1e-41, 1e30, 1e37])
def test_values_at_the_ends_of_float32(scale, centered, rng, isa):
    x = (rng.standard_normal((3, 50)) * scale).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32) * np.float32(scale if scale < 1 else 1)
    y, _, dx, *_ = both(x, dy, 1, None, None, 0.0, centered)
    of = reference.forward(x, 1, eps=0, centered=centered)
    check_close(y, of.y, 4 * UNIT[np.float32])
    exact = reference.backward(dy, x, 1, eps=0, centered=centered)
    if np.abs(exact[0]).max() > 1e-30:
        check_close(dx, exact[0], 8 * UNIT[np.float32])


@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
def test_finite_differences(centered, rng):
    x, dy, weight, bias = data(rng, (4, 9), 1, np.float64)
    _, _, dx, dweight, *dbias = both(x, dy, 1, weight, bias, 1e-2, centered)
    step = 1e-5

    def loss(x, weight, bias):
        return float((both(x, dy, 1, weight, bias, 1e-2, centered)[0] * dy).sum())

    given = {"x": x, "weight": weight, "bias": bias}
    found = {"x": dx, "weight": dweight}
    if centered:
        found["bias"] = dbias[0]
    for name, gradient in found.items():
        for place in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                moved = {key: value.copy() for key, value in given.items()}
                moved[name][place] += sign * step
                values.append(loss(**moved))
            difference = (values[0] - values[1]) / (2 * step)
            assert difference == pytest.approx(gradient[place], abs=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(value, rng, isa):
    for dtype in DTYPES:
        x, dy, weight, bias = data(rng, (9, 100), 1, dtype)
        clean = both(x, dy, 1, weight, bias, 1e-5, True)
        x[4, 17] = value
        y, _, dx, *_ = both(x, dy, 1, weight, bias, 1e-5, True)
        for got, expected in ((y, clean[0]), (dx, clean[2])):
            assert np.isnan(got[4].astype(float)).all()
            others = np.arange(9) != 4
            assert got[others].tobytes() == expected[others].tobytes()


def test_eps_of_rms_is_that_of_the_arithmetic(rng):
    for dtype in DTYPES:
        x = (rng.standard_normal((3, 8)) * 1e-4).astype(dtype)
        eps = np.finfo(param(dtype)).eps
        y, saved = bnext.rms_norm_forward(x, 8)
        assert saved.eps == eps
        assert y.tobytes() == bnext.rms_norm_forward(x, 8, eps=float(eps))[0].tobytes()


def test_constant_rows_are_the_bias():
    x = np.full((3, 10), 7.25, np.float32)
    bias = np.arange(10, dtype=np.float32)
    y, saved = bnext.layer_norm_forward(x, 10, None, bias, eps=0.0)
    assert (y == bias).all()
    assert (saved.rstd == 0).all()


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nothing_gives_nothing(shape):
    x = np.empty(shape, np.float32)
    y, saved = bnext.layer_norm_forward(x, shape[1:])
    dx, dweight, dbias = bnext.layer_norm_backward(x, x, saved)
    assert y.shape == dx.shape == shape
    assert dweight.tolist() == dbias.tolist() == [0.0] * shape[1]


def test_any_strides_and_out(rng):
    x, dy, weight, bias = data(rng, (6, 5, 8), 1, np.float32)
    expected = both(x, dy, 1, weight, bias, 1e-5, True)
    padded = np.zeros((6, 5, 12), np.float32)
    padded[..., :8] = x
    for other in (np.asfortranarray(x), padded[..., :8], x[::-1][::-1]):
        got = both(other, np.asfortranarray(dy), 1, weight[::-1][::-1], bias, 1e-5, True)
        for a, b in zip(got, expected, strict=True):
            if isinstance(a, np.ndarray):
                assert a.tobytes() == b.tobytes()
    for out in (np.empty_like(x), padded[..., 4:].copy()[..., :8], np.asfortranarray(x)):
        y, saved = bnext.layer_norm_forward(x, 8, weight, bias, out=out)
        assert y is out
        assert np.array_equal(y, expected[0])
        own = dy.copy()
        dx, *_ = bnext.layer_norm_backward(own, x, saved, weight, out=own)
        assert dx is own
        assert np.array_equal(dx, expected[2])


def test_pickles(rng):
    x, dy, weight, _ = data(rng, (6, 8), 1, np.float32)
    _, saved = bnext.layer_norm_forward(x, 8, weight)
    again = pickle.loads(pickle.dumps(saved))
    assert repr(again) == repr(saved)
    assert again.shape == (6, 8)
    assert again.normalized_shape == (8,)
    assert np.array_equal(again.rows, saved.rows)
    got = bnext.layer_norm_backward(dy, x, again, weight)
    assert np.array_equal(got[0], bnext.layer_norm_backward(dy, x, saved, weight)[0])


def test_errors(rng):
    x, dy, weight, bias = data(rng, (6, 8), 1, np.float32)
    _, saved = bnext.layer_norm_forward(x, 8, weight)
    forward, backward = bnext.layer_norm_forward, bnext.layer_norm_backward
    changed = x.copy()
    changed += 1
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    cases = [
        (lambda: forward(x, 7), ValueError, r"x: expected shape \(\*, 7\), since .* got \(6, 8\)"),
        (lambda: forward(x, ()), ValueError, "normalized_shape: expected at least 1 dimension"),
        (lambda: forward(x, (2, 6, 8)), ValueError, "x: expected shape"),
        (lambda: forward(x, -8), ValueError, "normalized_shape: expected lengths >= 0"),
        (lambda: forward(x, 8.0), TypeError, "normalized_shape: expected an integer or"),
        (lambda: forward(x, (8.0,)), TypeError, "normalized_shape: expected an integer, got float"),
        (lambda: forward(x, 8, weight[:7]), ValueError, r"weight: expected shape \(8,\), got \(7,"),
        (lambda: forward(x, 8, weight.astype(float)), TypeError, "weight: expected dtype float32"),
        (lambda: forward(x, 8, None, bias[None]), ValueError, r"bias: expected shape \(8,\)"),
        (lambda: forward(x, 8, eps=-1), ValueError, "eps: expected a finite number >= 0"),
        (lambda: forward(x.astype(int), 8), TypeError, "x: expected dtype float16"),
        (lambda: forward(x, 8, out=x), ValueError, "out: expected memory of its own"),
        (lambda: forward(x, 8, out=read_only), ValueError, "out: expected a writeable array"),
        (lambda: forward(x, 8, out=x.astype(float)), TypeError, "out: expected dtype float32"),
        (lambda: backward(dy, x[:5], saved), ValueError, "saved: made from an input of shape"),
        (lambda: backward(dy, changed, saved), ValueError, "saved: made from another x"),
        (lambda: backward(dy[:5], x, saved), ValueError, "dy: expected shape"),
        (lambda: backward(dy, x, None), TypeError, "saved: expected what layer_norm_forward"),
        (lambda: bnext.rms_norm_backward(dy, x, saved), ValueError, "what rms_norm_forward"),
        (lambda: backward(dy, x, saved, weight[:3]), ValueError, "weight: expected shape"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()


@pytest.mark.parametrize("make", [Array, InterfaceArray])
def test_arrays_on_a_gpu_without_kernels(make, rng, monkeypatch):
    def not_built():
        raise ImportError(bnext.cuda.NOT_BUILT)

    monkeypatch.setattr(bnext.cuda, "_load", not_built)
    x = rng.standard_normal((2, 8)).astype(np.float32)
    _, saved = bnext.layer_norm_forward(x, 8)
    there = make(x)
    for call in (
        lambda: bnext.layer_norm_forward(there, 8),
        lambda: bnext.rms_norm_forward(there, 8),
        lambda: bnext.layer_norm_backward(x, there, saved),
        lambda: bnext.RMSNorm(8)(there),
    ):
        with pytest.raises(
            RuntimeError,
            match=r"^x: got an array on (a CUDA device|cuda:0), and bnext cannot compute there: ",
        ):
            call()
    assert repr(saved) == (
        "<bnext.RowSaved of a float32 input of shape (2, 8), normalized_shape (8,)>"
    )
