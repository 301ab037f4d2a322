"""Layer and RMS normalization with an activation and a residual: against their definition."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations
from . import row_reference as reference
from .activations import ACTIVATIONS, SLOPE
from .compare import assert_same_bits
from .conftest import AVAILABLE_ISAS
from .numerical import numerical_gradient
from .snapshots import raises_exactly
from .test_layer_norm import DTYPES, UNIT, data, param

EACH = pytest.mark.parametrize("name", [*ACTIVATIONS, None])
RESIDUAL = pytest.mark.parametrize("adds", [False, True], ids=["alone", "residual"])
CENTERED = pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
# Pieces that end within a pack, rows of several pieces, rows shorter than a pack.
LONG = (2, 70_001)
SHAPES = (((33, 17), 1), ((2, 5, 3, 4), 2), ((5, 519), 1), (LONG, 1), ((1, 1), 1))


def options_of(name, residual):
    return {"activation": name, "negative_slope": SLOPE, "residual": residual}


def forward(x, dims, weight, bias, name, residual, centered, eps=1e-5, **more):
    shape, options = x.shape[x.ndim - dims :], options_of(name, residual)
    if centered:
        return bnext.layer_norm_forward(x, shape, weight, bias, eps, **options, **more)
    return bnext.rms_norm_forward(x, shape, weight, eps, **options, **more)


def backward(dy, x, saved, weight, residual, **more):
    function = bnext.layer_norm_backward if saved.centered else bnext.rms_norm_backward
    again = residual if saved.reads_residual else None
    found = function(dy, x, saved, weight, residual=again, **more)
    assert len(found) == 2 + saved.centered + (residual is not None)
    return found


def drawn(rng, shape, dims, dtype, name, adds, centered):
    """Inputs of a call, of which the gradient is 0 where z lies next to a kink."""
    x, dy, weight, bias = data(rng, shape, dims, dtype)
    residual = rng.standard_normal(shape).astype(dtype) if adds else None
    z = argument(x, dims, weight, bias, residual, centered)
    return x, activations.without_kinks(dy, z.reshape(shape), name), weight, bias, residual


def argument(x, dims, weight, bias, residual, centered, eps=1e-5):
    bias = bias if centered else None
    z = reference.forward(x, dims, weight, bias, eps=eps, centered=centered).y
    if residual is not None:
        z = z + reference.rows_of(residual, dims)
    return z.astype(np.float64)


def rows(array, dims):
    return np.asarray(reference.rows_of(array, dims), np.float64)


def assert_close(got, expected, units, dtype, scale, what):
    """Within units of `scale`, a number for each row, and a rounding to 16 bits."""
    error = np.abs(np.asarray(got, np.float64).reshape(expected.shape) - expected)
    allowed = units * UNIT[param(dtype)] * scale
    if dtype not in (np.float32, np.float64):
        allowed = allowed + 0.5 * UNIT[dtype] * (np.abs(expected) + allowed)
        allowed = allowed + 1e-7  # of subnormal float16
    assert (error <= allowed).all(), (what, float((error / allowed).max()))


@CENTERED
@RESIDUAL
@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_agrees_with_the_definition(rng, isa, dtype, name, adds, centered):
    act = activations.of(name)
    for shape, dims in SHAPES:
        if shape == LONG and name not in ("relu", "gelu"):
            continue
        x, dy, weight, bias, residual = drawn(rng, shape, dims, dtype, name, adds, centered)
        y, saved = forward(x, dims, weight, bias, name, residual, centered)
        dx, dweight, *others = backward(dy, x, saved, weight, residual)
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


@CENTERED
@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "gelu"])
@pytest.mark.parametrize("shape", [(600, 257), (3, 200_003), (40, 5000)])
def test_the_same_bits_for_any_threads_and_set(
    rng, shape, name, adds, centered, restore_threads, fixed_team
):
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        x, dy, weight, bias, residual = drawn(rng, shape, 1, dtype, name, adds, centered)
        found = []
        for isa in AVAILABLE_ISAS:
            if isa == "baseline":  # on x86-64 it has no fused multiply-add
                continue
            for threads in (1, 2, 3, 5):
                bnext.set_num_threads(threads)
                with bnext.use_isa(isa):
                    y, saved = forward(x, 1, weight, bias, name, residual, centered)
                    found.append((y, *backward(dy, x, saved, weight, residual)))
        for other in found[1:]:
            for one, two in zip(other, found[0], strict=True):
                assert_same_bits(one, two)


@CENTERED
@RESIDUAL
@EACH
def test_gradients_are_derivatives(rng, name, adds, centered):
    # Farther from kinks than the steps of a difference.
    x, target = rng.normal(size=(2, 4, 7))
    weight, bias = rng.normal(size=(2, 7))
    residual = rng.normal(size=(4, 7)) if adds else None
    z = argument(x, 1, weight, bias, residual, centered)
    target = activations.without_kinks(target, z, name, margin=1e-2)
    given = {"x": x, "weight": weight}
    given |= {"bias": bias} if centered else {}
    given |= {"residual": residual} if adds else {}

    def loss(**moved):
        at = {"bias": bias, "residual": residual, **given, **moved}
        y, _ = forward(at["x"], 1, at["weight"], at["bias"], name, at["residual"], centered)
        return (y * target).sum()

    _, saved = forward(x, 1, weight, bias, name, residual, centered)
    gradients = backward(target, x, saved, weight, residual)
    for what, gradient in zip(given, gradients, strict=True):
        expected = numerical_gradient(lambda at, what=what: loss(**{what: at}), given[what])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_residual_alone_is_added(rng):
    """Its gradient is dy itself, and all others have the bits of a call without it."""
    x, dy, weight, bias = data(rng, (6, 40), 1, np.float32)
    residual = rng.standard_normal(x.shape).astype(np.float32)
    plain, saved_of_plain = bnext.layer_norm_forward(x, 40, weight, bias)
    y, saved = bnext.layer_norm_forward(x, 40, weight, bias, residual=residual)
    assert_same_bits(y, plain + residual)
    assert (saved.residual, saved.reads_residual, saved.activation) == (True, False, None)
    dx, dweight, dbias, dresidual = bnext.layer_norm_backward(
        dy, x, saved, weight, residual=residual
    )
    assert dresidual is dy
    expected = bnext.layer_norm_backward(dy, x, saved_of_plain, weight)
    for one, two in zip((dx, dweight, dbias), expected, strict=True):
        assert_same_bits(one, two)


@RESIDUAL
def test_any_strides_and_out(rng, adds):
    x, dy, weight, bias, residual = drawn(rng, (6, 5, 40), 1, np.float32, "silu", adds, True)
    expected, saved = forward(x, 1, weight, bias, "silu", residual, True)
    gradients = backward(dy, x, saved, weight, residual)
    wide = np.zeros((6, 5, 48), np.float32)
    for place in (np.asfortranarray, lambda a: np.copyto(wide[..., :40], a) or wide[..., :40]):
        others = [None if each is None else place(each).copy("K") for each in (x, dy, residual)]
        out = place(np.zeros_like(x))
        y, saved = forward(others[0], 1, weight, bias, "silu", others[2], True, out=out)
        assert y is out
        assert_same_bits(np.ascontiguousarray(y), expected)
        got = backward(others[1], others[0], saved, weight, others[2], out=others[1])
        assert got[0] is others[1]
        for one, two in zip(got, gradients, strict=True):
            assert_same_bits(np.ascontiguousarray(one), two)


def test_out_over_dy_of_long_rows(rng, restore_threads):
    """Rows of several pieces read dy twice, each piece before dx is written there."""
    x, dy, weight, bias, residual = drawn(rng, (5, 150_001), 1, np.float32, "gelu", True, True)
    _, saved = forward(x, 1, weight, bias, "gelu", residual, True)
    expected = backward(dy, x, saved, weight, residual)
    for threads in (1, 2):
        bnext.set_num_threads(threads)
        own = dy.copy()
        for one, two in zip(
            backward(own, x, saved, weight, residual, out=own), expected, strict=True
        ):
            assert_same_bits(one, two)


@CENTERED
@pytest.mark.parametrize("scale", [1e-37, 1e35])
def test_values_at_the_ends_of_float32(rng, isa, scale, centered):
    """Rows that are written in double, between others."""
    x = rng.standard_normal((5, 300))
    x[2] *= scale
    dy = rng.standard_normal(x.shape)
    found = []
    for dtype in (np.float32, np.float64):
        given = x.astype(np.float32).astype(dtype), dy.astype(np.float32).astype(dtype)
        y, saved = forward(given[0], 1, None, None, "silu", None, centered, eps=0.0)
        dx, *_ = backward(given[1], given[0], saved, None, None)
        found.append((y, dx))
    for one, two in zip(*found, strict=True):
        size = np.abs(two).max(axis=1, keepdims=True)
        within = size < np.finfo(np.float32).max  # gradients of small rows are beyond
        assert (np.abs(one.astype(float) - two) <= 1e-5 * size)[within[:, 0]].all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(rng, isa, value):
    for dtype in DTYPES:
        x, dy, weight, bias, residual = drawn(rng, (9, 100), 1, dtype, "silu", True, True)
        y, saved = forward(x, 1, weight, bias, "silu", residual, True)
        clean = y, backward(dy, x, saved, weight, residual)[0]
        x[4, 17] = value
        y, saved = forward(x, 1, weight, bias, "silu", residual, True)
        for got, expected in zip((y, backward(dy, x, saved, weight, residual)[0]), clean,
                                 strict=True):  # fmt: skip
            assert np.isnan(got[4].astype(float)).all()
            others = np.arange(9) != 4
            assert_same_bits(got[others], expected[others])


def test_z_is_of_the_forward_calls_parameters(rng):
    """An optimizer may change them between the passes."""
    x, dy, weight, bias, residual = drawn(rng, (6, 40), 1, np.float32, "relu", True, True)
    _, saved = forward(x, 1, weight, bias, "relu", residual, True)
    expected = backward(dy, x, saved, weight, residual)
    kept = weight.copy()
    weight *= -1
    bias += 7
    copied = pickle.loads(pickle.dumps(saved))
    assert (copied.activation, copied.residual) == ("relu", True)
    for other in (saved, copied):
        for one, two in zip(backward(dy, x, other, kept, residual), expected, strict=True):
            assert_same_bits(one, two)


def test_a_saved_of_before_there_were_activations_loads():
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    _, saved = bnext.layer_norm_forward(x, 4)
    again = bnext.RowSaved.__new__(bnext.RowSaved)
    again.__setstate__(saved.__getstate__()[:7])
    assert again.activation is None
    assert np.array_equal(again.rows, saved.rows)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
def test_nothing_gives_nothing(shape):
    x = np.empty(shape, np.float32)
    y, saved = bnext.layer_norm_forward(x, shape[1:], residual=x, activation="gelu")
    gradients = bnext.layer_norm_backward(x, x, saved, residual=x)
    assert [each.shape for each in (y, *gradients)] == [shape, shape, shape[1:], shape[1:], shape]


@CENTERED
@RESIDUAL
def test_layers(rng, centered, adds):
    kind = bnext.LayerNorm if centered else bnext.RMSNorm
    layer = kind(40, activation="leaky_relu", negative_slope=SLOPE)
    assert "activation='leaky_relu', negative_slope=0.25" in repr(layer)
    x, dy, weight, bias, residual = drawn(rng, (6, 40), 1, np.float32, "leaky_relu", adds, centered)
    layer.weight[...] = weight
    if centered:
        layer.bias[...] = bias
    again = copy.deepcopy(layer)
    y, saved = forward(x, 1, weight, bias, "leaky_relu", residual, centered,
                       eps=1e-5 if centered else None)  # fmt: skip
    given = {"residual": residual} if adds else {}
    assert_same_bits(layer(x, **given), y)
    gradients = backward(dy, x, saved, weight, residual)
    found = layer.backward(dy, residual_grad=adds)
    for one, two in zip(found if adds else [found], gradients[:: len(gradients) - 1 or 1],
                        strict=False):  # fmt: skip
        assert_same_bits(one, two)
    assert_same_bits(layer.weight_grad, gradients[1])
    again(x, **given)
    again.activation = None  # which the backward pass does not go by
    if adds:
        assert_same_bits(again.backward(dy)[1], gradients[-1])
        again(x, **given)
        with pytest.raises(ValueError, match="residual_grad: expected True or None, since"):
            again.backward(dy, residual_grad=False)


def test_errors(rng):
    x, dy, weight, _ = data(rng, (6, 8), 1, np.float32)
    r = rng.standard_normal(x.shape).astype(np.float32)
    other = r + 1
    run, back = bnext.layer_norm_forward, bnext.layer_norm_backward
    _, plain = run(x, 8, weight)
    _, added = run(x, 8, weight, residual=r)
    _, both = run(x, 8, weight, residual=r, activation="silu")
    cases = [
        (lambda: run(x, 8, activation="swish"), ValueError, "activation: expected "),
        (lambda: bnext.rms_norm_forward(x, 8, activation=3), TypeError, "activation: "),
        (lambda: bnext.LayerNorm(8, activation="swish"), ValueError, "activation: expected "),
        (lambda: run(x, 8, residual=r[:5]), ValueError, "residual: expected shape"),
        (lambda: run(x, 8, residual=r.astype(float)), TypeError, "residual: expected dtype"),
        (lambda: run(x, 8, residual=r, out=r), ValueError, "out: expected memory of its own"),
        (lambda: back(dy, x, both, weight), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, both, weight, residual=other), ValueError, "another residual"),
        (lambda: back(dy, x, plain, weight, residual=r), ValueError, "residual: expected None"),
        (lambda: back(dy, x, added, weight, out=dy), ValueError, "got dy, which is dresidual"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()
    with raises_exactly(ValueError, "negative_slope: expected a finite number, got nan", {"x": x}):
        run(x, 8, activation="leaky_relu", negative_slope=np.nan)
