"""The whole way of arrays on a GPU, without one: fake arrays in the CPU's memory, kernels there.

Each test runs over a stand-in written in NumPy, and where the build has it over
`bnext._cuda_emulated`, the kernels of `bnext._cuda` compiled for the CPU.
"""

import copy
import re

import ml_dtypes
import numpy as np
import pytest

import bnext
from bnext.arrays import engine_of
from bnext.rows import ROW

from .. import reference
from ..cases import EMPTY, FEW, named
from ..compare import (
    assert_are_constant_gradients,
    assert_are_gradients,
    assert_is_forward,
    assert_is_y,
    assert_same_bits,
    assert_same_memory_order,
)
from ..fake_cuda import Array
from ..optional import import_emulated
from ..sixteen import assert_is_rounded
from .compare_there import assert_are_moments_there

SHAPES = FEW + named(
    "NC-one-channel", "C-first", "NCL-inner-1", "NCHW-257", "NCDHW", "channels-inside-5d", "NHWC",
    "NHWC-one-channel", "NCHW-stored-CNHW", "NCHW-stored-HNCW", "batch-backwards", "all-backwards",
    "inner-every-third", "channels-3-to-20-NHWC", "NC-stored-CN", "inner-cropped-NHWC",
)  # fmt: skip
OUTS = [(x, out) for x in FEW for out in FEW if len(x.shape) == len(out.shape)]
SIXTEEN = [np.float16, ml_dtypes.bfloat16]
ARRAYS = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
    return request.param


def values_of(array):
    """The fake array's values; it must be fake."""
    assert isinstance(array, Array)
    return array.values


def made(make, *values):
    return [None if value is None else make(value) for value in values]


def test_forward(kernels, make, case, dtype, rng):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    y, saved = bnext.batch_norm_forward(
        *made(make, x, weight, bias), channel_axis=case.channel_axis
    )
    assert type(y) is make
    y = values_of(y)
    assert_is_forward(y, x, weight, bias, channel_axis=case.channel_axis)
    assert_same_memory_order(y, x)
    assert saved.count == case.count
    assert (saved.eps, saved.shape, saved.dtype) == (1e-5, x.shape, x.dtype)
    assert saved.channel_axis == case.channel_axis % x.ndim
    assert saved.batch_statistics
    rows = [values_of(row) for row in (saved.mean, saved.m2, saved.var, saved.rstd)]
    moments = bnext.Moments(saved.count, rows[0], rows[1])
    assert_are_moments_there(moments, x, channel_axis=case.channel_axis)
    np.testing.assert_allclose(rows[2], moments.var, rtol=1e-15)
    np.testing.assert_allclose(rows[3], reference.rstd(moments.var, 1e-5), rtol=1e-15)


def test_backward(kernels, make, case, dtype, rng):
    x, dy, weight = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype)
    x_there, dy_there, weight_there = made(make, x, dy, weight)
    _, saved = bnext.batch_norm_forward(x_there, weight_there, channel_axis=case.channel_axis)
    gradients = bnext.batch_norm_backward(dy_there, x_there, saved, weight_there)
    gradients = [values_of(gradient) for gradient in gradients]
    assert_are_gradients(gradients, dy, x, weight, channel_axis=case.channel_axis)
    assert_same_memory_order(gradients[0], x)


@pytest.mark.parametrize("wide", [(False, False), (True, True), (False, True)], ids=str)
def test_normalize(kernels, make, case, dtype, rng, wide):
    x, weight, bias = case.x(rng, dtype), case.weight(rng, dtype), case.bias(rng, dtype)
    mean, var = (
        rng.uniform(0.5, 2, case.channels).astype(np.float64 if w else dtype) for w in wide
    )
    arrays = made(make, x, mean, var, weight, bias)
    y = values_of(bnext.normalize(*arrays, channel_axis=case.channel_axis))
    assert_is_y(y, x, mean, var, weight, bias, channel_axis=case.channel_axis)


def test_moments(kernels, make, case, dtype, rng):
    x = case.x(rng, dtype)
    moments = bnext.moments(make(x), channel_axis=case.channel_axis)
    assert type(moments.mean) is type(moments.m2) is make
    on_the_cpu = bnext.Moments(moments.count, moments.mean.values, moments.m2.values)
    assert_are_moments_there(on_the_cpu, x, channel_axis=case.channel_axis)
    np.testing.assert_array_equal(values_of(moments.var), on_the_cpu.var)
    np.testing.assert_array_equal(values_of(moments.unbiased_var), on_the_cpu.unbiased_var)


@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: np.dtype(dtype).name)
def test_16_bits(kernels, case, dtype, rng):
    """DLPack only: the interface has no word for bfloat16."""
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight, bias = case.weight(rng, np.float32), case.bias(rng, np.float32)
    x_there, dy_there, weight_there, bias_there = made(Array, x, dy, weight, bias)
    axis = {"channel_axis": case.channel_axis}
    y, saved = bnext.batch_norm_forward(x_there, weight_there, bias_there, **axis)
    assert_is_rounded(values_of(y), reference.forward(x, weight, bias, **axis), "y", **axis)
    dx, dweight, dbias = bnext.batch_norm_backward(dy_there, x_there, saved, weight_there)
    expected = reference.backward(dy, x, weight, **axis)
    assert_is_rounded(values_of(dx), expected.dx, "dx", **axis)
    for actual, value in ((dweight, expected.dweight), (dbias, expected.dbias)):
        assert values_of(actual).dtype == np.float32
        np.testing.assert_allclose(actual.values, value, rtol=2e-6, atol=2e-5 * abs(value).max())


@pytest.mark.parametrize("path", ["block", "cluster", "cooperative", "chunked", "two_kernels"])
@pytest.mark.parametrize("shape", [(3, 5, 7, 16), (1, 3, 7, 8), (9, 13, 17, 72), (41, 3, 3, 264)])
@pytest.mark.parametrize("rows_between", [0, 2])
@pytest.mark.parametrize("dtype", SIXTEEN, ids=lambda dtype: np.dtype(dtype).name)
def test_eight_channels_a_unit(monkeypatch, dtype, rows_between, shape, path, rng):
    """Fewer positions than a batch has, and more; rows left out of the array take units of four."""
    module = import_emulated()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    batch, height, *rest = shape
    x, dy = (
        rng.normal(3, 2, (batch, height + rows_between, *rest)).astype(dtype)[:, :height]
        for _ in range(2)
    )
    strides = [tuple(s // 2 for s in x.strides)] * 2
    addresses = [x.ctypes.data] * 2
    name = np.dtype(dtype).name
    plan = module.plan("forward", name, shape, strides, addresses, 3, module.limits(0))
    assert plan.unit == (8 if rows_between == 0 or batch == 1 else 4)
    weight, bias = rng.normal(size=(2, shape[-1])).astype(np.float32)
    x_there, dy_there, weight_there, bias_there = made(Array, x, dy, weight, bias)
    try:
        with bnext.cuda._forced_path(path):
            y, saved = bnext.batch_norm_forward(x_there, weight_there, bias_there, channel_axis=-1)
            gradients = bnext.batch_norm_backward(dy_there, x_there, saved, weight_there)
    except ValueError as error:
        if not str(error).startswith("path: ") or path in ("chunked", "two_kernels"):
            raise
        return
    expected = reference.forward(x, weight, bias, channel_axis=-1)
    assert_is_rounded(values_of(y), expected, "y", channel_axis=-1)
    expected = reference.backward(dy, x, weight, channel_axis=-1)
    assert_is_rounded(values_of(gradients[0]), expected.dx, "dx", channel_axis=-1)


def test_four_phases(kernels, make, case, dtype, rng):
    """Those that a group calls, with what it exchanges on the host; here a group of one."""
    x, dy, weight = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype)
    x_there, dy_there, weight_there = made(make, x, dy, weight)
    axis = case.channel_axis
    engine = engine_of(x_there)
    nothing = [None] * 5
    count, mean, mean_low, m2, name = engine.collect_stats(
        x_there, weight_there, *nothing, 1e-5, axis, None
    )  # fmt: skip
    assert name == np.dtype(dtype).name
    moments = bnext.moments(x_there, channel_axis=axis)
    assert_same_bits(mean, values_of(moments.mean))
    assert_same_bits(m2, values_of(moments.m2))
    y = bnext.normalize(x_there, moments.mean, moments.var, weight_there, channel_axis=axis)
    assert_is_forward(values_of(y), x, weight, channel_axis=axis)
    again, saved = engine.apply_norm(
        x_there, count, mean, mean_low, m2, weight_there, None, 1e-5, axis, None
    )  # fmt: skip
    if dtype == np.float64:  # whose mean has a low part besides
        assert_is_forward(values_of(again), x, weight, channel_axis=axis)
    else:
        assert_same_bits(values_of(again), y.values)
    on_the_cpu = bnext._core.apply_norm(
        x, count, mean, mean_low, m2, weight, None, 1e-5, axis, None
    )[1]
    assert saved.count == on_the_cpu.count == case.count
    for row in ROW._fields:
        assert_same_bits(values_of(getattr(saved, row)), getattr(on_the_cpu, row), row)
    sums = engine.backward_reduce(dy_there, x_there, saved, weight_there)
    assert all(type(each) is np.ndarray and each.dtype == np.float64 for each in sums)
    dx = engine.backward_apply(
        dy_there, x_there, saved, weight_there, *sums, count, None
    )  # fmt: skip
    gradients = dx, *engine.parameter_gradients(saved, weight_there, *sums)
    assert_are_gradients(list(map(values_of, gradients)), dy, x, weight, channel_axis=axis)


@pytest.mark.parametrize(("case", "out_case"), OUTS, ids=str)
def test_out(kernels, make, case, out_case, dtype, rng):
    """Also where it lies otherwise than x."""
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    whole, values = out_case.memory.allocate(x.shape, dtype)
    before = whole.copy()
    x_there, dy_there, out = make(x), make(dy), make(values)
    y, saved = bnext.batch_norm_forward(x_there, out=out)
    assert y is out
    assert_is_forward(values, x)
    assert bnext.normalize(x_there, saved.mean, saved.var, out=out) is out
    assert_is_forward(values, x)
    dx, dweight, dbias = bnext.batch_norm_backward(dy_there, x_there, saved, out=out)
    assert dx is out
    assert_are_gradients((values, dweight.values, dbias.values), dy, x)
    values[...] = np.nan
    assert_same_bits(whole, before)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(kernels, make, case, dtype):
    """As on the CPU, and without a launch."""
    x = np.empty(case.shape, dtype)
    weight = np.ones(case.channels, dtype)
    axis = {"channel_axis": case.channel_axis}
    y, expected = bnext.batch_norm_forward(x, weight, **axis)
    gradients = bnext.batch_norm_backward(x, x, expected, weight)
    x_there, weight_there = made(make, x, weight)
    y_there, saved = bnext.batch_norm_forward(x_there, weight_there, **axis)
    assert_same_bits(values_of(y_there), y)
    assert saved.count == expected.count
    for name in ROW._fields:
        assert_same_bits(values_of(getattr(saved, name)), getattr(expected, name), name)
    there = bnext.batch_norm_backward(x_there, x_there, saved, weight_there)
    for actual, value in zip(there, gradients, strict=True):
        assert_same_bits(values_of(actual), value)
    y = bnext.normalize(x_there, weight_there, weight_there, **axis)
    assert_same_bits(values_of(y), x)
    moments, on_the_cpu = bnext.moments(x_there, **axis), bnext.moments(x, **axis)
    assert moments.count == on_the_cpu.count
    assert_same_bits(values_of(moments.mean), on_the_cpu.mean)
    assert_same_bits(values_of(moments.m2), on_the_cpu.m2)
    assert_same_bits(values_of(moments.var), on_the_cpu.var)


@pytest.mark.parametrize("momentum", [0.1, 0.75, None])
@pytest.mark.parametrize("affine", [True, False])
def test_layer(kernels, make, dtype, rng, momentum, affine):
    """Training, evaluation, back to NumPy; beside a layer that stays on the CPU."""
    bn = bnext.BatchNorm2d(5, momentum=momentum, affine=affine, dtype=dtype)
    assert bn.to(make(np.empty(0))) is bn
    running = np.zeros(5), np.ones(5)
    for step in range(3):
        x, dy = rng.normal(step, 2, (2, 3, 5, 7, 9)).astype(dtype)
        y = bn(make(x))
        weight = bn.weight.values if affine else None
        assert_is_forward(values_of(y), x, weight)
        share = 1 / (step + 1) if momentum is None else momentum
        running = reference.update_running(running, reference.moments(x), share)
        for name, value in zip(("running_mean", "running_var"), running, strict=True):
            actual = values_of(getattr(bn, name))
            assert actual.dtype == dtype
            np.testing.assert_allclose(actual, value, rtol=0, atol=16 * np.finfo(dtype).eps)
        assert bn.num_batches_tracked == step + 1
        dx = bn.backward(make(dy))
        if affine:
            gradients = dx.values, bn.weight_grad.values, bn.bias_grad.values
            assert_are_gradients(gradients, dy, x, weight)
    before = {name: value.values.copy() for name, value in vars(bn).items() if type(value) is make}
    bn.eval()
    mean, var = bn.running_mean.values, bn.running_var.values
    assert_is_y(values_of(bn(make(x))), x, mean, var, weight)
    dx = bn.backward(make(dy))
    if affine:
        gradients = dx.values, bn.weight_grad.values, bn.bias_grad.values
        assert_are_constant_gradients(gradients, dy, x, mean, var, weight)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if name in before:
            assert_same_bits(getattr(bn, name).values, before[name], name)
    assert bn.to(x) is bn
    for name, value in before.items():
        assert type(getattr(bn, name)) is np.ndarray
        if not name.endswith("_grad"):
            assert_same_bits(getattr(bn, name), value, name)
    assert_is_y(bn(x), x, mean, var, weight)


def test_biased_variance_is_kept_where_asked_for(kernels, make, dtype, rng):
    bn = bnext.BatchNorm2d(5, dtype=dtype, estimator=bnext.DebiasedExponential(0.2, bessel=False))
    bn.to(make(np.empty(0)))
    x = rng.normal(3, 2, (2, 5, 7, 3)).astype(dtype)
    bn(make(x))
    rtol = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(values_of(bn.running_var), reference.moments(x).var, rtol=rtol)


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_layer(kernels, make, dtype, rng, affine):
    bn = bnext.BatchNorm2d(5, affine=affine, dtype=dtype)
    bn.running_mean[...], bn.running_var[...] = rng.normal(size=5), rng.uniform(0.5, 2, 5)
    if affine:
        bn.weight[...] = rng.normal(size=5)
    on_the_cpu = copy.deepcopy(bn).freeze()
    bn.to(make(np.empty(0))).freeze()
    x, dy = rng.normal(size=(2, 3, 5, 7, 9)).astype(dtype)
    y = bn(make(x))
    weight = on_the_cpu.weight
    assert_is_y(values_of(y), x, on_the_cpu.running_mean, on_the_cpu.running_var, weight)
    on_the_cpu(x)
    rtol = 16 * np.finfo(dtype).eps
    expected = on_the_cpu.backward(dy)
    np.testing.assert_allclose(values_of(bn.backward(make(dy))), expected, rtol=rtol)
    assert bn.weight_grad is None
    bn(make(x))
    with pytest.raises(ValueError, match=re.escape("dy: expected shape (3, 5, 7, 9), got (2,")):
        bn.backward(make(dy[:2]))
    with pytest.raises(TypeError, match=r"dy: expected .* got one"):
        bn.backward(dy)
    empty = make(np.empty((0, 5, 7, 9), dtype))
    bn(empty)
    assert bn.backward(empty).shape == empty.shape


def test_layer_with_16_bit_data(kernels, rng):
    bn = bnext.BatchNorm1d(5).to(Array(np.empty(0)))
    x = rng.normal(size=(19, 5)).astype(ml_dtypes.bfloat16)
    assert_is_rounded(values_of(bn(Array(x))), reference.forward(x), "y")
    assert values_of(bn.running_mean).dtype == np.float32


def test_empty_batches_are_counted_and_change_nothing(kernels, make):
    bn = bnext.BatchNorm1d(5).to(make(np.empty(0)))
    assert bn(make(np.empty((0, 5), np.float32))).shape == (0, 5)
    assert bn.num_batches_tracked == 1
    assert_same_bits(bn.running_mean.values, np.zeros(5, np.float32))
    assert_same_bits(bn.running_var.values, np.ones(5, np.float32))


def test_state_dicts_go_either_way(kernels, make, rng):
    here, there = bnext.BatchNorm1d(5), bnext.BatchNorm1d(5).to(make(np.empty(0)))
    for _ in range(2):
        there(make(rng.normal(3, 2, (19, 5)).astype(np.float32)))
    state = there.state_dict()
    assert here.load_state_dict(state) == ([], [])
    for name in ARRAYS:
        assert_same_bits(getattr(here, name), values_of(state[name]), name)
        assert state[name] is not getattr(there, name)
    assert here.num_batches_tracked == 2
    here.running_mean[...] = 7
    own = there.running_mean
    there.load_state_dict(here.state_dict())
    assert there.running_mean is own
    assert (own.values == 7).all()
    state = there.state_dict()
    there.reset_parameters()
    assert (own.values == 0).all()
    assert (state["running_mean"].values == 7).all()
    there.load_state_dict(state)
    assert (own.values == 7).all()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .* \(4,\) .* is \(5,\)"):
        there.load_state_dict(state | {"weight": make(np.ones(4, np.float32))})


def test_moments_merge_there(kernels, make, rng):
    parts = rng.normal(3, 2, (3, 17, 5))
    moments = [bnext.moments(make(part)) for part in parts]
    whole = sum(moments, start=bnext.Moments.empty(5))
    assert type(whole.mean) is make
    expected = reference.moments(np.concatenate(parts))
    assert whole.count == expected.count == 51
    np.testing.assert_allclose(whole.mean.values, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(whole.m2.values, expected.m2, rtol=1e-14)
    assert whole == sum(moments, start=bnext.Moments.empty(5))
    assert whole != moments[0]
    assert whole != bnext.moments(np.concatenate(parts))
    single = bnext.Moments(3, make(np.ones(5, np.float32)), make(np.ones(5, np.float32)))
    assert (single + moments[0]).mean.dtype == np.float64
    name = f"fake_{make.__name__.lower()}"
    text = rf"^other: expected moments in arrays of {name} on .*, got NumPy$"
    with pytest.raises(TypeError, match=text):
        whole.merge(bnext.moments(parts[0]))


def test_parameters_may_be_strided(kernels, make, rng):
    x = rng.normal(size=(19, 5)).astype(np.float32)
    weight = rng.normal(size=(5, 3)).astype(np.float32)[:, 1]
    y, _ = bnext.batch_norm_forward(make(x), make(weight))
    assert_is_forward(y.values, x, weight)


def test_forced_paths(kernels, rng):
    x = rng.normal(size=(19, 5)).astype(np.float32)
    known = {path for operation in kernels.operations() for path in kernels.paths(operation)}
    for path in sorted(known & set(kernels.paths("forward"))):
        with bnext.cuda._forced_path(path):
            y, _ = bnext.batch_norm_forward(Array(x))
            bnext.moments(Array(x))
        assert_is_forward(y.values, x)
    with pytest.raises(ValueError, match=r"^name: expected one of .*, got 'none'$"), \
            bnext.cuda._forced_path("none"):  # fmt: skip
        pass
    assert kernels.force_path(None) is None


def test_configuration(kernels):
    assert bnext.cuda.is_available()
    assert bnext.cuda.reason() == ""
    assert bnext.cuda.device_count() == kernels.device_count() > 0
    config = bnext.show_config(mode="dicts")["cuda"]
    names = [kernels.device_name(device) for device in range(kernels.device_count())]
    assert config == {
        "available": True, "reason": "", "devices": names, "architectures": kernels.architectures(),
        "synchronous": False, "reserved_multiprocessors": 0,
    }  # fmt: skip
