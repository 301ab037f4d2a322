"""Group and instance normalization on a GPU, without one: functions and layers, emulated kernels.

Against their definition in long double, in every dtype and layout, on every path.
"""

import contextlib
import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import DeviceSaved

from .. import cell_reference as reference
from ..activations import ACTIVATIONS, SLOPE
from ..fake_cuda import Array, InterfaceArray
from ..optional import import_emulated
from ..test_group_norm import (
    DTYPES,
    DX,
    LAYOUTS,
    PARAMETERS,
    UNIT,
    Y,
    assert_close,
    data,
    digest,
    param,
)
from . import gpu

MODULE = import_emulated()
F4 = np.float32
BY_NAME = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
# One value of a channel, small planes, planes of odd lengths, few long slabs, slabs wider than a
# block's columns, one example, one group, a group for each channel.
SHAPES = (
    ((9, 20), 4), ((7, 6, 1), 3), ((5, 12, 2, 2), 4), ((3, 8, 5, 7), 8), ((2, 6, 64, 65), 2),
    ((1, 4, 90, 130), 1), ((4, 32, 7, 14), 8), ((2, 130, 3, 3), 2), ((7, 33, 2, 1), 11),
    ((1, 3, 33_001), 3), ((3, 5, 1, 2, 17), 5), ((2, 24, 4, 4), 3),
)  # fmt: skip
# Slabs of one block, of a cluster's, of several rounds of a grid; groups of one channel, of planes
# that no unit divides, of rows that several groups share, of rows wider than a block's columns.
FEW = [
    ((3, 8, 5, 7), 8), ((4, 12, 4, 9), 3), ((2, 6, 64, 65), 2), ((2, 66, 3, 3), 2),
    ((3, 64, 7), 16), ((5, 20), 4), ((2, 3, 9000), 3),
]  # fmt: skip


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    monkeypatch.setattr(bnext.cuda, "_load", lambda: MODULE)
    return MODULE


def there(values, make=Array, device=0):
    return None if values is None else make(values, device)


def both_there(x, dy, groups, weight, bias, make=Array, device=0, **options):
    """Results of both passes in NumPy arrays; `saved` behind y."""
    x, dy, weight, bias = (there(each, make, device) for each in (x, dy, weight, bias))
    if groups == x.shape[1] and x[0, 0].values.size > 1:
        y, saved = bnext.instance_norm_forward(x, weight, bias, **options)
        gradients = bnext.instance_norm_backward(dy, x, saved, weight)
    else:
        y, saved = bnext.group_norm_forward(x, groups, weight, bias, **options)
        gradients = bnext.group_norm_backward(dy, x, saved, weight)
    assert {type(each) for each in (y, *gradients)} == {make}
    return y.values, saved, *(each.values for each in gradients)


def assert_are_right(results, x, dy, groups, weight, bias, dtype):
    """Both passes, against the definition."""
    y, saved, dx, dweight, dbias = results
    expected, mean, var = reference.group_norm(x, groups, weight, bias)
    gradients = reference.group_norm_backward(dy, x, groups, weight)
    assert y.dtype == dx.dtype == x.dtype
    assert dweight.dtype == dbias.dtype == param(dtype)
    unit = UNIT[dtype]
    assert_close(y, expected, Y[dtype] + 1, unit, groups, beside=1)
    terms = np.abs(dy if weight is None else dy * weight.reshape(-1, *(1,) * (x.ndim - 2)))
    terms = terms.reshape(x.shape[0], groups, -1).max(axis=2) / np.sqrt(var + 1e-5)
    assert_close(dx, gradients[0], DX[dtype] + 1, unit, groups, beside=terms[..., None])
    count = x.size / x.shape[1]
    of_sums = UNIT[param(dtype)] * PARAMETERS[dtype] * np.sqrt(count)
    for got, wanted in zip((dweight, dbias), gradients[1:], strict=True):
        scale = np.sqrt(count) + np.abs(wanted)
        near = 2**-18 if dtype not in (np.float32, np.float64) else of_sums
        assert np.all(np.abs(got - wanted) <= max(of_sums, near) * scale)
    assert saved.mean.shape == saved.var.shape == (x.shape[0], groups)
    assert saved.count == x[0].size // groups
    near = 1e-12 if dtype is np.float64 else 1e-5
    assert np.all(np.abs(saved.mean.values - mean) <= near * np.sqrt(var + 1e-3))
    assert np.all(np.abs(saved.var.values - var) <= near * (var + 1e-3))


@pytest.fixture(params=[False, True], ids=["chosen", "cells"])
def by_cells(request):
    """Whether cells are the channels of kernels also where a team of threads could hold a slab."""
    with bnext.cuda._forced_path("two_kernels") if request.param else contextlib.nullcontext():
        yield request.param


def is_small(shape, groups, layout, held=16):
    """Whether a team of up to 256 threads holds a slab in registers."""
    values, cells = int(np.prod(shape[2:])), shape[1] // groups
    lanes = min(32, 1 << max(values - 1, 0).bit_length())
    rounds = -(-cells // (256 // lanes)) * -(-values // lanes)
    return rounds <= held and (values == 1 or layout != "interleaved")


def test_small_slabs_take_one_launch(rng):
    """And a second one for the gradients of parameters."""
    for shape, groups in SHAPES:
        for layout in ("planar", "interleaved", "examples"):
            x, dy, weight, bias = data(rng, shape, F4, layout)
            MODULE.record(True)
            both_there(x, dy, groups, weight, bias)
            launches = [what for what, _ in MODULE.record(False)].count("run")
            assert (launches == 3) == (is_small(shape, groups, layout) or groups == shape[1])


@BY_NAME
@pytest.mark.usefixtures("by_cells")
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_values(rng, shape, groups, dtype):
    """In every layout; with a weight of 0 in a group, and without parameters."""
    for i, layout in enumerate(LAYOUTS):
        x, dy, weight, bias = data(rng, shape, dtype, layout)
        if i % 3 == 1:
            weight = bias = None
        else:
            weight[0] = 0
        # The interface has no word for bfloat16.
        make = InterfaceArray if i == 2 and dtype is not ml_dtypes.bfloat16 else Array
        results = both_there(x, dy, groups, weight, bias, make)
        assert_are_right(results, x, dy, groups, weight, bias, dtype)
        assert results[0].strides == results[2].strides
        if layout in ("planar", "interleaved"):
            assert results[0].strides == x.strides


@pytest.mark.parametrize("path", gpu.PATHS)
@pytest.mark.parametrize("layout", ["planar", "interleaved", "examples"])
@pytest.mark.parametrize(("shape", "groups"), FEW, ids=str)
def test_every_path(rng, shape, groups, layout, path):
    """Where whole passes have that path; a second call has the same bits."""
    x, dy, weight, bias = data(rng, shape, F4, layout)
    results, refusal = gpu.results_or_refusal(path, lambda: both_there(x, dy, groups, weight, bias))
    if refusal is not None:
        assert path != "two_kernels"
        return
    assert_are_right(results, x, dy, groups, weight, bias, F4)
    with bnext.cuda._forced_path(path):
        again = both_there(x, dy, groups, weight, bias)
    assert digest(*results[::2]) == digest(*again[::2])
    assert digest(results[3], results[1].rows.values) == digest(again[3], again[1].rows.values)


@pytest.mark.parametrize("device", range(1, 5))
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize(("shape", "groups"), FEW[:4], ids=str)
def test_devices_with_other_room(rng, shape, groups, layout, device):
    x, dy, weight, bias = data(rng, shape, F4, layout)
    results = both_there(x, dy, groups, weight, bias, device=device)
    assert_are_right(results, x, dy, groups, weight, bias, F4)


@pytest.mark.usefixtures("by_cells")
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_addresses_that_no_unit_fits(rng, dtype, offset):
    shape, groups = (3, 8, 4, 4), 4
    memory = [np.empty(np.prod(shape) + offset, dtype)[offset:].reshape(shape) for _ in range(2)]
    x, dy, weight, bias = data(rng, shape, dtype)
    memory[0][...], memory[1][...] = x, dy
    results = both_there(*memory, groups, weight, bias)
    assert_are_right(results, x, dy, groups, weight, bias, dtype)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_out(rng, layout):
    x, dy, weight, bias = data(rng, (3, 12, 7, 9), F4, layout)
    plain = both_there(x, dy, 3, weight, bias)
    into, x_there = Array(np.full_like(x, np.nan)), Array(x)
    y, saved = bnext.group_norm_forward(x_there, 3, Array(weight), Array(bias), out=into)
    assert y is into
    assert digest(y.values) == digest(plain[0])
    dx_into = Array(np.full_like(x, np.nan))
    dx, *_ = bnext.group_norm_backward(Array(dy), x_there, saved, Array(weight), out=dx_into)
    assert dx is dx_into
    assert digest(dx.values) == digest(plain[2])


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("groups", [2, 6])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(rng, name, groups, layout):
    """By the definition, away from kinks: act(z), and the gradients of dy * act'(z)."""
    x, dy, weight, bias = data(rng, (3, 6, 5, 8), np.float64, layout)
    z = np.asarray(reference.group_norm(x, groups, weight, bias)[0], np.float64)
    options = {"activation": name, "negative_slope": SLOPE}
    y, saved, dx, dweight, dbias = both_there(x, dy, groups, weight, bias, **options)
    assert saved.activation == name
    np.testing.assert_allclose(y, ACTIVATIONS[name].value(z), rtol=1e-12, atol=1e-12)
    g = dy * ACTIVATIONS[name].derivative(z)
    expected = reference.group_norm_backward(g, x, groups, weight)
    for actual, wanted in zip((dx, dweight, dbias), expected, strict=True):
        np.testing.assert_allclose(actual, np.asarray(wanted, np.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [2, 6])
def test_activations_of_16_bits(rng, groups):
    x, dy, weight, bias = data(rng, (3, 6, 5, 8), ml_dtypes.bfloat16)
    results = both_there(x, dy, groups, weight, bias, activation="gelu")
    z = np.asarray(reference.group_norm(x, groups, weight, bias)[0], np.float64)
    np.testing.assert_allclose(
        results[0].astype(F4), ACTIVATIONS["gelu"].value(z), rtol=2**-8, atol=2**-8
    )
    g = dy.astype(np.float64) * ACTIVATIONS["gelu"].derivative(z)
    expected = reference.group_norm_backward(g, x, groups, weight)
    for actual, wanted in zip(results[2:], expected, strict=True):
        largest = float(np.abs(wanted).max())
        np.testing.assert_allclose(actual.astype(F4), wanted.astype(F4), atol=2**-7 * largest)


@pytest.mark.usefixtures("by_cells")
def test_a_mean_far_from_zero(rng):
    """Nothing cancels: neither in a cell nor between the cells of a slab."""
    x = (rng.standard_normal((2, 6, 9, 11)) + 1e6 * (1 + np.arange(6)[:, None, None])).astype(F4)
    dy = rng.standard_normal(x.shape).astype(F4)
    for layout in ("planar", "interleaved"):
        x_there = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        given = x if layout == "planar" else x_there
        for groups in (6, 3):
            y, saved, dx, *_ = both_there(given, dy, groups, None, None)
            expected, mean, var = reference.group_norm(x, groups)
            np.testing.assert_allclose(saved.mean.values, mean.astype(float), rtol=1e-9)
            np.testing.assert_allclose(saved.var.values, var.astype(float), rtol=1e-5)
            assert np.abs(y - expected).max() < (1e-4 if groups == 6 else 1e-5)
            assert np.isfinite(dx).all()


@pytest.mark.usefixtures("by_cells")
def test_constant_slabs_have_no_variance():
    for layout in ("planar", "interleaved"):
        x = np.full((2, 6, 7, 5), 0.1, F4)
        if layout == "interleaved":
            x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        for groups in (1, 2, 6):
            y, saved, *_ = both_there(x, x, groups, None, None)
            assert not saved.m2.values.any()
            assert not y.any()


@BY_NAME
@pytest.mark.usefixtures("by_cells")
def test_small_weights_in_a_group(rng, dtype):
    """Weights of 0, and far below the others, beside large ones."""
    x, dy, weight, bias = data(rng, (2, 8, 3, 5), dtype)
    weight[:] = (0, 1e-30, -0.0, 1, 2, -1e-38, 1, 0)
    results = both_there(x, dy, 2, weight, bias)
    assert_are_right(results, x, dy, 2, weight, bias, dtype)
    nothing = both_there(x, dy, 2, 0 * weight, bias)
    assert not nothing[2].any()


@BY_NAME
@pytest.mark.parametrize("shape", [(0, 6, 3, 5), (2, 6, 0, 5), (0, 6)], ids=str)
def test_empty(shape, dtype):
    x = np.empty(shape, dtype)
    kind = param(dtype)
    weight, bias = np.ones(6, kind), np.zeros(6, kind)
    y, saved, dx, dweight, dbias = both_there(x, x, 3, weight, bias)
    on_the_cpu = bnext.group_norm_forward(x, 3, weight, bias)[1]
    assert y.shape == dx.shape == shape
    assert y.dtype == x.dtype
    assert saved.mean.shape == (shape[0], 3)
    np.testing.assert_array_equal(saved.rows.values, on_the_cpu.rows)
    assert saved.count == on_the_cpu.count
    assert dweight.dtype == kind
    assert not dweight.any()
    assert not dbias.any()


def test_what_is_saved(rng):
    x, dy, weight, bias = data(rng, (2, 6, 3, 5), F4)
    x_there = Array(x)
    _, saved = bnext.group_norm_forward(x_there, 3, Array(weight), Array(bias), activation="silu")
    assert isinstance(saved, DeviceSaved)
    assert saved.num_groups == 3
    assert saved.rows.shape == (5, 2, 3)
    assert (saved.count, saved.channel_axis, saved.shape) == (30, 1, (2, 6, 3, 5))
    assert saved.batch_statistics
    first = bnext.group_norm_backward(Array(dy), x_there, saved, Array(weight))
    for other in (copy.copy(saved), copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert other.num_groups == 3
        second = bnext.group_norm_backward(Array(dy), x_there, other, Array(weight))
        assert digest(*(each.values for each in first)) == digest(*(s.values for s in second))
    assert bnext.batch_norm_forward(x_there)[1].num_groups is None


def message_of(call):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    return type(caught.value), str(caught.value).replace("on cuda:0", "on the CPU")


WRONG = {
    "groups": lambda make, x: bnext.group_norm_forward(make(x), 4),
    "no groups": lambda make, x: bnext.group_norm_forward(make(x), 0),
    "axis": lambda make, x: bnext.group_norm_forward(make(x), 3, channel_axis=0),
    "one value": lambda make, x: bnext.group_norm_forward(make(x[:1, :, :1]), 6),
    "one value each": lambda make, x: bnext.instance_norm_forward(make(x[:, :, :1])),
    "eps": lambda make, x: bnext.group_norm_forward(make(x), 3, eps=-1.0),
    "weight": lambda make, x: bnext.group_norm_forward(make(x), 3, make(np.ones(5, F4))),
    "dtype": lambda make, x: bnext.group_norm_forward(make(x), 3, make(np.ones(6))),
    "rank": lambda make, x: bnext.group_norm_forward(make(x[0, 0]), 1),
    "out": lambda make, x: bnext.group_norm_forward(make(x), 3, out=make(x[:, :, 1:])),
    "activation": lambda make, x: bnext.group_norm_forward(make(x), 3, activation="step"),
    "dy": lambda make, x: bnext.group_norm_backward(
        make(x[:1]), make(x), bnext.group_norm_forward(make(x), 3)[1]
    ),
    "another norm": lambda make, x: bnext.batch_norm_backward(
        make(x), make(x), bnext.group_norm_forward(make(x), 3)[1]
    ),
    "of batch norm": lambda make, x: bnext.group_norm_backward(
        make(x), make(x), bnext.batch_norm_forward(make(x))[1]
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_are_the_errors_of_the_cpu(rng, wrong):
    x = rng.standard_normal((2, 6, 5)).astype(F4)
    assert message_of(lambda: WRONG[wrong](Array, x)) == message_of(
        lambda: WRONG[wrong](np.asarray, x)
    )


def test_arrays_of_different_places_are_refused(rng):
    x, dy, weight, _ = data(rng, (2, 6, 5), F4)
    with pytest.raises(TypeError, match=r"weight: expected an array on cuda:0"):
        bnext.group_norm_forward(Array(x), 3, weight)
    _, saved = bnext.group_norm_forward(Array(x), 3)
    with pytest.raises(TypeError, match=r"saved: expected an array on cuda:1, like x"):
        bnext.group_norm_backward(Array(dy, 1), Array(x, 1), saved)
    with pytest.raises(TypeError, match="saved: made from an input on the CPU"):
        bnext.group_norm_backward(Array(dy), Array(x), bnext.group_norm_forward(x, 3)[1])


def test_a_group_refuses_arrays_on_a_gpu(rng):
    x = Array(rng.standard_normal((2, 6, 5)).astype(F4))
    group = bnext.sync.ThreadGroup(1)
    refused = pytest.raises(ValueError, match=r"x: expected an array on the CPU, got one on cuda:0")
    with group.member(0), refused:
        bnext.group_norm_forward(x, 3, group=group)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_group_norm_layers(rng, axis, activation):
    x, dy, weight, bias = data(rng, (3, 6, 5, 7), F4)
    layer = bnext.GroupNorm(3, 6, channel_axis=axis, activation=activation)
    layer.weight[...], layer.bias[...] = weight, bias
    if axis == -1:
        x, dy = (np.ascontiguousarray(np.moveaxis(each, 1, -1)) for each in (x, dy))
    here = layer(x), layer.backward(dy), layer.weight_grad, layer.bias_grad
    layer.to(Array(np.empty(0)))
    there = layer(Array(x)), layer.backward(Array(dy)), layer.weight_grad, layer.bias_grad
    for actual, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(actual.values, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_instance_norm_layers_with_running_statistics(rng, momentum):
    x, dy, *_ = data(rng, (3, 6, 5, 7), F4)
    layers = [
        bnext.InstanceNorm2d(6, momentum=momentum, affine=True, track_running_stats=True)
        for _ in range(2)
    ]
    layers[1].to(Array(np.empty(0)))
    results = []
    for layer, make in zip(layers, (np.asarray, Array), strict=True):
        y, dx = layer(make(x)), layer.backward(make(dy))
        layer.eval()
        evaluated = layer(make(x)), layer.backward(make(dy)), layer(make(x[0]))
        found = y, dx, *evaluated, layer.running_mean, layer.running_var, layer.weight_grad
        results.append([getattr(each, "values", each) for each in found])
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
    assert (results[1][5] == 0).all() == (momentum is None)


def test_a_layer_that_is_elsewhere_says_what_moves_it(rng):
    x = Array(rng.standard_normal((3, 6, 5, 7)).astype(F4))
    for layer in (
        bnext.GroupNorm(3, 6),
        bnext.InstanceNorm2d(6, affine=True),
        bnext.InstanceNorm2d(6, track_running_stats=True),
        bnext.InstanceNorm2d(6, track_running_stats=True).eval(),
    ):
        with pytest.raises(TypeError, match=r"the layer's to\(x\) moves it"):
            layer(x)


def test_nothing_waits_for_the_device(rng):
    """A call only enqueues, on one stream, and takes no memory but its caller's."""
    for layout in ("planar", "interleaved"):
        x, dy, weight, bias = data(rng, (3, 12, 4, 8), F4, layout)
        for groups in (3, 12):
            both_there(x, dy, groups, weight, bias)
            MODULE.record(True)
            both_there(x, dy, groups, weight, bias)
            requests = {what for what, _ in MODULE.record(False)}
            assert requests <= {"prepare", "zero", "run"}
