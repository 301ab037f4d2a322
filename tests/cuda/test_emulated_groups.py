"""Groups whose shards are on a GPU, without one: over the stand-in, and over emulated kernels."""

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.rows import ROW

from .. import fake_cuda, reference
from ..cases import FEW, named
from ..compare import assert_are_gradients, assert_is_forward, assert_same_bits
from ..fake_cuda import Array
from ..groups.support import CUTS, batch_axis, layer_step, new_group, shards_of, whole
from ..sixteen import assert_is_rounded
from .stand_in import StandIn

CASES = FEW + named("C-first", "NCHW-stored-CNHW", "all-backwards", "inner-cropped-NHWC")
SIXTEEN = [np.float16, ml_dtypes.bfloat16]
ROWS = ROW._fields


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


def values_of(array):
    """Of an array that is there, or here."""
    return array.values if isinstance(array, Array) else array


def in_group(makers, case, cut, x, dy, weight, bias, **options):
    """y, saved, gradients of members whose arrays are made by `makers`."""
    group = new_group(len(makers))
    axis = batch_axis(case)
    xs, dys = shards_of(x, cut, axis), shards_of(dy, cut, axis)

    def member(rank, shard):
        make = makers[rank]
        shard, shard_dy = make(shard), make(dys[rank])
        affine = make(weight), make(bias)
        y, saved = bnext.batch_norm_forward(
            shard, *affine, channel_axis=case.channel_axis, group=group
        )
        gradients = bnext.batch_norm_backward(shard_dy, shard, saved, affine[0], **options)
        for result in (y, saved.mean, saved.rstd, *gradients):
            assert type(result) is type(shard)
        return y, saved, gradients

    return group.run(member, xs)


def here(array):
    return array


@pytest.mark.parametrize("cut", CUTS)
def test_agrees_with_the_definition_of_the_whole_batch(kernels, make, case, cut, dtype, rng):
    """All of them there, or one of them on the CPU."""
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
    weight, bias = (case.weight(rng, dtype) if v is None else v for v in (weight, bias))
    makers = [make, make if cut in ("equal", "empty-first") else here, make]
    results = in_group(makers, case, cut, x, dy, weight, bias, parameter_gradients="total")
    ys, saved, gradients = zip(*results, strict=True)
    axis, options = batch_axis(case), {"channel_axis": case.channel_axis}
    assert_is_forward(whole(map(values_of, ys), axis), x, weight, bias, **options)
    dx = whole((values_of(g[0]) for g in gradients), axis)
    dweight, dbias = (values_of(each) for each in gradients[0][1:])
    assert_are_gradients((dx, dweight, dbias), dy, x, weight, **options)
    for each, (_, *of_parameters) in zip(saved, gradients, strict=True):
        assert each.count == case.count
        for actual, expected in zip(of_parameters, (dweight, dbias), strict=True):
            assert_same_bits(values_of(actual), expected)
        for name in ROWS:  # on the device as on the host
            expected = values_of(getattr(saved[1], name))
            assert_same_bits(values_of(getattr(each, name)), expected, name)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("cut", ["unequal", "empty-first"])
def test_16_bits(kernels, case, dtype, cut, rng):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight, bias = rng.uniform(0.5, 2, (2, case.channels)).astype(np.float32)
    results = in_group([Array] * 3, case, cut, x, dy, weight, bias, parameter_gradients="total")
    axis, options = batch_axis(case), {"channel_axis": case.channel_axis}
    y = whole((result[0].values for result in results), axis)
    assert_is_rounded(y, reference.forward(x, weight, bias, **options), "y", **options)
    expected = reference.backward(dy, x, weight, **options)
    dx = whole((result[2][0].values for result in results), axis)
    assert_is_rounded(dx, expected.dx, "dx", **options)
    for actual, value in zip(results[0][2][1:], expected[1:], strict=True):
        assert values_of(actual).dtype == np.float32
        np.testing.assert_allclose(actual.values, value, rtol=2e-6, atol=2e-5 * abs(value).max())


def test_out(kernels, make, dtype, rng):
    x, dy = rng.normal(size=(2, 9, 5, 3)).astype(dtype)
    xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")
    group = new_group(3)
    forward, backward = ([np.full_like(shard, np.nan) for shard in xs] for _ in range(2))

    def member(rank, shard):
        shard, outs = make(shard), [make(values[rank]) for values in (forward, backward)]
        y, saved = bnext.batch_norm_forward(shard, group=group, out=outs[0])
        dx, *of_parameters = bnext.batch_norm_backward(
            make(dys[rank]), shard, saved, parameter_gradients="total", out=outs[1]
        )
        assert y is outs[0]
        assert dx is outs[1]
        return [each.values for each in of_parameters]

    gradients = group.run(member, xs)
    assert_is_forward(whole(forward), x)
    assert_are_gradients((whole(backward), *gradients[0]), dy, x)


# --- what travels ---------------------------------------------------------------------------------


@pytest.fixture
def travels(monkeypatch, make):
    """How many numbers were copied between device and host, each time."""
    sizes = []
    namespace = fake_cuda.namespace_of(make)

    def watched(function):
        def call(array, **options):
            sizes.append(array.values.size if isinstance(array, Array) else array.size)
            return function(array, **options)

        return call

    monkeypatch.setattr(namespace, "from_dlpack", watched(namespace.from_dlpack))
    monkeypatch.setattr(namespace, "asarray", watched(namespace.asarray))
    return sizes


def test_no_activation_leaves_the_device(kernels, make, travels, rng):
    channels = 5
    x, dy = (make(a) for a in rng.normal(size=(2, 40, channels, 30)).astype(np.float32))
    group = new_group(1)
    layer = bnext.BatchNorm1d(channels, group=group).to(x)
    with group.member(0):
        travels.clear()
        layer(x)
        assert travels == [len(ROW) * channels] * 2
        travels.clear()
        layer.backward(dy)
        assert sorted(travels) == [channels, channels, 2 * channels, 2 * channels]


def test_an_empty_shard_launches_nothing(monkeypatch, make, rng):
    kernels = StandIn()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    group = new_group(2)

    def member(rank, shard):
        shard = make(shard) if rank == 0 else shard
        y, saved = bnext.batch_norm_forward(shard, group=group)
        dx, dweight, dbias = bnext.batch_norm_backward(shard, shard, saved)
        return y, dx, dweight, dbias, saved

    y, dx, dweight, dbias, saved = group.run(member, [x[:0], x])[0]
    assert kernels.launches == []
    assert y.shape == dx.shape == (0, 3)
    assert not dweight.values.any()
    assert not dbias.values.any()
    np.testing.assert_allclose(saved.mean.values, x.mean(axis=0, dtype=np.float64), rtol=1e-7)


def test_each_member_has_its_device(monkeypatch, rng):
    kernels = StandIn(devices=2)
    monkeypatch.setattr(bnext.cuda, "_load", lambda: kernels)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    group = new_group(2)
    layers = [bnext.BatchNorm1d(3, group=group).to(Array(x, device)) for device in range(2)]

    def member(rank, shard):
        layer = layers[rank]
        y, dx = layer_step(layer, Array(shard, rank), Array(shard, rank))
        arrays = y, dx, layer.weight_grad, layer.bias_grad, layer.running_mean
        return {array.device for array in arrays}

    assert group.run(member, np.split(x, [2])) == [{0}, {1}]
    assert {device for _, device, _ in kernels.launches} == {0, 1}
    assert_same_bits(layers[0].running_var.values, layers[1].running_var.values)


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", ["shared", "replicas", "mixed"])
def test_layers(kernels, make, dtype, momentum, kind, rng):
    """Three steps; running statistics have the same bits on the GPU and on the CPU."""
    group = new_group(3)
    options = {"momentum": momentum, "dtype": dtype}
    makers = [make, here if kind == "mixed" else make, make]
    layers = [bnext.BatchNorm2d(6, group=group, **options) for _ in range(3)]
    if kind == "shared":
        layers = layers[:1] * 3
    for layer, made in zip(layers, makers, strict=True):
        if made is make:
            layer.to(make(np.empty(0)))
    arrays = [layer.running_var for layer in layers]
    running = np.zeros(6), np.ones(6)
    for step in range(3):
        x, dy = rng.normal(step, 2, (2, 9, 6, 5, 3)).astype(dtype)
        xs, dys = shards_of(x, "unequal"), shards_of(dy, "unequal")

        def member(rank, shard, dys=dys):
            return layer_step(layers[rank], makers[rank](shard), makers[rank](dys[rank]))

        ys, dxs = zip(*group.run(member, xs), strict=True)
        assert_is_forward(whole(map(values_of, ys)), x)
        own = [values_of(layer.weight_grad).astype(np.float64) for layer in layers]
        own_bias = [values_of(layer.bias_grad).astype(np.float64) for layer in layers]
        if kind == "shared":  # the whole batch's already
            own, own_bias = own[:1], own_bias[:1]
        gradients = whole(map(values_of, dxs)), sum(own), sum(own_bias)
        expected = reference.backward(dy, x)
        close = {"rtol": 0, "atol": 2e-5 if dtype == np.float32 else 1e-12}
        for actual, value in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(actual, value, **close)
        share = 1 / (step + 1) if momentum is None else momentum
        running = reference.update_running(running, reference.moments(x), share)
        for layer in layers:
            assert layer.num_batches_tracked == step + 1
    for layer, array in zip(layers, arrays, strict=True):
        assert layer.running_var is array
        for name, value in zip(("running_mean", "running_var"), running, strict=True):
            actual = values_of(getattr(layer, name))
            np.testing.assert_allclose(actual, value, rtol=0, atol=16 * np.finfo(dtype).eps)
            assert_same_bits(actual, values_of(getattr(layers[1], name)), name)


@pytest.mark.parametrize("track", [True, False])
def test_a_layer_goes_on_without_its_group(kernels, make, track, rng):
    """In evaluation nothing is exchanged; a layer without statistics uses the shard's own."""
    x = rng.normal(size=(8, 3)).astype(np.float32)
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group, track_running_stats=track).to(make(x))
    group.run(lambda rank, shard: layer_step(layer, make(shard), make(shard)), np.split(x, 2))
    layer.eval()
    y, dx = layer_step(layer, make(x), make(x))
    alone = bnext.BatchNorm1d(3, track_running_stats=track).eval()
    alone.load_state_dict(layer.state_dict())
    for actual, expected in zip((y, dx), layer_step(alone, x, x), strict=True):
        np.testing.assert_allclose(actual.values, expected, rtol=0, atol=1e-6)


def test_all_shards_empty(kernels, make):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group).to(make(np.empty(0)))
    empty = np.empty((0, 3), np.float32)
    for y, dx in group.run(lambda rank, x: layer_step(layer, make(x), make(x)), [empty] * 2):
        assert y.shape == dx.shape == (0, 3)
    assert layer.num_batches_tracked == 1
    assert_same_bits(layer.running_mean.values, np.zeros(3, np.float32))
    assert_same_bits(layer.running_var.values, np.ones(3, np.float32))
    assert not layer.weight_grad.values.any()
