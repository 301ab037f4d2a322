"""float16 and bfloat16: every operation is float32's or better, and its result rounded once."""

import numpy as np
import pytest

import bnext
from bnext import _core

from . import reference
from .cases import NHWC, Case, Memory
from .compare import assert_same_bits, assert_within
from .everywhere import assert_same_bits_whatever_runs
from .operations import everything
from .sixteen import TYPES, assert_is_rounded, is_nan, name_of

F4 = np.float32
CASES = [
    Case("7x7", (5, 37, 7, 7)),
    Case("7x7-257", (2, 257, 7, 7)),
    Case("NC-37", (131, 37)),
    Case("NC-one-beyond", (33, 17)),
    Case("NC-257", (67, 257)),
    Case("NC-33-of-more", (35, 33), memory=Memory(margins={1: (1, 3)})),
    Case("NHWC-50", (3, 7, 5, 50), channel_axis=-1),
    Case("stored-NHWC-48", (3, 48, 5, 7), memory=Memory(order=NHWC)),
    Case("planes-of-2", (301, 3, 2)),
    Case("planes-of-4", (19, 131, 2, 2)),
    Case("planes-of-9", (131, 17, 3, 3)),
    Case("planes-of-15-of-more", (35, 17, 15), memory=Memory(margins={1: (1, 2)})),
    Case("planes-of-4-off-by-2-bytes", (35, 17, 2, 2), memory=Memory(offset=2)),
    Case("planes-of-17", (40, 5, 17)),
    Case("planes-of-33", (40, 5, 33)),
    Case("planes-of-257", (3, 5, 257)),
    Case("off-by-2-bytes", (4, 5, 9, 11), memory=Memory(offset=2)),
    Case("off-by-2-bytes-NC", (33, 35), memory=Memory(offset=2)),
    Case("off-by-1-byte", (4, 5, 7, 7), memory=Memory(offset=1)),
    Case("inner-every-third", (3, 5, 29), memory=Memory(steps={2: 3})),
    Case("channels-backwards", (5, 17, 7, 7), memory=Memory(steps={1: -1})),
    Case("several-chunks", (5, 3, 61, 67)),
    Case("several-chunks-NC", (301, 50)),
]
LARGE = [
    Case("split", (3, 2, 157, 173)),
    Case("split-NHWC", (3, 61, 37, 50), channel_axis=-1),
    Case("channels", (8, 67, 19, 17)),
]

pytestmark = pytest.mark.parametrize("dtype", TYPES, ids=name_of)


def drawn(case, dtype, rng):
    """x, dy, weight and bias."""
    return (
        case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, F4), case.bias(rng, F4)
    )  # fmt: skip


def assert_are_moments(mean, m2, x, channel_axis):
    """As good as sums in float32 groups are (csrc/cpu/kernels/collect_stats.inl.hpp)."""
    expected = reference.moments(x, channel_axis)
    deviation = np.sqrt(expected.var)
    assert mean.dtype == m2.dtype == np.float64
    assert_within(mean, expected.mean, 2.0**-22 * deviation, "mean")
    assert_within(m2, expected.m2, 2.0**-20 * expected.m2, "m2")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_moments(rng, isa, case, dtype):
    x, _, weight, bias = drawn(case, dtype, rng)
    axis = case.channel_axis
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    assert y.dtype == saved.dtype == x.dtype
    assert_is_rounded(y, reference.forward(x, weight, bias, channel_axis=axis), "y", axis)
    assert_are_moments(saved.mean, saved.m2, x, axis)
    m = bnext.moments(x, channel_axis=axis)
    assert m.count == saved.count == case.count
    assert_same_bits(m.mean, saved.mean)
    assert_same_bits(m.m2, saved.m2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(rng, isa, case, dtype):
    x, dy, weight, _ = drawn(case, dtype, rng)
    axis = case.channel_axis
    _, saved = bnext.batch_norm_forward(x, weight, channel_axis=axis)
    out = case.poisoned(dtype)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight, out=out)
    assert dx is out
    assert dweight.dtype == dbias.dtype == F4
    expected = reference.backward(dy, x, weight, channel_axis=axis)
    assert_is_rounded(dx, expected.dx, "dx", axis)
    rows = reference.per_channel(dy, axis)
    xhat = reference.standardize(x, saved.mean, saved.var, channel_axis=axis)
    for actual, terms, exact, name in (
        (dbias, rows, expected.dbias, "dbias"),
        (dweight, rows * xhat, expected.dweight, "dweight"),
    ):
        assert_within(actual, exact, 2.0**-23 * np.abs(terms).sum(axis=1), name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_normalize_and_its_gradient(rng, isa, case, dtype):
    x, dy, weight, bias = drawn(case, dtype, rng)
    axis = case.channel_axis
    for statistics in (F4, np.float64):
        mean = rng.normal(size=case.channels).astype(statistics)
        var = rng.uniform(0.5, 2, case.channels).astype(statistics)
        out = case.poisoned(dtype)
        y = bnext.normalize(x, mean, var, weight, bias, channel_axis=axis, out=out)
        expected = reference.normalize(x, mean, var, weight, bias, channel_axis=axis)
        assert_is_rounded(y, expected, "y", axis)
    y, saved = _core.normalize(x, mean, var, weight, bias, 1e-5, axis, None)
    dx, _, _ = bnext.batch_norm_backward(dy, x, saved, weight)
    expected = reference.backward_constant(dy, x, mean, var, weight, channel_axis=axis)
    assert_is_rounded(dx, expected.dx, "dx", axis)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large(rng, runtime, case, dtype):
    x, dy, weight, bias = drawn(case, dtype, rng)
    axis = case.channel_axis
    y, saved = bnext.batch_norm_forward(x, weight, bias, channel_axis=axis)
    assert_is_rounded(y, reference.forward(x, weight, bias, channel_axis=axis), "y", axis)
    dx, _, _ = bnext.batch_norm_backward(dy, x, saved, weight)
    assert_is_rounded(dx, reference.backward(dy, x, weight, channel_axis=axis).dx, "dx", axis)


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[6], CASES[9], *LARGE], ids=str)
def test_phases(rng, isa, schedule, case, dtype):
    x, dy, weight, bias = drawn(case, dtype, rng)
    axis = {"channel_axis": case.channel_axis}
    y, saved = bnext.batch_norm_forward(x, weight, bias, **axis)
    m = bnext.moments(x, **axis)
    assert_same_bits(y, bnext.normalize(x, m.mean, m.var, weight, bias, **axis), "y")
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved, weight)
    sum_dy, sum_dy_xmu = _core.backward_reduce(dy, x, saved)
    assert_same_bits(dbias, sum_dy.astype(F4), "dbias")
    assert_same_bits(dweight, (sum_dy_xmu * saved.rstd).astype(F4), "dweight")
    out = _core.backward_apply(dy, x, saved, weight, sum_dy, sum_dy_xmu, saved.count, None)
    assert_same_bits(dx, out, "dx")


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_bits_are_the_same_whatever_runs(rng, case, dtype):
    x, dy, weight, bias = drawn(case, dtype, rng)
    options = {"channel_axis": case.channel_axis}
    assert_same_bits_whatever_runs(lambda: everything(x, dy, weight, bias, **options))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_layers(rng, isa, momentum, dtype):
    bn = bnext.BatchNorm2d(37, momentum=momentum)
    case = Case("", (5, 37, 7, 7))
    bn.weight[...], bn.bias[...] = case.weight(rng, F4), case.bias(rng, F4)
    running = np.zeros(37), np.ones(37)
    for step in range(3):
        x, dy = case.x(rng, dtype), case.dy(rng, dtype)
        y = bn(x)
        assert y.dtype == x.dtype
        assert_is_rounded(y, reference.forward(x, bn.weight, bn.bias), "y")
        dx = bn.backward(dy)
        expected = reference.backward(dy, x, bn.weight)
        assert_is_rounded(dx, expected.dx, "dx")
        assert bn.weight_grad.dtype == bn.bias_grad.dtype == F4
        np.testing.assert_allclose(bn.bias_grad, expected.dbias, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(bn.weight_grad, expected.dweight, rtol=1e-5, atol=1e-4)
        share = 1 / (step + 1) if momentum is None else momentum
        running = reference.update_running(running, reference.moments(x), share)
    assert bn.num_batches_tracked == 3
    for name, exact in zip(("running_mean", "running_var"), running, strict=True):
        assert getattr(bn, name).dtype == F4
        np.testing.assert_allclose(getattr(bn, name), exact, rtol=1e-6, atol=1e-6)

    state = bn.state_dict()
    assert {v.dtype for k, v in state.items() if k != "num_batches_tracked"} == {np.dtype(F4)}
    other = bnext.BatchNorm2d(37).eval()
    other.load_state_dict(state)
    bn.eval()
    y = bn(x)
    statistics = bn.running_mean, bn.running_var
    assert_is_rounded(y, reference.normalize(x, *statistics, bn.weight, bn.bias), "y")
    assert_same_bits(other(x), y)
    dx = bn.backward(dy)
    expected = reference.backward_constant(dy, x, *statistics, bn.weight)
    assert_is_rounded(dx, expected.dx, "dx")


@pytest.mark.usefixtures("isa")
def test_nan_stays_nan_whatever_its_bits(rng, dtype):
    """All bits set is the NaN that rounding to the upper half could carry over into a zero."""
    every_bit = np.array([0xFFFFFFFF, 0x7FFFFFFF, 0x7F800001], np.uint32).view(F4)
    x, dy, weight, bias = drawn(Case("planes", (3, 6, 7, 7)), dtype, rng)
    weight[:3] = every_bit
    bias[3:] = every_bit
    x_nan = np.array([0x7FFF, 0xFFFF, 0x7F81], np.uint16).view(dtype)
    y, saved = bnext.batch_norm_forward(x, weight, bias)
    assert is_nan(y).all()
    dx, _, _ = bnext.batch_norm_backward(dy, x, saved, weight)
    assert is_nan(dx[:, :3]).all()
    assert not is_nan(dx[:, 3:]).any()
    mean, var = every_bit.repeat(2), np.ones(6, F4)
    assert is_nan(bnext.normalize(x, mean, var)).all()
    x[0, :3, 0, 0] = x_nan
    y, _ = bnext.batch_norm_forward(x)
    assert is_nan(y[:, :3]).all()
    assert not is_nan(y[:, 3:]).any()


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_are_not_of_16_bits(name, dtype):
    x = np.ones((4, 3), dtype)
    text = f"^{name}: expected dtype float32, got {name_of(dtype)}$"
    with pytest.raises(TypeError, match=text):
        bnext.batch_norm_forward(x, **{name: np.ones(3, dtype)})
    with pytest.raises(TypeError, match=r"^mean: expected dtype float32 or float64, got "):
        bnext.normalize(x, np.ones(3, dtype), np.ones(3, F4))


def test_dtypes_are_not_mixed(dtype):
    x = np.arange(12, dtype=F4).reshape(4, 3).astype(dtype)
    y, saved = bnext.batch_norm_forward(x)
    for other in {np.dtype(t) for t in (F4, np.float64, *TYPES)} - {x.dtype}:
        text = f"expected dtype {x.dtype}, got {other}"
        with pytest.raises(TypeError, match=f"^out: {text}"):
            bnext.batch_norm_forward(x, out=np.empty(x.shape, other))
        with pytest.raises(TypeError, match=f"^dy: {text}"):
            bnext.batch_norm_backward(y.astype(other), x, saved)


def test_layers_of_float64_do_not_take_it(dtype):
    text = f"^x: expected dtype float64, got {name_of(dtype)} "
    with pytest.raises(TypeError, match=text):
        bnext.BatchNorm1d(3, dtype=np.float64)(np.ones((4, 3), dtype))
