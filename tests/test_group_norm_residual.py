"""Group and instance normalization with a residual: against its definition in float64."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations
from . import cell_reference as reference
from .activations import ACTIVATIONS, SLOPE
from .compare import assert_same_bits
from .conftest import AVAILABLE_ISAS, SCHEDULES
from .numerical import numerical_gradient
from .snapshots import raises_exactly
from .test_group_norm import DTYPES, LAYOUTS, SHAPES, UNIT, assert_close, data, laid_out, param

EACH = pytest.mark.parametrize("name", [*ACTIVATIONS, None])
WITH_FMA = [isa for isa in AVAILABLE_ISAS if isa not in ("baseline", "x86-64")]


def forward(x, groups, weight, bias, residual, name, **more):
    options = {"residual": residual, "activation": name, "negative_slope": SLOPE, **more}
    if groups == x.shape[1] and x[0, 0].size > 1:
        return bnext.instance_norm_forward(x, weight, bias, **options)
    return bnext.group_norm_forward(x, groups, weight, bias, **options)


def backward(dy, x, saved, weight, residual, **more):
    is_instance = saved.num_groups == x.shape[1]
    function = bnext.instance_norm_backward if is_instance else bnext.group_norm_backward
    assert saved.residual
    assert saved.reads_residual is (saved.activation is not None)
    again = residual if saved.reads_residual else None
    return function(dy, x, saved, weight, residual=again, **more)


def both(x, dy, groups, weight, bias, residual, name):
    y, saved = forward(x, groups, weight, bias, residual, name)
    return y, *backward(dy, x, saved, weight, residual)


def drawn(rng, shape, groups, dtype, name, layout="planar"):
    """Inputs of a call, of which the gradient is 0 where z lies next to a kink; and z."""
    x, dy, weight, bias = data(rng, shape, dtype, layout)
    residual = laid_out(rng.standard_normal(shape).astype(dtype), layout)
    z = reference.group_norm(x, groups, weight, bias)[0].astype(np.float64)
    z = z + np.asarray(residual, np.float64)
    if name is not None:
        dy[...] = activations.without_kinks(dy, z, name)
    return x, dy, weight, bias, residual, z


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_agrees_with_the_definition(rng, isa, dtype, name):
    act = activations.of(name)
    for k, (shape, groups) in enumerate(SHAPES):
        layout = LAYOUTS[(len(name or "") + k) % len(LAYOUTS)]
        x, dy, weight, bias, residual, z = drawn(rng, shape, groups, dtype, name, layout)
        y, dx, dweight, dbias, dresidual = both(x, dy, groups, weight, bias, residual, name)
        assert y.dtype == dx.dtype == dresidual.dtype == dtype
        g = np.asarray(dy, np.float64) * act.derivative(z)
        exact = reference.group_norm_backward(g, x, groups, weight)
        unit, units = UNIT[dtype], 40 if dtype is np.float64 else 14
        assert_close(y, act.value(z), units, unit, groups, beside=2)
        assert_close(dx, exact[0], 3 * units, unit, groups, beside=1)
        assert_close(dresidual, g, 0 if name is None else units, unit, groups, beside=1)
        scale = np.sqrt(np.prod(shape) / shape[1])
        narrow = dtype not in (np.float32, np.float64)
        for actual, value in zip((dweight, dbias), exact[1:], strict=True):
            allowed = 60 * UNIT[param(dtype)] * (2**4 if narrow else 1) + (2e-5 if narrow else 0)
            assert np.abs(actual - value).max() <= allowed * scale


@pytest.mark.parametrize("name", ["relu", "silu", None])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_the_same_bits_for_any_threads_schedule_and_set(
    rng, dtype, name, restore_threads, fixed_team
):
    try:
        for shape, groups in SHAPES[3:8]:
            for layout in LAYOUTS[:2]:
                x, dy, weight, bias, residual, _ = drawn(rng, shape, groups, dtype, name, layout)
                known = None
                runs = [(n, None, WITH_FMA[0]) for n in range(1, 6)]
                runs += [(3, schedule, WITH_FMA[0]) for schedule in SCHEDULES]
                runs += [(2, None, isa) for isa in WITH_FMA[1:]]
                for threads, schedule, isa in runs:
                    bnext.set_num_threads(threads)
                    bnext._core.force_schedule(schedule)
                    with bnext.use_isa(isa):
                        got = both(x, dy, groups, weight, bias, residual, name)
                    known = known or got
                    for one, two in zip(known, got, strict=True):
                        assert_same_bits(two, one, f"{shape}, {threads}, {schedule}, {isa}")
    finally:
        bnext._core.force_schedule(None)


@EACH
def test_gradients_are_derivatives(rng, name):
    # Farther from kinks than the steps of a difference.
    x, target, residual = rng.normal(size=(3, 2, 4, 3))
    weight, bias = rng.normal(size=(2, 4))
    z = reference.group_norm(x, 2, weight, bias)[0].astype(np.float64) + residual
    target = activations.without_kinks(target, z, name, margin=1e-2)
    given = {"x": x, "weight": weight, "bias": bias, "residual": residual}

    def loss(**moved):
        at = {**given, **moved}
        y, _ = forward(at["x"], 2, at["weight"], at["bias"], at["residual"], name)
        return (y * target).sum()

    _, saved = forward(x, 2, weight, bias, residual, name)
    gradients = backward(target, x, saved, weight, residual)
    for what, gradient in zip(given, gradients, strict=True):
        expected = numerical_gradient(lambda at, what=what: loss(**{what: at}), given[what])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_a_residual_alone_is_added(rng):
    """Its gradient is dy itself, and all others have the bits of a call without it."""
    x, dy, weight, bias, residual, _ = drawn(rng, (3, 8, 5, 7), 4, np.float32, None)
    plain, saved_of_plain = bnext.group_norm_forward(x, 4, weight, bias)
    y, saved = bnext.group_norm_forward(x, 4, weight, bias, residual=residual)
    assert_same_bits(y, plain + residual)
    assert (saved.residual, saved.reads_residual, saved.activation) == (True, False, None)
    *gradients, dresidual = bnext.group_norm_backward(dy, x, saved, weight, residual=residual)
    assert dresidual is dy
    expected = bnext.group_norm_backward(dy, x, saved_of_plain, weight)
    for one, two in zip(gradients, expected, strict=True):
        assert_same_bits(one, two)


def test_a_relu_without_flags_has_the_bits_of_batch_normalizations(rng):
    """One example of cells is a batch of channels, whose ReLU goes by flags."""
    x, dy, weight, bias, residual, _ = drawn(rng, (1, 6, 130, 130), 6, np.float32, "relu")
    y, dx, dweight, dbias, dresidual = both(x, dy, 6, weight, bias, residual, "relu")
    expected, saved = bnext.batch_norm_forward(x, weight, bias, residual=residual,
                                               activation="relu")  # fmt: skip
    gradients = bnext.batch_norm_backward(dy, x, saved, weight)
    assert_same_bits(y, expected)
    assert_same_bits(dresidual, gradients[3])
    assert_same_bits(dbias, gradients[2])
    np.testing.assert_allclose(dx, gradients[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(dweight, gradients[1], rtol=1e-6)


def test_arrays_in_other_orders(rng):
    """A residual, dy and out that lie in another order than x."""
    x, dy, weight, bias, residual, _ = drawn(rng, (3, 8, 5, 7), 4, np.float32, "silu")
    expected, saved = forward(x, 4, weight, bias, residual, "silu")
    gradients = backward(dy, x, saved, weight, residual)
    for layout in LAYOUTS:
        other = laid_out(residual, layout)
        out = laid_out(np.zeros_like(x), layout)
        y, saved = forward(x, 4, weight, bias, other, "silu", out=out)
        assert y is out
        assert_same_bits(np.ascontiguousarray(y), expected)
        into = laid_out(dy.copy(), layout)
        got = backward(into, x, saved, weight, other, out=into)
        assert got[0] is into
        for one, two in zip(got, gradients, strict=True):
            assert_same_bits(np.ascontiguousarray(one), two)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_extreme_cells(rng, isa, name):
    """Values at the ends of float32's range, which are written in double."""
    x, dy, residual = rng.normal(size=(3, 2, 4, 33)).astype(np.float32)
    x[:, 2] *= np.float32(1e-37)
    x[:, 3] *= np.float32(1e37)
    z = reference.group_norm(x, 4, eps=0.0)[0].astype(np.float64) + residual
    dy = activations.without_kinks(dy, z, name)
    found = []
    for dtype in (np.float32, np.float64):
        of_x, of_dy, added = (each.astype(dtype) for each in (x, dy, residual))
        y, saved = forward(of_x, 4, None, None, added, name, eps=0.0)
        dx, _, _, dresidual = backward(of_dy, of_x, saved, None, added)
        found.append((y, dx, dresidual))
    for one, two in zip(*found, strict=True):
        assert (np.abs(one - two) <= 4e-5 * np.abs(two).max(axis=-1, keepdims=True)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_slab(rng, isa, value):
    for dtype in DTYPES:
        x, dy, weight, bias, residual, _ = drawn(rng, (3, 8, 5, 7), 4, dtype, "silu")
        clean = both(x, dy, 4, weight, bias, residual, "silu")
        x[1, 2, 3, 4] = value
        found = both(x, dy, 4, weight, bias, residual, "silu")
        for got, expected in ((found[0], clean[0]), (found[1], clean[1]), (found[4], clean[4])):
            assert np.isnan(got[1, 2:4].astype(float)).all()
            others = np.ones((3, 8), bool)
            others[1, 2:4] = False
            assert_same_bits(got[others], expected[others])


def test_what_is_saved(rng):
    """Copies of the parameters, through pickles too; a residual that changed is noticed."""
    x, dy, weight, bias, residual, _ = drawn(rng, (3, 8, 5, 7), 4, np.float32, "relu")
    _, saved = forward(x, 4, weight, bias, residual, "relu")
    expected = backward(dy, x, saved, weight, residual)
    kept = weight.copy()
    weight *= -1
    bias += 7
    copied = pickle.loads(pickle.dumps(saved))
    assert (copied.activation, copied.residual, copied.reads_residual) == ("relu", True, True)
    for other in (saved, copied):
        for one, two in zip(backward(dy, x, other, kept, residual), expected, strict=True):
            assert_same_bits(one, two)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 4, 0)])
def test_nothing_gives_nothing(shape):
    x = np.empty(shape, np.float32)
    y, saved = bnext.group_norm_forward(x, 2, residual=x, activation="gelu")
    gradients = bnext.group_norm_backward(x, x, saved, residual=x)
    assert [each.shape for each in (y, *gradients)] == [shape, shape, (4,), (4,), shape]


@pytest.mark.parametrize("name", ["leaky_relu", None])
@pytest.mark.parametrize("make", [
    lambda **given: bnext.GroupNorm(4, 8, **given),
    lambda **given: bnext.InstanceNorm2d(8, affine=True, track_running_stats=True, **given),
], ids=["group", "instance"])  # fmt: skip
def test_layers(rng, make, name):
    """As the functions, in every mode; and one example alone."""
    options = {"activation": name, "negative_slope": SLOPE}
    layer = make(**options)
    groups = layer.num_groups or 8
    x, dy, weight, bias, residual, _ = drawn(rng, (3, 8, 5, 7), groups, np.float32, name)
    layer.weight[...], layer.bias[...] = weight, bias
    again = copy.deepcopy(layer)
    y, saved = forward(x, groups, weight, bias, residual, name)
    gradients = backward(dy, x, saved, weight, residual)
    assert_same_bits(layer(x, residual=residual), y)
    dx, dresidual = layer.backward(dy, residual_grad=True)
    assert_same_bits(dx, gradients[0])
    assert_same_bits(dresidual, gradients[3])
    assert_same_bits(layer.weight_grad, gradients[1])
    again(x, residual=residual)
    with pytest.raises(ValueError, match="residual_grad: expected True or None, since"):
        again.backward(dy, residual_grad=False)
    if groups == 4:
        return
    one = layer(x[1], residual=residual[1])
    assert_same_bits(one, y[1])
    for got, expected in zip(layer.backward(dy[1]), (dx, dresidual), strict=True):
        assert_same_bits(got, expected[1])
    layer.eval()
    mean, var = layer.running_mean, layer.running_var
    y = bnext.normalize(x, mean, var, weight, bias, eps=layer.eps, residual=residual, **options)
    assert_same_bits(layer(x, residual=residual), y)
    dx, dresidual = layer.backward(dy)
    g = dy * activations.of(name).derivative(np.float64(y))  # y is positive where z is
    assert_same_bits(dresidual, g.astype(np.float32))
    scale = (weight / np.sqrt(var + layer.eps)).reshape(-1, 1, 1)
    np.testing.assert_allclose(dx, g * scale, rtol=1e-5)


def test_errors(rng):
    x, dy, weight, _, r, _ = drawn(rng, (3, 8, 5), 4, np.float32, None)
    other = r + 1
    run, back = bnext.group_norm_forward, bnext.group_norm_backward
    _, plain = run(x, 4, weight)
    _, added = run(x, 4, weight, residual=r)
    _, of_both = run(x, 4, weight, residual=r, activation="relu")
    cases = [
        (lambda: run(x, 4, residual=r[:2]), ValueError, "residual: expected shape"),
        (lambda: run(x, 4, residual=r.astype(float)), TypeError, "residual: expected dtype"),
        (lambda: run(x, 4, residual=r, out=r), ValueError, "out: expected memory of its own"),
        (lambda: bnext.instance_norm_forward(x, residual=r[0]), ValueError, "residual: expected"),
        (lambda: back(dy, x, of_both, weight), ValueError, "residual: expected the forward call's"),
        (lambda: back(dy, x, of_both, weight, residual=other), ValueError, "another residual"),
        (lambda: back(dy, x, plain, weight, residual=r), ValueError, "residual: expected None"),
        (lambda: back(dy, x, added, weight, out=dy), ValueError, "got dy, which is dresidual"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind, match=text):
            call()
    with raises_exactly(ValueError, "negative_slope: expected a finite number, got nan", {"x": x}):
        run(x, 4, residual=r, activation="leaky_relu", negative_slope=np.nan)


def test_other_libraries(rng):
    """Arrays of bfloat16, and a list beside an array of NumPy's."""
    x, dy, weight, bias, residual, _ = drawn(rng, (2, 4, 6), 2, ml_dtypes.bfloat16, "tanh")
    y, saved = bnext.group_norm_forward(x, 2, weight, bias, residual=residual, activation="tanh")
    assert y.dtype == ml_dtypes.bfloat16
    assert bnext.group_norm_backward(dy, x, saved, weight, residual=residual)[3].dtype == x.dtype
