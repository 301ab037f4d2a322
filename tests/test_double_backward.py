"""Gradients of the backward pass: against their definition, in every dtype, layout and epilogue."""

from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations, reference, twice_reference
from .activations import ACTIVATIONS, SLOPE
from .cases import CASES, EMPTY, Case, named
from .compare import assert_same_bits, assert_same_memory_order
from .conftest import AVAILABLE_ISAS, SCHEDULES, THREADS, needs_openmp
from .epilogues import CASES as OF_EPILOGUES
from .epilogues import computed, is_16_bit
from .numerical import numerical_gradient
from .sixteen import name_of

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
ALL = [*ACTIVATIONS, None]
NAMES = bnext.SecondGradients._fields
FUSED = [isa for isa in AVAILABLE_ISAS if isa != "baseline"]

# In units of the dtype, at the largest magnitude among the terms of a channel's values. In float64
# the reference is as far from the truth as the package, with activations farther.
UNITS = {np.float32: 8.0, np.float64: 256.0, np.float16: 1.0, ml_dtypes.bfloat16: 1.0}


class Inputs(NamedTuple):
    case: Case
    name: str | None
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray | None
    ddx: np.ndarray | None
    ddweight: np.ndarray | None
    ddbias: np.ndarray | None
    ddresidual: np.ndarray | None

    def forward(self):
        return bnext.batch_norm_forward(
            self.x, self.weight, self.bias, channel_axis=self.case.channel_axis,
            residual=self.residual, activation=self.name, negative_slope=SLOPE,
        )[1]  # fmt: skip

    def twice(self, saved=None, **options):
        saved = self.forward() if saved is None else saved
        return bnext.batch_norm_double_backward(
            self.ddx, self.dy, self.x, saved, self.weight, ddweight=self.ddweight,
            ddbias=self.ddbias, ddresidual=self.ddresidual,
            residual=self.residual if saved.reads_residual else None, **options,
        )  # fmt: skip

    def expected(self, given=None):
        return twice_reference.double_backward(
            self.dy, self.x, self.weight, self.bias, self.residual, ddx=self.ddx,
            ddweight=self.ddweight, ddbias=self.ddbias, ddresidual=self.ddresidual,
            activation=self.name, channel_axis=self.case.channel_axis, given=given,
        )  # fmt: skip


def drawn(rng, case, dtype, name=None, residual=False, x=None, dy=None, ddx=None, given=None):
    parameters = computed(dtype)
    x = case.x(rng, dtype) if x is None else x
    dy = case.dy(rng, dtype) if dy is None else dy
    weight, bias = case.weight(rng, parameters), case.bias(rng, parameters)
    added = case.dy(rng, dtype) if residual else None
    batch = reference.moments(x, case.channel_axis)
    z = activations.pre_activation(
        x, added, *(given or (batch.mean, batch.var)), weight, bias, channel_axis=case.channel_axis
    )
    return Inputs(
        case, name, x, case.memory.place(activations.without_kinks(dy, z, name)), weight, bias,
        added, case.dy(rng, dtype) if ddx is None else ddx, case.weight(rng, parameters),
        case.bias(rng, parameters), case.dy(rng, dtype) if residual else None,
    )  # fmt: skip


def assert_are(actual, inputs, expected, units=1.0):
    dtype = inputs.x.dtype.type
    step = UNITS[dtype] * units * float(ml_dtypes.finfo(dtype).eps)
    curved = inputs.name in twice_reference.CURVED
    # Data, and so the terms, are of the size 1; what is left of them may be 0.
    terms = np.abs(expected.x).max(1) + np.abs(expected.dy).max(1) + 0.1
    for name in NAMES:
        result, right = getattr(actual, name), getattr(expected, name)
        if name in ("bias", "residual") and (
            not curved or (name == "residual" and inputs.residual is None)
        ):
            assert result is None
            continue
        if name in ("weight", "bias"):
            assert result.dtype == computed(dtype)
            n = inputs.case.count
            scale = terms + np.abs(right)
            allowed = 64 * n**0.5 * units * float(np.finfo(computed(dtype)).eps) * scale
        else:
            assert result.dtype == inputs.x.dtype
            assert_same_memory_order(result, inputs.x)
            result = reference.per_channel(result, inputs.case.channel_axis)
            scale = terms + np.abs(right).max(1)
            allowed = (step * scale)[:, None]
        share = np.abs(np.asarray(result, np.float64) - right) / allowed
        assert share.max() <= 1, f"{name}: {share.max():.3g} times the allowed error"


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", OF_EPILOGUES, ids=str)
def test_agrees_with_the_definition(rng, case, name, dtype, residual):
    """On each instruction set; those with fused multiply-add have the same bits."""
    inputs = drawn(rng, case, dtype, name, residual)
    expected = inputs.expected()
    results = {}
    for isa in AVAILABLE_ISAS:
        with bnext.use_isa(isa):
            results[isa] = inputs.twice()
        assert_are(results[isa], inputs, expected)
    for isa in FUSED[1:]:
        assert_all_same_bits(results[isa], results[FUSED[0]])


def assert_all_same_bits(results, others):
    for name, one, other in zip(NAMES, results, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same_bits(one, other, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout(rng, case, dtype):
    for name in (None, "silu"):
        inputs = drawn(rng, case, dtype, name)
        assert_are(inputs.twice(), inputs, inputs.expected(), 4.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("case", OF_EPILOGUES[:4], ids=str)
def test_given_statistics(rng, case, name, dtype):
    parameters = computed(dtype)
    mean = rng.uniform(-2, 2, case.channels).astype(parameters)
    var = rng.uniform(0.25, 4, case.channels).astype(parameters)
    inputs = drawn(rng, case, dtype, name, given=(mean, var))
    saved = bnext._core.normalize(
        x=inputs.x, mean=mean, var=var, weight=inputs.weight, bias=inputs.bias, eps=1e-5,
        channel_axis=case.channel_axis, out=None, epilogue=(None, name, SLOPE),
    )[1]  # fmt: skip
    assert_are(inputs.twice(saved), inputs, inputs.expected((mean, var)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ratio", [1e2, 1e4])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
@pytest.mark.parametrize("case", named("NC", "NCHW-7x7", "NHWC", "NCHW-many-chunks"), ids=str)
def test_means_large_beside_deviations(rng, case, name, ratio, dtype):
    """Of x, dy and ddx: no digits of their deviations are lost."""
    x = case.memory.place((rng.normal(size=case.shape) + ratio).astype(dtype))
    dy = case.memory.place((rng.normal(size=case.shape) + ratio).astype(dtype))
    ddx = case.memory.place((rng.normal(size=case.shape) - ratio).astype(dtype))
    inputs = drawn(rng, case, dtype, name, x=x, dy=dy if name is None else None, ddx=ddx)
    units = ratio if dtype == np.float64 else 1.0  # xhat is as inexact, here and there
    assert_are(inputs.twice(), inputs, inputs.expected(), units)


@needs_openmp
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", [None, "relu", "silu"])
@pytest.mark.parametrize(
    "case", named("NC", "NCHW-many-chunks", "NHWC-many-chunks", "NCHW-3x3-many-chunks"), ids=str
)
def test_threads_and_schedules_change_no_bit(rng, case, name, dtype, fixed_team, restore_threads):
    inputs = drawn(rng, case, dtype, name, name == "relu")
    first = inputs.twice()
    for threads in THREADS:
        bnext.set_num_threads(threads)
        for schedule in SCHEDULES:
            bnext._core.force_schedule(schedule)
            assert_all_same_bits(inputs.twice(), first)


@pytest.mark.parametrize("name", ALL)
def test_definition_beside_finite_differences(rng, name):
    """The reference, and results in float64."""
    case = Case("small", (4, 3, 2))
    inputs = drawn(rng, case, np.float64, name, True)

    def loss(**changed):
        now = inputs._replace(**changed)
        saved = now.forward()
        gradients = bnext.batch_norm_backward(
            now.dy, now.x, saved, now.weight,
            residual=now.residual if saved.reads_residual else None,
        )  # fmt: skip
        outer = inputs.ddx, inputs.ddweight, inputs.ddbias, inputs.ddresidual
        return sum((a * b).sum() for a, b in zip(gradients, outer, strict=True))

    expected, actual = inputs.expected(), inputs.twice()
    for field in NAMES:
        values = getattr(inputs, field)
        numerical = numerical_gradient(lambda at: loss(**{field: at}), values)  # noqa: B023
        if values.ndim > 1:
            numerical = reference.per_channel(numerical)
        right = getattr(expected, field)
        np.testing.assert_allclose(right, numerical, rtol=1e-5, atol=1e-5, err_msg=field)
        if (result := getattr(actual, field)) is None:
            assert not right.any()
            continue
        if result.ndim > 1:
            result = reference.per_channel(result)
        np.testing.assert_allclose(result, right, rtol=1e-11, atol=1e-11, err_msg=field)


@pytest.mark.parametrize("given", [(), ("ddx",), ("ddweight",), ("ddbias",), ("ddresidual",)])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_each_outer_gradient_alone(rng, name, given):
    inputs = drawn(rng, OF_EPILOGUES[0], np.float32, name, True)
    outer = dict.fromkeys(("ddx", "ddweight", "ddbias", "ddresidual"))
    outer |= {each: getattr(inputs, each) for each in given}
    inputs = inputs._replace(**outer)
    assert_are(inputs.twice(), inputs, inputs.expected())


WANTED = pytest.mark.parametrize("wanted", [(), *((name,) for name in NAMES), ("dy", "weight")])


def assert_wanted(some, every, wanted):
    for name in NAMES:
        if name in wanted:
            assert_same_bits(getattr(some, name), getattr(every, name))
        else:
            assert getattr(some, name) is None


@WANTED
def test_what_is_wanted(rng, wanted):
    inputs = drawn(rng, OF_EPILOGUES[0], np.float32, "silu", True)
    every, some = inputs.twice(), inputs.twice(wanted=wanted)
    assert_wanted(some, every, wanted)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_without_values(case):
    x = np.zeros(case.shape, np.float32)
    saved = bnext.batch_norm_forward(x, channel_axis=case.channel_axis)[1]
    result = bnext.batch_norm_double_backward(x, x, x, saved)
    assert result.dy.shape == result.x.shape == x.shape
    np.testing.assert_array_equal(result.weight, np.zeros(case.channels))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
@pytest.mark.parametrize("std", [1e-30, 1e30])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
def test_data_at_the_ends_of_the_range(rng, name, std, dtype):
    """In float32 rstd**2 would overflow or vanish. The gradients are made to be in range."""
    case = Case("extreme", (5, 3, 7))
    x = (rng.normal(size=case.shape) * std).astype(dtype)
    inputs = drawn(rng, case, dtype, name, x=x)._replace(
        ddx=(rng.normal(size=case.shape) * std).astype(dtype)
    )
    saved = bnext.batch_norm_forward(
        x, inputs.weight, inputs.bias, eps=0.0, activation=name, negative_slope=SLOPE
    )[1]
    actual = inputs.twice(saved)
    expected = twice_reference.double_backward(
        inputs.dy, x, inputs.weight, inputs.bias, ddx=inputs.ddx, ddweight=inputs.ddweight,
        ddbias=inputs.ddbias, activation=name, eps=0.0,
    )  # fmt: skip
    # By x it has the unit 1 / std, by dy none: each by itself.
    for field in ("dy", "x"):
        result = reference.per_channel(getattr(actual, field))
        right = getattr(expected, field)
        allowed = 16 * float(ml_dtypes.finfo(dtype).eps) * np.abs(right).max(1, keepdims=True)
        if is_16_bit(dtype):
            allowed = allowed / 16
        assert (np.abs(result - right) <= allowed).all()


def test_infinite_gradients_stop_at_a_slope_of_0(rng):
    x = np.array([[-1.0, 2.0], [3.0, -4.0], [0.5, 0.25]], np.float32)
    saved = bnext.batch_norm_forward(x, activation="relu")[1]
    dy = np.where(x < -0.5, np.inf, 1).astype(np.float32)
    result = bnext.batch_norm_double_backward(x, dy, x, saved)
    assert np.isfinite(result.dy).all()
    assert np.isfinite(result.x).all()


def test_errors(rng):
    x = rng.normal(size=(4, 3)).astype(np.float32)
    saved = bnext.batch_norm_forward(x)[1]
    twice = bnext.batch_norm_double_backward
    with pytest.raises(ValueError, match=r"^wanted: expected names among dy, x, .*, got 'dx'$"):
        twice(x, x, x, saved, wanted=["dx"])
    with pytest.raises(ValueError, match=r"^ddx: expected shape \(4, 3\), got \(3,\)"):
        twice(x[0], x, x, saved)
    with pytest.raises(TypeError, match=r"^ddx: expected dtype float32, got "):
        twice(x.astype(float), x, x, saved)
    with pytest.raises(TypeError, match=r"^dy: expected dtype float32, got "):
        twice(x, None, x, saved)
    with pytest.raises(TypeError, match=r"^ddweight: expected dtype float32, got "):
        twice(x, x, x, saved, ddweight=np.zeros(3))
    with pytest.raises(ValueError, match=r"^ddbias: expected shape \(3,\), got \(4,\)"):
        twice(x, x, x, saved, ddbias=x[:, 0])
    with pytest.raises(ValueError, match=r"^ddresidual: expected None, since the forward call"):
        twice(x, x, x, saved, ddresidual=x)
    with pytest.raises(ValueError, match=r"^saved: made from another x"):
        twice(x, x, x + 1, saved)
    y = x.copy()
    in_place = bnext.batch_norm_forward(y, out=y)[1]
    with pytest.raises(ValueError, match=r"^saved: expected of a call that left x as it was"):
        twice(x, x, y, in_place)
    weighted = bnext.batch_norm_forward(x, mask=np.array([True, True, True, False]))[1]
    with pytest.raises(ValueError, match=r"^saved: expected of a call in which all positions"):
        twice(x, x, x, weighted)
    residual = bnext.batch_norm_forward(x, residual=x.copy(), activation="silu")[1]
    with pytest.raises(ValueError, match=r"^residual: expected the forward call's"):
        twice(x, x, x, residual)
