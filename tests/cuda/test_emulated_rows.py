"""Layer and RMS normalization by the emulated kernels: functions, against long double."""

import copy
import itertools
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import activations
from .. import row_reference as reference
from ..activations import ACTIVATIONS, SLOPE
from ..compare import assert_same_bits
from ..fake_cuda import Array, InterfaceArray
from ..groups.support import new_group
from ..optional import import_emulated
from ..test_layer_norm import DX, UNIT, Y, both, check_close, data, param
from ..test_layer_norm_activated import argument, assert_close, backward, drawn, forward, rows

MODULE = import_emulated()
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
CENTERED = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
# Warps with a row each, blocks with one; units of 16 bytes and single values; rows that a small
# device keeps in part; more rows than blocks, and fewer; one value a row.
SHAPES = (
    ((7, 20), 1), ((1, 1), 1), ((3, 1), 1), ((33, 17), 1), ((2, 5, 3, 8), 2), ((150, 64), 1),
    ((70, 260), 1), ((3, 1001), 1), ((13,), 1), ((3, 2, 31), 3), ((2, 1536), 1), ((3, 4104), 1),
)  # fmt: skip
SMALL, LARGE = 0, 1  # devices


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(bnext.cuda, "_load", lambda: MODULE)


def there(values, device=SMALL):
    return None if values is None else Array(values, device)


def here(results):
    return [getattr(each, "values", each) for each in results]


def both_there(x, dy, dims, weight, bias, eps, centered, device=SMALL):
    """As `both`, for arrays there; `saved` is as it is."""
    given = (there(each, device) for each in (x, dy, weight, bias))
    x, dy, weight, bias = given
    return here(both(x, dy, dims, weight, bias, eps, centered))


@CENTERED
@DATA
def test_every_shape_against_the_reference(dtype, centered, rng):
    unit, eps = UNIT[dtype], 1e-5
    for (shape, dims), device in itertools.product(SHAPES, (SMALL, LARGE)):
        x, dy, weight, bias = data(rng, shape, dims, dtype)
        of = reference.forward(
            x, dims, weight, bias if centered else None, eps=eps, centered=centered
        )
        y, saved, dx, dweight, *dbias = both_there(x, dy, dims, weight, bias, eps, centered, device)
        assert y.dtype == dx.dtype == dtype
        assert y.shape == dx.shape == shape
        assert dweight.dtype == param(dtype)
        assert dweight.shape == weight.shape
        largest = np.abs(of.xhat).max() * np.abs(weight).max() + np.abs(bias).max()
        check_close(y, of.y, (Y[dtype] + 1) * unit, largest)
        # Sums of up to 8 values are in the arithmetic's type.
        close = 4 * UNIT[param(dtype)]
        np.testing.assert_allclose(
            saved.rstd.values.ravel(), of.rstd[:, 0].astype(float), rtol=close
        )
        assert saved.mean.shape == shape[: len(shape) - dims]
        if centered:
            np.testing.assert_allclose(
                saved.mean.values.ravel(), of.mean[:, 0].astype(float), rtol=close
            )
        exact = reference.backward(dy, x, dims, weight, eps=eps, centered=centered)
        scale = of.rstd * np.abs(dy.astype(float)).max() * np.abs(weight).max() * 2
        scale = scale * (1 + np.abs(of.xhat).max() ** 2 / 4)
        check_close(dx, exact[0], (DX[dtype] + 2) * unit, scale)
        size = np.abs(dy.astype(float)).max() * max(1, np.abs(of.xhat).max())
        size = size * np.sqrt(len(of.rstd))
        bound = (32 if dtype is np.float64 else 6) * UNIT[param(dtype)]
        check_close(dweight.ravel(), exact[1], bound, size)
        if centered:
            check_close(dbias[0].ravel(), exact[2], bound, size)


@CENTERED
@DATA
def test_parameters_may_be_absent(dtype, centered, rng):
    x, dy, weight, bias = data(rng, (9, 40), 1, dtype)
    ones, zeros = np.ones_like(weight), np.zeros_like(bias)
    absent = both_there(x, dy, 1, None, None, 1e-5, centered)
    present = both_there(x, dy, 1, ones, zeros, 1e-5, centered)
    for one, other in zip(absent, present, strict=True):
        if isinstance(one, np.ndarray):
            assert_same_bits(one, other)


@CENTERED
def test_the_same_bits_every_time(centered, rng):
    for dtype, shape in itertools.product(DTYPES, [(150, 64), (70, 260), (2, 4104)]):
        given = data(rng, shape, 1, dtype)
        x, dy, weight, bias = given
        first, *others = (both_there(x, dy, 1, weight, bias, 1e-5, centered) for _ in range(3))
        for other in others:
            for one, another in zip(first, other, strict=True):
                if isinstance(one, np.ndarray):
                    assert_same_bits(one, another)
            assert_same_bits(first[1].rows.values, other[1].rows.values)


@DATA
def test_large_means(dtype, rng):
    """Of a mean that is thousands of times the deviation, nothing cancels."""
    if dtype not in (np.float32, np.float64):
        return
    mean = 1e4 if dtype is np.float32 else 1e8
    for width in (100, 3001):
        x = (rng.standard_normal((5, width)) + mean).astype(dtype)
        dy = rng.standard_normal(x.shape).astype(dtype)
        y, _, dx, dweight, _ = both_there(x, dy, 1, None, None, 1e-5, True)
        of = reference.forward(x, 1, eps=1e-5)
        check_close(y, of.y, 8 * UNIT[dtype])
        exact = reference.backward(dy, x, 1, eps=1e-5)
        check_close(dx, exact[0], 8 * UNIT[dtype])
        check_close(dweight, exact[1], 16 * UNIT[dtype], np.abs(exact[1]).max())


@pytest.mark.parametrize("place", [0, 50, 99])
def test_one_outlier_is_no_pilot(place, rng):
    x = rng.standard_normal((4, 100)).astype(np.float32)
    x[:, place] += 1e4
    y, saved, *_ = both_there(x, x, 1, None, None, 0.0, True)
    of = reference.forward(x, 1, eps=0)
    check_close(y, of.y, 4 * UNIT[np.float32])
    np.testing.assert_allclose(saved.rstd.values, of.rstd[:, 0].astype(float), rtol=1e-6)


@CENTERED
@pytest.mark.parametrize("scale", [1e-35, 1e-41, 1e30, 1e37])
def test_values_at_the_ends_of_float32(scale, centered, rng):
    x = (rng.standard_normal((3, 50)) * scale).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32) * np.float32(scale if scale < 1 else 1)
    y, _, dx, *_ = both_there(x, dy, 1, None, None, 0.0, centered)
    of = reference.forward(x, 1, eps=0, centered=centered)
    check_close(y, of.y, 4 * UNIT[np.float32])
    exact = reference.backward(dy, x, 1, eps=0, centered=centered)
    if np.abs(exact[0]).max() > 1e-30:
        check_close(dx, exact[0], 8 * UNIT[np.float32])


@CENTERED
def test_gradients_at_the_upper_end_of_float32(centered, rng):
    """Sums of what a thread has leave float32's range, and the row's sums do not."""
    x = rng.standard_normal((3, 64)).astype(np.float32)
    dy = (rng.choice([-1.0, 1.0], x.shape) * 3e38).astype(np.float32)
    _, _, dx, *_ = both_there(x, dy, 1, None, None, 1e10, centered)
    exact = reference.backward(dy, x, 1, eps=1e10, centered=centered)
    check_close(dx, exact[0], 8 * UNIT[np.float32])


@DATA
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(value, dtype, rng):
    x, dy, weight, bias = data(rng, (9, 100), 1, dtype)
    clean = both_there(x, dy, 1, weight, bias, 1e-5, True)
    for place in (0, 17):
        x = x.copy()
        x[4, place] = value
        y, _, dx, *_ = both_there(x, dy, 1, weight, bias, 1e-5, True)
        for got, expected in ((y, clean[0]), (dx, clean[2])):
            assert np.isnan(got[4].astype(float)).all()
            others = np.arange(9) != 4
            assert got[others].tobytes() == expected[others].tobytes()


def test_eps_of_rms_is_that_of_the_arithmetic(rng):
    for dtype in DTYPES:
        x = there((rng.standard_normal((3, 8)) * 1e-4).astype(dtype))
        eps = np.finfo(param(dtype)).eps
        y, saved = bnext.rms_norm_forward(x, 8)
        assert saved.eps == eps
        assert_same_bits(y.values, bnext.rms_norm_forward(x, 8, eps=float(eps))[0].values)


def test_constant_rows_are_the_bias():
    x = np.full((3, 10), 7.25, np.float32)
    bias = np.arange(10, dtype=np.float32)
    y, saved = bnext.layer_norm_forward(there(x), 10, None, there(bias), eps=0.0)
    assert (y.values == bias).all()
    assert (saved.rstd.values == 0).all()


@CENTERED
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nothing_gives_nothing(shape, centered):
    x = np.empty(shape, np.float32)
    y, saved, dx, *parameters = both_there(x, x, 1, None, None, 1e-5, centered)
    assert y.shape == dx.shape == shape
    assert all(each.tolist() == [0.0] * shape[1] for each in parameters)
    assert len(parameters) == 1 + centered
    assert saved.rows.values.tolist() == [[0.0] * shape[0]] * 3


@pytest.mark.parametrize("make", [Array, InterfaceArray], ids=["dlpack", "interface"])
def test_any_strides_and_out(make, rng):
    x, dy, weight, bias = data(rng, (6, 5, 8), 1, np.float32)
    expected = both_there(x, dy, 1, weight, bias, 1e-5, True)
    padded = np.zeros((6, 5, 13), np.float32)
    padded[..., 2:10] = x  # rows that begin at no unit
    apart = np.zeros((30, 24), np.float32)
    apart[:, :8] = x.reshape(30, 8)
    apart = apart[:, :8].reshape(6, 5, 8)
    strided = make(np.asfortranarray(dy))
    for other in (np.asfortranarray(x), padded[..., 2:10], apart, x[:, ::-1][:, ::-1]):
        got = here(both(make(other), strided, 1, make(weight[::-1][::-1]), make(bias), 1e-5, True))
        for a, b in zip(got, expected, strict=True):
            if isinstance(a, np.ndarray):  # single values are not summed in the order of units
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    for out in (np.empty_like(x), padded[..., 4:12], np.asfortranarray(x)):
        out = make(out)
        y, saved = bnext.layer_norm_forward(make(x), 8, make(weight), make(bias), out=out)
        assert y is out
        np.testing.assert_allclose(y.values, expected[0], rtol=1e-5, atol=2e-6)
        x_there, own = make(x), make(np.empty_like(out.values))
        dx, *_ = bnext.layer_norm_backward(make(dy), x_there, saved, make(weight), out=own)
        assert dx is own
        np.testing.assert_allclose(dx.values, expected[2], rtol=1e-5, atol=2e-6)


def test_values_between_rows_are_left_alone(rng):
    x = rng.standard_normal((6, 8)).astype(np.float32)
    out = np.full((6, 12), 7, np.float32)
    bnext.layer_norm_forward(there(x), 8, out=there(out[:, :8]))
    assert (out[:, 8:] == 7).all()
    assert np.array_equal(out[:, :8], bnext.layer_norm_forward(there(x), 8)[0].values)


# --- an activation, a residual -------------------------------------------------------------------


@CENTERED
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
@DATA
def test_activations_agree_with_the_definition(rng, dtype, name, adds, centered):
    act = activations.of(name)
    for shape, dims in (((33, 17), 1), ((2, 3, 3, 4), 2), ((3, 1028), 1), ((1, 1), 1)):
        x, dy, weight, bias, residual = drawn(rng, shape, dims, dtype, name, adds, centered)
        given = [there(each) for each in (x, weight, bias)]
        x_there, weight_there, bias_there = given
        added = there(residual)
        y, saved = forward(x_there, dims, weight_there, bias_there, name, added, centered)
        assert saved.activation == name
        assert saved.residual == adds
        assert saved.reads_residual == (adds and name is not None)
        dx, dweight, *others = here(backward(there(dy), x_there, saved, weight_there, added))
        y = y.values
        assert y.dtype == dx.dtype == dtype
        z = argument(x, dims, weight, bias, residual, centered)
        of = reference.forward(x, dims, eps=1e-5, centered=centered)
        g = rows(dy, dims) * act.derivative(z)
        exact = [np.float64(each) for each in reference.backward(
            g, rows(x, dims), 1, weight.ravel(), eps=1e-5, centered=centered
        )]  # fmt: skip
        xhat = np.abs(np.float64(of.xhat)).max(axis=1, keepdims=True)
        largest = xhat * np.abs(weight).max() + np.abs(bias).max() + np.abs(z).max()
        assert_close(y, act.value(z), 8, dtype, largest, "y")
        if adds:
            units = 0 if name is None else 16
            scale = np.abs(rows(dy, dims)).max() * (1 + largest)
            assert_close(others.pop(), g, units, dtype, scale, "dresidual")
        scale = np.float64(of.rstd) * np.abs(rows(dy, dims)).max() * np.abs(weight).max() * 2
        assert_close(dx, exact[0], 16, dtype, scale * (1 + xhat**2) * (1 + largest), "dx")
        size = np.abs(rows(dy, dims)).max() * (1 + np.abs(of.xhat).max()) * len(z)
        for got, expected in zip([dweight, *others], exact[1:], strict=False):
            assert got.dtype == param(dtype)
            error = np.abs(got.ravel() - expected).max()
            assert error <= 8 * UNIT[param(dtype)] * float(size * (1 + largest.max()))


@pytest.mark.parametrize("name", ACTIVATIONS)
@DATA
def test_forward_and_backward_agree_to_the_bit(rng, name, dtype):
    """Also where z is a kink, or one unit beside it: y tells on which side it was."""
    x = rng.standard_normal((9, 64)).astype(dtype)
    weight, bias = np.ones(64, param(dtype)), np.zeros(64, param(dtype))
    options = {"activation": name, "negative_slope": SLOPE}
    given = [there(each) for each in (x, weight, bias)]
    norm, _ = bnext.layer_norm_forward(given[0], 64, *given[1:])
    residual = there(-norm.values)  # z is near 0 in many places
    z, _ = bnext.layer_norm_forward(given[0], 64, *given[1:], residual=residual)
    y, saved = bnext.layer_norm_forward(given[0], 64, *given[1:], residual=residual, **options)
    *_, dresidual = bnext.layer_norm_backward(
        there(np.ones_like(x)), given[0], saved, given[1], residual=residual
    )
    act = activations.of(name)
    if act.kinks and act.kinks[0] == 0.0:
        assert ((y.values > 0) <= (dresidual.values == 1)).all()
        negative = SLOPE if name == "leaky_relu" else 0
        assert (dresidual.values[z.values.astype(float) < 0] == dtype(negative)).all()
    else:
        expected = act.derivative(z.values.astype(float))
        np.testing.assert_allclose(dresidual.values.astype(float), expected, atol=2 * UNIT[dtype])


def test_parameters_of_the_forward_call_make_z_again(rng):
    """An optimizer may have changed them since."""
    x, dy, weight, bias = data(rng, (5, 24), 1, np.float32)
    given = [there(each.copy()) for each in (x, weight, bias)]
    _, saved = bnext.layer_norm_forward(given[0], 24, *given[1:], activation="gelu")
    expected = bnext.layer_norm_backward(there(dy), given[0], saved, there(weight))
    given[1].values[...] = 100
    given[2].values[...] = -100
    got = bnext.layer_norm_backward(there(dy), given[0], saved, there(weight))
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one.values, other.values)


# --- layers ---------------------------------------------------------------------------------------


@CENTERED
@pytest.mark.parametrize("name", [None, "gelu"])
@pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
@DATA
def test_layers(rng, dtype, name, adds, centered):
    """As on the CPU; `to` moves the parameters there and back."""
    x, dy, weight, bias = data(rng, (9, 4, 12), 2, dtype)
    residual = rng.standard_normal(x.shape).astype(dtype) if adds else None
    kind = bnext.LayerNorm if centered else bnext.RMSNorm

    def step(norm, put):
        norm.weight[...] = put(weight)
        if centered:
            norm.bias[...] = put(bias)
        added = {"residual": put(residual)} if adds else {}
        y = norm(put(x), **added)
        gradients = norm.backward(put(dy))
        dx, *dresidual = gradients if adds else [gradients]
        parameters = [norm.weight_grad] + ([norm.bias_grad] if centered else [])
        return here([y, dx, *dresidual, *parameters])

    norm = kind((4, 12), dtype=param(dtype), activation=name)
    expected = step(norm, lambda values: values)
    norm.to(there(x))
    assert isinstance(norm.weight, Array)
    found = step(norm, there)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        unit = 16 * UNIT[other.dtype.type]
        scale = np.abs(other.astype(float)).max()
        np.testing.assert_allclose(
            one.astype(float), other.astype(float), rtol=unit, atol=unit * scale
        )
    norm.to(x)
    for one, other in zip(step(norm, lambda values: values), expected, strict=True):
        assert_same_bits(one, other)


def test_layers_say_where_their_arrays_are(rng):
    x = rng.standard_normal((4, 8)).astype(np.float32)
    norm = bnext.LayerNorm(8)
    with pytest.raises(
        TypeError,
        match=r"^weight: expected an array on cuda:0, like x, got one on the CPU; the layer's "
        r"to\(x\) moves it$",
    ):
        norm(there(x))
    norm.to(there(x))
    with pytest.raises(TypeError, match=r"^weight: expected an array on"):
        norm(there(x, LARGE))
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float16 or bfloat16, got"):
        norm(there(x.astype(np.float64)))


# --- what is saved, errors -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "silu"])
def test_saved_is_copied_and_pickled(rng, name):
    x, dy, weight, bias = data(rng, (6, 8), 1, np.float32)
    x, dy, weight, bias = (there(each) for each in (x, dy, weight, bias))
    _, saved = bnext.layer_norm_forward(x, 8, weight, bias, activation=name)
    assert repr(saved) == (
        "<bnext.DeviceRowSaved of a float32 input of shape (6, 8), normalized_shape (8,), on "
        "cuda:0>"
    )
    expected = bnext.layer_norm_backward(dy, x, saved, weight)
    for again in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert repr(again) == repr(saved)
        for name in ("shape", "normalized_shape", "eps", "centered", "activation", "residual"):
            assert getattr(again, name) == getattr(saved, name)
        assert_same_bits(again.rows.values, saved.rows.values)
        assert_same_bits(again.mean_low.values, saved.mean_low.values)
        for one, other in zip(
            bnext.layer_norm_backward(dy, x, again, weight), expected, strict=True
        ):
            assert_same_bits(one.values, other.values)


def test_errors(rng):
    x, dy, weight, bias = data(rng, (6, 8), 1, np.float32)
    _, of_cpu = bnext.layer_norm_forward(x, 8, weight)
    on_cpu, elsewhere = x, there(x, LARGE)
    x, dy, weight, bias = (there(each) for each in (x, dy, weight, bias))
    forward, backward = bnext.layer_norm_forward, bnext.layer_norm_backward
    _, saved = forward(x, 8, weight)
    _, of_rms = bnext.rms_norm_forward(x, 8, weight)
    _, activated = forward(x, 8, weight, activation="relu", residual=dy)
    read_only = np.empty((6, 8), np.float32)
    read_only.flags.writeable = False
    cases = [
        (lambda: forward(x, 7), ValueError, r"x: expected shape \(\*, 7\), since .* got \(6, 8\)"),
        (lambda: forward(x, ()), ValueError, "normalized_shape: expected at least 1 dimension"),
        (lambda: forward(x, 8, weight[:7]), ValueError, r"weight: expected shape \(8,\), got \(7,"),
        (lambda: forward(x, 8, on_cpu[0]), TypeError, "weight: expected an array on cuda:0, like"),
        (lambda: forward(x, 8, None, bias[None]), ValueError, r"bias: expected shape \(8,\)"),
        (lambda: forward(x, 8, eps=-1), ValueError, "eps: expected a finite number >= 0"),
        (lambda: forward(there(on_cpu.astype(int)), 8), TypeError, "x: expected dtype float16"),
        (lambda: forward(x, 8, out=x), ValueError, "out: expected memory of its own"),
        (lambda: forward(x, 8, out=there(read_only)), ValueError, "out: expected a writeable"),
        (lambda: forward(x, 8, residual=dy[:5]), ValueError, "residual: expected shape"),
        (lambda: forward(x, 8, activation="x"), ValueError, "activation: expected"),
        (lambda: backward(dy, x[:5], saved), ValueError, "saved: made from an input of shape"),
        (lambda: backward(dy[:5], x, saved), ValueError, "dy: expected shape"),
        (lambda: backward(dy, x, None), TypeError, "saved: expected what layer_norm_forward"),
        (lambda: backward(dy, x, of_rms), ValueError, "got what rms_norm_forward did"),
        (lambda: backward(dy, x, of_cpu), TypeError, "saved: made from an input on the CPU, got x"),
        (lambda: backward(dy, elsewhere, saved), TypeError, "saved: expected an array on cuda:1"),
        (lambda: backward(dy, x, activated), ValueError, "residual: expected"),
        (lambda: backward(dy, x, saved, out=dy), ValueError, "out: expected memory of its own"),
        (lambda: backward(on_cpu, on_cpu, saved), TypeError, "saved: made from an input on cuda:0"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()


def test_a_group_is_refused(rng):
    x = there(rng.standard_normal((4, 8)).astype(np.float32))
    group = new_group(1)
    with (
        group.member(0),
        pytest.raises(ValueError, match=r"^x: expected an array on the CPU, got one on cuda:0, "),
    ):
        bnext.layer_norm_forward(x, 8, group=group)


# --- launches ------------------------------------------------------------------------------------


def test_work_goes_to_the_stream_of_x(rng):
    x, dy, weight = (InterfaceArray(each) for each in data(rng, (40, 24), 1, np.float32)[:3])
    x.stream = 7
    MODULE.record(True)
    try:
        _, saved = bnext.layer_norm_forward(x, 24, weight)
        bnext.layer_norm_backward(dy, x, saved, weight)
    finally:
        requests = MODULE.record(False)
    assert [stream for what, stream in requests if what == "run"] == [7] * 3
    assert {what for what, _ in requests} == {"prepare", "run"}  # nothing waits
    dy.stream = 8
    with pytest.raises(ValueError, match=r"^dy: expected an array on the stream of x \(7\), got"):
        bnext.layer_norm_backward(dy, x, saved, weight)


def test_a_kernel_that_fails_is_told_by_the_next_call(rng):
    x = there(rng.standard_normal((4, 8)).astype(np.float32), 5)
    _, saved = bnext.rms_norm_forward(x, 8)  # its kernel fails
    with pytest.raises(RuntimeError) as caught:
        bnext.rms_norm_backward(x, x, saved)
    assert re.fullmatch(
        r"RMS normalization backward \(kernel differentiate_row, float32, unit 4; rows of 4 "
        r"threads, grid \d+, block 128, shared bytes \d+; device 5 \(emulation of a GPU that "
        r"fails\)\): emulated CUDA: run: a kernel has failed; a kernel launched before has "
        r"failed, of bnext or of another library \(BNEXT_CUDA_SYNC=1 names it if it is one of "
        r"bnext\); .*; the process can use this device no more",
        str(caught.value),
    )
