"""Group and instance normalization with an activation: against its definition in float64."""

import copy
import pickle

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
from .test_group_norm import DTYPES, LAYOUTS, SHAPES, UNIT, assert_close, data, param

EACH = pytest.mark.parametrize("name", ACTIVATIONS)
WITH_FMA = [isa for isa in AVAILABLE_ISAS if isa not in ("baseline", "x86-64")]


def both(x, dy, groups, weight, bias, name):
    options = {"activation": name, "negative_slope": SLOPE}
    if groups == x.shape[1] and x[0, 0].size > 1:
        y, saved = bnext.instance_norm_forward(x, weight, bias, **options)
        return y, *bnext.instance_norm_backward(dy, x, saved, weight)
    y, saved = bnext.group_norm_forward(x, groups, weight, bias, **options)
    return y, *bnext.group_norm_backward(dy, x, saved, weight)


def expected_of(x, dy, groups, weight, bias, name):
    act = activations.of(name)
    z = reference.group_norm(x, groups, weight, bias)[0].astype(np.float64)
    g = np.asarray(dy, np.float64) * act.derivative(z)
    return act.value(z), *reference.group_norm_backward(g, x, groups, weight)


def clean(x, dy, groups, weight, bias, name):
    """The gradient 0 where z lies next to a kink."""
    z = reference.group_norm(x, groups, weight, bias)[0].astype(np.float64)
    kept = activations.without_kinks(dy, z, name)
    dy[...] = kept
    return dy


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_agrees_with_the_definition(rng, isa, shape, groups, dtype, name):
    layout = LAYOUTS[len(name) % len(LAYOUTS)]
    x, dy, weight, bias = data(rng, shape, dtype, layout)
    dy = clean(x, dy, groups, weight, bias, name)
    results = both(x, dy, groups, weight, bias, name)
    y, dx, dweight, dbias = expected_of(x, dy, groups, weight, bias, name)
    assert results[0].dtype == results[1].dtype == dtype
    # As without an activation, where slopes are up to 1.2 and the argument has its own rounding.
    unit, units = UNIT[dtype], 40 if dtype is np.float64 else 14
    assert_close(results[0], y, units, unit, groups, beside=1)
    assert_close(results[1], dx, 3 * units, unit, groups, beside=1)
    for actual, value in zip(results[2:], (dweight, dbias), strict=True):
        scale = np.sqrt(np.prod(shape) / shape[1])
        assert np.abs(actual - value).max() <= 60 * UNIT[param(dtype)] * scale * max(
            1, 2**4 if dtype not in (np.float32, np.float64) else 1
        ) + (0 if dtype in (np.float32, np.float64) else 2e-5 * scale)


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_the_same_bits_for_any_threads_schedule_and_set(rng, dtype, name):
    before = bnext.get_num_threads(), bnext._core.active_isa()
    try:
        for shape, groups in SHAPES[3:8]:
            for layout in LAYOUTS[:2]:
                x, dy, weight, bias = data(rng, shape, dtype, layout)
                known = None
                runs = [(n, None, WITH_FMA[0]) for n in range(1, 6)]
                runs += [(3, schedule, WITH_FMA[0]) for schedule in SCHEDULES]
                runs += [(2, None, isa) for isa in WITH_FMA[1:]]
                for threads, schedule, isa in runs:
                    bnext.set_num_threads(threads)
                    bnext._core.force_schedule(schedule)
                    bnext._core.set_isa(isa)
                    got = both(x, dy, groups, weight, bias, name)
                    known = known or got
                    for one, two in zip(known, got, strict=True):
                        assert_same_bits(two, one, f"{shape}, {threads}, {schedule}, {isa}")
    finally:
        bnext._core.force_schedule(None)
        bnext.set_num_threads(before[0])
        bnext._core.set_isa(before[1])


@EACH
def test_gradients_are_derivatives(rng, name):
    x, target = rng.normal(size=(2, 2, 4, 3))
    weight, bias = rng.normal(size=(2, 4))

    def forward(x=x, weight=weight, bias=bias):
        return bnext.group_norm_forward(x, 2, weight, bias, activation=name)

    gradients = bnext.group_norm_backward(target, x, forward()[1], weight)
    arguments = {"x": x, "weight": weight, "bias": bias}
    for what, gradient in zip(arguments, gradients, strict=True):
        expected = numerical_gradient(
            lambda at, what=what: (forward(**{what: at})[0] * target).sum(), arguments[what]
        )
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_z_is_of_the_forward_calls_parameters(rng):
    """An optimizer may change them between the passes."""
    x, dy, weight, bias = data(rng, (3, 8, 5, 7), np.float32)
    y, saved = bnext.group_norm_forward(x, 4, weight, bias, activation="relu")
    expected = bnext.group_norm_backward(dy, x, saved, weight)
    kept = weight.copy()
    weight *= -1
    bias += 7
    copied = pickle.loads(pickle.dumps(saved))
    for other in (saved, copied):
        for one, two in zip(bnext.group_norm_backward(dy, x, other, kept), expected, strict=True):
            assert_same_bits(one, two)
    assert (y >= 0).all()


@pytest.mark.parametrize("make", [
    lambda **given: bnext.GroupNorm(4, 8, **given),
    lambda **given: bnext.InstanceNorm2d(8, affine=True, track_running_stats=True, **given),
], ids=["group", "instance"])  # fmt: skip
def test_layers(rng, make):
    """As a layer without the activation, and the activation; also by running statistics."""
    x, dy, weight, bias = data(rng, (3, 8, 5, 7), np.float32)
    layer, plain = make(activation="silu"), make()
    assert "activation='silu'" in repr(layer)
    for each in (layer, plain):
        each.weight[...], each.bias[...] = weight, bias
    for mode in ("train", "eval"):
        getattr(layer, mode)(), getattr(plain, mode)()
        again = copy.deepcopy(layer)
        y, z = layer(x), plain(x)
        act = activations.of("silu")
        np.testing.assert_allclose(y, act.value(np.float64(z)), rtol=0, atol=2e-6)
        dx = layer.backward(dy)
        g = (np.float64(dy) * act.derivative(np.float64(z))).astype(np.float32)
        np.testing.assert_allclose(dx, plain.backward(g), rtol=0, atol=2e-5)
        np.testing.assert_allclose(layer.weight_grad, plain.weight_grad, rtol=0, atol=2e-4)
        assert_same_bits(again(x), y)


def test_extreme_cells(rng, isa):
    """Values at the ends of float32's range, which are written in double."""
    x = rng.normal(size=(2, 4, 33))
    x[:, 2] *= 1e-37
    x[:, 3] *= 1e37
    x, dy = x.astype(np.float32), rng.normal(size=(2, 4, 33)).astype(np.float32)
    got = both_of_instances(x, dy, 0.0)
    expected = both_of_instances(x.astype(float), dy.astype(float), 0.0)
    for one, two in zip(got, expected, strict=True):
        scale = np.abs(two).max(axis=-1, keepdims=True)
        assert (np.abs(one - two) <= 4e-5 * scale).all()


def both_of_instances(x, dy, eps):
    y, saved = bnext.instance_norm_forward(x, eps=eps, activation="silu")
    return y, bnext.instance_norm_backward(dy, x, saved)[0]


def test_errors(rng):
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    names = ", ".join(map(repr, ACTIVATIONS))
    for call in (
        lambda: bnext.group_norm_forward(x, 2, activation="swish"),
        lambda: bnext.instance_norm_forward(x, activation="swish"),
        lambda: bnext.GroupNorm(2, 4, activation="swish"),
    ):
        with pytest.raises(ValueError, match=r"^activation: expected ") as caught:
            call()
        assert names in str(caught.value)
    with raises_exactly(ValueError, "negative_slope: expected a finite number, got nan", {"x": x}):
        bnext.group_norm_forward(x, 2, activation="leaky_relu", negative_slope=np.nan)
    with pytest.raises(TypeError, match=r"^activation: "):
        bnext.InstanceNorm1d(4, activation=3)
