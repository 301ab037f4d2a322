"""Calls in place (``out=x``): y over x, and a backward pass from y, against higher precision.

What a call in place computes is split in two. Its arithmetic is compared with the formula, in
float64 or longer, of the very y that it has stored. What the rounding of y costs is compared with
the gradients of x, and bounded as the docstring of `batch_norm_forward` says.
"""

import copy
import pickle
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnext
from bnext import _core

from . import reference, sixteen, tolerances
from .activations import ACTIVATIONS, SLOPE
from .cases import CASES as LAYOUTS
from .cases import MEMORIES, MEMORIES_SHAPE, Case
from .compare import assert_same_bits, assert_within, largest, units
from .conftest import AVAILABLE_ISAS, SCHEDULES, THREADS
from .epilogues import CASES, DTYPES, both_passes, computed, drawn, is_16_bit
from .sixteen import name_of
from .snapshots import layer_state, raises_exactly
from .test_epilogue_layers import layer_of
from .test_hypothesis import THOROUGH, environments, small_cases

NAMES = pytest.mark.parametrize("name", [None, "leaky_relu"])
DATA = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


class InPlace(NamedTuple):
    y: Any  # a copy
    saved: Any
    dx: Any
    dweight: Any
    dbias: Any


def laid_out_like(case, values):
    return case.memory.place(values)


def both_in_place(inputs, over_dy=True, **options):
    """Results of a forward call over x and a backward call over dy."""
    case = inputs.case
    x, dy = laid_out_like(case, inputs.x), laid_out_like(case, inputs.dy)
    y, saved = bnext.batch_norm_forward(
        x, inputs.weight, inputs.bias, out=x, **inputs.options, **options
    )
    assert y is x
    assert saved.in_place is True
    kept = y.copy()
    dx, dweight, dbias = bnext.batch_norm_backward(
        dy, y, saved, inputs.weight, out=dy if over_dy else None
    )
    assert (dx is dy) == over_dy
    assert_same_bits(y, kept, "y after the backward pass")
    return InPlace(kept, saved, dx.copy(), dweight, dbias)


class FromOutput:
    """The gradients that follow from a stored y, one row a channel, in `wide` precision."""

    def __init__(self, inputs, y, saved, constant=False, wide=np.longdouble):
        axis, channels = inputs.case.channel_axis, inputs.case.channels
        self.inputs, self.axis = inputs, axis

        def column(values, otherwise):
            return reference.column(values, channels, otherwise).astype(wide)

        self.weight, bias = column(inputs.weight, 1.0), column(inputs.bias, 0.0)
        rows = reference.per_channel(y, axis).astype(wide)
        below = rows < 0 if inputs.name == "leaky_relu" else np.zeros(rows.shape, bool)
        self.z = np.where(below, rows / wide(SLOPE), rows)
        positive = (rows > 0) | (inputs.name is None)
        self.g = reference.per_channel(inputs.dy, axis).astype(wide)
        self.g = self.g * np.where(positive, 1, wide(SLOPE))
        self.xhat = (self.z - bias) / self.weight
        self.rstd = saved.rstd.astype(wide)[:, None]
        n = max(rows.shape[1], 1)
        self.dbias = self.g.sum(axis=1, keepdims=True)
        self.dweight = (self.g * self.xhat).sum(axis=1, keepdims=True)
        scale = self.weight * self.rstd
        self.terms = [self.g, self.dbias / n, self.z / self.weight * self.dweight / n,
                      bias / self.weight * self.dweight / n]  # fmt: skip
        if constant:
            self.terms = [self.g]
            self.dx = scale * self.g
        else:
            self.dx = scale * (self.g - self.dbias / n - self.xhat * self.dweight / n)
        self.scale = np.abs(scale)[:, 0]

    def assert_are_gradients(self, results):
        dtype = self.inputs.x.dtype.type
        bits = computed(dtype)
        terms = np.maximum.reduce([largest(each) for each in self.terms])
        # As tolerances.py has it; one unit for z, which is rounded too, and one for g.
        allowed = (tolerances.DX[bits] + 2) * units((self.scale * terms).astype(float), bits)
        allowed = np.broadcast_to(allowed[:, None], self.dx.shape)
        expected = self.dx.astype(np.float64)
        if is_16_bit(dtype):
            # Sums in float32, of as many terms as are added before they go to float64.
            lost = 2.0**-22 * self.scale * np.abs(self.g).mean(axis=1) if self.g.size else 0.0
            lost = lost * (1 + largest(self.xhat) ** 2)
            allowed = allowed + np.asarray(lost, np.float64)[:, None]
            allowed = allowed + sixteen.units(np.abs(expected) + allowed, dtype) / 2
        tiny = np.finfo(bits).smallest_subnormal
        rows = reference.per_channel(results.dx, self.axis)
        assert_within(rows, expected, allowed + tiny, "dx")
        for what, terms in (("dweight", self.g * self.xhat), ("dbias", self.g)):
            # z - bias cancels: each of its terms counts.
            parts = np.abs(self.g) * (np.abs(self.z / self.weight) + np.abs(self.xhat))
            size = (np.abs(terms) if what == "dbias" else parts).sum(axis=1).astype(float)
            total = terms.sum(axis=1).astype(float)
            known = tolerances.PARAMETER_GRADIENT[bits] * units(np.abs(total), bits)
            known = known + size * (2.0**-22 if is_16_bit(dtype) else 2.0**-50)
            if bits is np.float32:
                known = known + units(np.abs(total), bits)
            assert_within(getattr(results, what), total, known + tiny, what)


@pytest.mark.usefixtures("isa")
@DATA
@NAMES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_formula(rng, case, name, dtype):
    """y has the bits of a call with an output of its own, and gradients follow from y."""
    inputs = drawn(rng, case, dtype, name, False)
    results = both_in_place(inputs)
    assert_same_bits(results.y, both_passes(inputs).y, "y")
    FromOutput(inputs, results.y, results.saved).assert_are_gradients(results)


@pytest.mark.usefixtures("runtime")
@NAMES
@DATA
def test_every_layout(rng, case, name, dtype):
    inputs = drawn(rng, case, dtype, name, False)
    results = both_in_place(inputs, over_dy=case.count % 2 == 0)
    assert_same_bits(results.y, both_passes(inputs).y, "y")
    FromOutput(inputs, results.y, results.saved).assert_are_gradients(results)


def rounding(dtype):
    return float(ml_dtypes.finfo(dtype).eps) / 2


@DATA
@NAMES
@pytest.mark.parametrize("ratio", [0, 1, 3, 16])
def test_what_the_rounding_of_y_costs(rng, name, dtype, ratio):
    """|xhat(y) - xhat(x)| <= u (2 |bias / weight| + 3 |xhat|), and 2 u |z / weight| below 0."""
    case = Case("planes", (9, 13, 5, 7))
    inputs = drawn(rng, case, dtype, name, False)
    inputs.bias[...] = ratio * inputs.weight * rng.choice([-1, 1], case.channels)
    results = both_in_place(inputs)
    exact = reference.moments(inputs.x)
    xhat = reference.standardize(inputs.x, exact.mean, exact.var)
    found = FromOutput(inputs, results.y, results.saved)
    u = rounding(dtype)
    bound = u * (2 * ratio + 3 * np.abs(xhat))
    if name == "leaky_relu":
        bound = bound + np.where(found.z < 0, 2 * u * (ratio + np.abs(xhat)), 0).astype(float)
    if is_16_bit(dtype):  # of the moments, and of products with the slope below 2^-14
        bound = bound + 2.0**-19 * (1 + np.abs(xhat)) + 2.0**-25 / SLOPE / 0.5
    else:
        bound = bound * (1 + 2.0**-10) + 16 * 2.0**-53 * (1 + np.abs(xhat))
    off = np.abs(found.xhat.astype(np.float64) - xhat)
    assert (off <= bound).all(), float((off / bound).max())
    if ratio:
        assert off.max() > u * ratio / 8, "the bound is of the size of the error"


@DATA
@NAMES
def test_gradients_are_those_of_x_but_for_that(rng, name, dtype):
    """Beside a call with an output of its own: the distance follows from the error of xhat."""
    inputs = drawn(rng, Case("planes", (9, 13, 5, 7)), dtype, name, False)
    results, apart = both_in_place(inputs), both_passes(inputs)
    u = rounding(dtype) * (2 * np.abs(inputs.bias / inputs.weight) + 25)
    sizes = np.abs(inputs.dy.astype(np.float64)).mean(axis=(0, 2, 3))
    scale = np.abs(inputs.weight) * results.saved.rstd
    off = np.abs(results.dx.astype(np.float64) - apart.dx.astype(np.float64)).max(axis=(0, 2, 3))
    assert (off <= 8 * u * scale * (1 + sizes)).all()
    assert (np.abs(results.dweight - apart.dweight) <= 2 * u * sizes * 9 * 5 * 7).all()


@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=str)
@NAMES
def test_weight_and_bias_are_each_optional(rng, dtype, given, name):
    inputs = drawn(rng, CASES[0], dtype, name, False)
    inputs = inputs._replace(**{key: None for key in ("weight", "bias") if key not in given})
    results = both_in_place(inputs)
    FromOutput(inputs, results.y, results.saved).assert_are_gradients(results)


@pytest.mark.usefixtures("isa")
@DATA
@NAMES
def test_given_statistics(rng, name, dtype):
    parameters = computed(dtype)
    case = CASES[0]
    mean = rng.uniform(-1, 1, 5).astype(parameters)
    var = rng.uniform(0.5, 2, 5).astype(parameters)
    inputs = drawn(rng, case, dtype, name, False, (mean, var))
    bn = layer_of(inputs, in_place=True).eval()
    bn.running_mean[...], bn.running_var[...] = mean, var
    y = bn(inputs.x.copy())
    saved = bn._latest[None][1]
    dx = bn.backward(inputs.dy)
    results = InPlace(y, saved, dx, bn.weight_grad, bn.bias_grad)
    assert_same_bits(y, bnext.normalize(inputs.x, mean, var, inputs.weight, inputs.bias,
                                        **inputs.options))  # fmt: skip
    FromOutput(inputs, y, saved, constant=True).assert_are_gradients(results)


def test_the_weight_of_the_forward_call_counts(rng):
    """An optimizer may have changed the parameters; the scale is of the weight that is given."""
    inputs = drawn(rng, CASES[0], np.float64, "leaky_relu", False)
    expected = both_in_place(inputs)
    x, weight, bias = inputs.x.copy(), inputs.weight.copy(), inputs.bias.copy()
    y, saved = bnext.batch_norm_forward(x, weight, bias, out=x, **inputs.options)
    weight[...] = 0
    bias[...] = np.nan
    dx, dweight, dbias = bnext.batch_norm_backward(inputs.dy, y, saved, 2 * inputs.weight)
    np.testing.assert_allclose(dx, 2 * expected.dx, rtol=1e-12)
    assert_same_bits(dweight, expected.dweight)
    assert_same_bits(dbias, expected.dbias)


@pytest.mark.usefixtures("isa")
@NAMES
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
def test_values_at_the_ends_of_the_range(rng, name, dtype):
    """Weights near 10^37 and 10^-37, tiny and large gradients: finite, and as of the formula."""
    case = Case("ends", (33, 6, 5))
    inputs = drawn(rng, case, dtype, name, False)
    inputs.weight[...] = [1e-37, 1e-30, 1e37, 1, 1, -1e-20]
    inputs.bias[...] = inputs.weight * [0.5, 0, -0.5, 1, 1, 0]
    factors = np.array([1, 1, 1, 1e-37, 1e36, 1e18]).reshape(1, 6, 1)
    dy = (inputs.dy.astype(np.float64) * factors).astype(dtype)
    inputs = inputs._replace(dy=dy)
    results = both_in_place(inputs)
    found = FromOutput(inputs, results.y, results.saved)
    rows = reference.per_channel(results.dx).astype(np.float64)
    expected = found.dx.astype(np.float64)
    size = np.abs(expected).max(axis=1, keepdims=True)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    limit = (rounding(dtype) * 4 + 1e-5) * size + tiny
    assert (np.abs(rows - expected) <= limit).all()
    dweight = (found.g * found.xhat).sum(axis=1).astype(np.float64)
    np.testing.assert_allclose(results.dweight, dweight, rtol=1e-3)


def test_a_channel_without_variance(rng):
    """Where eps is 0 as well, y is the bias, and dx is 0."""
    x = rng.normal(size=(6, 3))
    x[:, 1] = 4.0
    y, saved = bnext.batch_norm_forward(x, np.full(3, 2.0), np.full(3, 0.5), eps=0.0, out=x)
    assert (y[:, 1] == 0.5).all()
    dx, dweight, dbias = bnext.batch_norm_backward(rng.normal(size=(6, 3)), y, saved, np.ones(3))
    assert (dx[:, 1] == 0).all()
    assert dweight[1] == 0
    assert np.isfinite(dx).all()
    assert np.isfinite(dbias).all()


def test_nan_poisons_its_channel_alone(rng):
    for name in (None, "leaky_relu"):
        inputs = drawn(rng, CASES[0], np.float32, name, False)
        inputs.x[0, 2, 3, 3] = np.nan
        results = both_in_place(inputs)
        bad = np.isnan(results.dx).any(axis=(0, 2, 3))
        assert bad.tolist() == [False, False, True, False, False]


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@NAMES
@pytest.mark.parametrize(
    "case", [each for each in LAYOUTS if "many-chunks" in each.name or "rows" in each.name], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
def test_same_bits_for_any_number_of_threads_and_any_schedule(rng, case, dtype, name):
    inputs = drawn(rng, case, dtype, name, False)
    bnext.set_num_threads(1)
    expected = both_in_place(inputs)
    try:
        for k, schedule in enumerate((None, *SCHEDULES)):
            _core.force_schedule(schedule)
            for threads in THREADS[k % 2 :: 2]:
                bnext.set_num_threads(threads)
                for actual, other in zip(both_in_place(inputs), expected, strict=True):
                    if isinstance(actual, np.ndarray) and actual.shape:
                        assert_same_bits(actual, other)
    finally:
        _core.force_schedule(None)


@NAMES
@DATA
def test_same_bits_on_every_instruction_set(rng, dtype, name):
    inputs = drawn(rng, CASES[3], dtype, name, False)
    results = []
    for isa in AVAILABLE_ISAS:
        if isa != "baseline":
            with bnext.use_isa(isa):
                results.append(both_in_place(inputs))
    for each in results[1:]:
        for what in ("y", "dx", "dweight", "dbias"):
            assert_same_bits(getattr(each, what), getattr(results[0], what), what)


@pytest.mark.usefixtures("restore_threads")
@THOROUGH
@given(
    case=small_cases(),
    environment=environments(),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from([None, "leaky_relu"]),
    over_dy=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_calls(case, environment, dtype, name, over_dy, seed):
    inputs = drawn(np.random.default_rng(seed), case, dtype, name, False)
    isa, threads, schedule = environment
    bnext.set_num_threads(threads)
    _core.force_schedule(schedule)
    try:
        with bnext.use_isa(isa):
            results = both_in_place(inputs, over_dy)
            assert_same_bits(results.y, both_passes(inputs).y, "y")
    finally:
        _core.force_schedule(None)
    FromOutput(inputs, results.y, results.saved).assert_are_gradients(results)


@NAMES
@pytest.mark.parametrize("of_x", MEMORIES)
def test_arrays_may_lie_in_memory_in_different_orders(rng, of_x, name):
    inputs = drawn(rng, Case("mixed", MEMORIES_SHAPE), np.float32, name, False)
    expected = both_in_place(inputs)
    for memory in MEMORIES.values():
        x, dy = MEMORIES[of_x].place(inputs.x), memory.place(inputs.dy)
        y, saved = bnext.batch_norm_forward(x, inputs.weight, inputs.bias, out=x, **inputs.options)
        assert_same_bits(y, expected.y)
        dx, *_ = bnext.batch_norm_backward(dy, y, saved, inputs.weight, out=dy)
        assert_same_bits(dx, expected.dx)


def test_neighbours_are_left_alone(rng):
    """Of a slice of a larger array, around which nothing is written."""
    whole = rng.normal(size=(6, 7, 5, 9)).astype(np.float32)
    before = whole.copy()
    x = whole[1:-1, 2:5, :, 1:-1]
    bnext.batch_norm_forward(x, out=x)
    mask = np.zeros(whole.shape, bool)
    mask[1:-1, 2:5, :, 1:-1] = True
    assert_same_bits(whole[~mask], before[~mask])
    assert not np.array_equal(whole[mask], before[mask])


def test_empty_batches(empty_case, dtype):
    x = np.empty(empty_case.shape, dtype)
    axis = empty_case.channel_axis
    y, saved = bnext.batch_norm_forward(x, out=x, channel_axis=axis)
    assert saved.in_place
    dx, dweight, dbias = bnext.batch_norm_backward(y, y, saved)
    assert dx.shape == x.shape
    assert dweight.tolist() == dbias.tolist() == [0.0] * empty_case.channels


def test_inference_in_place_takes_every_activation(rng):
    """`normalize` has no backward pass."""
    for name in [*ACTIVATIONS, None]:
        for residual in (False, True):
            inputs = drawn(rng, CASES[1], np.float32, name, residual)
            mean, var = rng.normal(size=19), rng.uniform(1, 2, 19)
            arguments = (mean, var, np.zeros(19, np.float32), inputs.bias)
            expected = bnext.normalize(inputs.x, *arguments, **inputs.options)
            x = inputs.x.copy()
            assert bnext.normalize(x, *arguments, out=x, **inputs.options) is x
            assert_same_bits(x, expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", ["relu", "gelu", "leaky_relu"])
def test_dx_over_dy_of_any_call(rng, name, residual):
    inputs = drawn(rng, CASES[1], np.float32, name, residual)
    expected = both_passes(inputs)
    _, saved = bnext.batch_norm_forward(inputs.x, inputs.weight, inputs.bias, **inputs.options)
    dy = inputs.dy.copy()
    dx, *others = bnext.batch_norm_backward(
        dy, inputs.x, saved, inputs.weight, out=dy, **inputs.again(saved)
    )
    assert dx is dy
    for actual, other in zip((dx, *others), expected[1:], strict=False):
        assert_same_bits(actual, other)


# --- errors ---------------------------------------------------------------------------------------

SINCE = "in place (out is x), since the backward pass has y alone"
ONE_TO_ONE = f"activation: expected None, or leaky_relu with a negative_slope above 0, {SINCE}, got"


@pytest.mark.parametrize("name", [each for each in ACTIVATIONS if each != "leaky_relu"])
def test_activations_that_are_not_invertible_are_refused(rng, name):
    x = rng.normal(size=(5, 3))
    text = f"{ONE_TO_ONE} {name}"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, activation=name, out=x)
    with raises_exactly(ValueError, text, {}):
        bnext.BatchNorm1d(3, activation=name, in_place=True)
    bn = bnext.BatchNorm1d(3, dtype=np.float64, in_place=True)
    bn.activation = name
    for training in (True, False):
        bn.train(training)
        with raises_exactly(ValueError, text, lambda: {"x": x} | layer_state(bn)):
            bn(x)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_slopes_that_are_not_above_0_are_refused(rng, slope):
    x = rng.normal(size=(5, 3))
    options = {"activation": "leaky_relu", "negative_slope": slope}
    text = f"{ONE_TO_ONE} leaky_relu with {slope}"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, out=x, **options)
    with raises_exactly(ValueError, text, {}):
        bnext.BatchNorm1d(3, in_place=True, **options)


def test_slopes_that_lose_digits_are_refused(rng):
    x = rng.normal(size=(5, 3)).astype(np.float16)
    text = f"negative_slope: expected at least 6.103515625e-05 for float16 {SINCE}, got 1e-05"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, out=x, activation="leaky_relu", negative_slope=1e-5)


def test_a_residual_is_refused(rng):
    x, r = rng.normal(size=(2, 5, 3))
    text = f"residual: expected None {SINCE}, got an array"
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, out=x, residual=r)


LIMITS = {
    np.float32: (4096.0, "1.1754943508222875e-38"),
    np.float64: (67108864.0, "2.2250738585072014e-308"),
    np.float16: (32.0, "6.103515625e-05"),
    ml_dtypes.bfloat16: (16.0, "1.1754943508222875e-38"),
}


@DATA
@pytest.mark.parametrize("weight", ["0", "below", "subnormal", "nan", "inf"])
def test_weights_that_lose_x_are_refused(rng, dtype, weight):
    most, least = LIMITS[dtype]
    parameters = computed(dtype)
    x = rng.normal(size=(5, 3)).astype(dtype)
    values, bias = np.ones(3, parameters), np.zeros(3, parameters)
    bias[1] = 0 if weight in ("subnormal", "nan", "inf") else 2.0
    below = 2.0 / most * (1 - 2.0**-10)
    values[1] = {"below": below, "subnormal": float(least) * 0.99}.get(weight) or float(weight)
    got = f"got {float(values[1])} beside a bias of {float(bias[1])} in channel 1"
    text = (
        f"weight: expected magnitudes of at least |bias| / {most} and of {least} for "
        f"{name_of(dtype)} {SINCE}, {got}"
    )
    with raises_exactly(ValueError, text, {"x": x}):
        bnext.batch_norm_forward(x, values, bias, out=x)
    assert bnext.batch_norm_forward(x, values, bias)[0].shape == x.shape
    values[1] = -2.0 / most if bias[1] else float(least)
    assert bnext.batch_norm_forward(x, values, bias, out=x)[1].in_place


def test_what_the_backward_pass_is_given(rng):
    """y, unchanged: as of any call x."""
    x = rng.normal(size=(7, 3))
    before = x.copy()
    y, saved = bnext.batch_norm_forward(x, out=x)
    dy = rng.normal(size=x.shape)
    text = (
        "saved: made from another y than is given in place of x, or it was changed since (their "
        "elements differ)"
    )
    for changed in (before, y + 1):
        with raises_exactly(ValueError, text, {"dy": dy}):
            bnext.batch_norm_backward(dy, changed, saved, out=dy)
    text = "saved: expected of a call that left x as it was, got of one in place"
    with raises_exactly(ValueError, text, {"y": y}):
        bnext.recompute(y, saved)
    with raises_exactly(ValueError, f"{text}, whose y is kept anyway", {}):
        bnext.Recomputed(y, saved)
    with raises_exactly(
        ValueError, "out: expected memory of its own, got an array that overlaps x", {"y": y}
    ):
        bnext.batch_norm_backward(dy, y, saved, out=y)


def test_outputs_that_overlap_inputs_otherwise_are_refused(rng):
    memory = rng.normal(size=(9, 4))
    x, dy = memory[:-1], rng.normal(size=(8, 4))
    text = "out: expected memory of its own, got an array that overlaps x"
    for out in (memory[1:], x[::-1], x[:, ::-1]):
        with raises_exactly(ValueError, text, {"memory": memory}):
            bnext.batch_norm_forward(x, out=out)
        with raises_exactly(ValueError, text, {"memory": memory}):
            bnext.normalize(x, np.zeros(4), np.ones(4), out=out)
    _, saved = bnext.batch_norm_forward(x)
    text = "out: expected memory of its own, got an array that overlaps dy"
    with raises_exactly(ValueError, text, {"dy": dy}):
        bnext.batch_norm_backward(dy, x, saved, out=dy[::-1])
    _, saved = bnext.batch_norm_forward(x, residual=dy)
    text = "out: expected memory of its own, got dy, which is dresidual as well"
    with raises_exactly(ValueError, text, {"dy": dy}):
        bnext.batch_norm_backward(dy, x, saved, out=dy)
    x = x.copy()
    x.flags.writeable = False
    with raises_exactly(
        ValueError, "out: expected a writeable array, got a read-only one", {"x": x}
    ):
        bnext.batch_norm_forward(x, out=x)


# --- layers ---------------------------------------------------------------------------------------


@DATA
@NAMES
def test_a_step_of_a_layer(rng, name, dtype):
    inputs = drawn(rng, CASES[0], dtype, name, False)
    expected = both_in_place(inputs)
    by_argument, by_out = layer_of(inputs, in_place=True), layer_of(inputs)
    for bn in (by_argument, by_out):
        x = inputs.x.copy()
        y = bn(x) if bn is by_argument else bn(x, out=x)
        assert y is x
        assert_same_bits(y, expected.y)
        dy = inputs.dy.copy()
        assert bn.backward(dy, out=dy) is dy
        assert_same_bits(dy, expected.dx)
        assert_same_bits(bn.weight_grad, expected.dweight)
        assert_same_bits(bn.bias_grad, expected.dbias)
    plain = layer_of(inputs)
    plain(inputs.x)
    assert_same_bits(by_argument.running_mean, plain.running_mean)
    assert_same_bits(by_argument.running_var, plain.running_var)


def test_an_output_of_its_own_may_be_given(rng):
    inputs = drawn(rng, CASES[0], np.float32, None, False)
    bn = layer_of(inputs, in_place=True)
    before, out = inputs.x.copy(), np.empty_like(inputs.x)
    assert bn(inputs.x, out=out) is out
    assert_same_bits(inputs.x, before)
    assert_same_bits(bn.backward(inputs.dy), both_passes(inputs).dx)


@pytest.mark.parametrize("trains", [True, False])
@NAMES
def test_frozen_layers(rng, name, trains):
    inputs = drawn(rng, CASES[0], np.float32, name, False)
    bn, other = layer_of(inputs, in_place=True), layer_of(inputs)
    for each in (bn, other):
        each.running_mean += 0.5
        each.freeze(affine=not trains)
    x = inputs.x.copy()
    assert bn(x) is x
    assert_same_bits(x, other(inputs.x))
    assert_same_bits(bn.backward(inputs.dy), other.backward(inputs.dy))
    if trains:
        u = rounding(np.float32) * (2 * np.abs(inputs.bias / inputs.weight) + 25)
        size = np.abs(inputs.dy).sum(axis=(0, 2, 3))
        assert (np.abs(bn.weight_grad - other.weight_grad) <= u * size).all()
        np.testing.assert_allclose(bn.bias_grad, other.bias_grad, rtol=1e-6)
    else:
        assert bn.weight_grad is None


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
@NAMES
def test_copies(rng, copied, name):
    inputs = drawn(rng, CASES[0], np.float32, name, False)
    expected = both_in_place(inputs)
    bn = copied(layer_of(inputs, in_place=True))
    assert bn.in_place is True
    x = inputs.x.copy()
    assert bn(x) is x
    x = inputs.x.copy()
    y, saved = bnext.batch_norm_forward(x, inputs.weight, inputs.bias, out=x, **inputs.options)
    other = copied(saved)
    assert other.in_place is True
    assert_same_bits(bnext.batch_norm_backward(inputs.dy, y, other, inputs.weight)[0], expected.dx)


def test_layers_from_before(rng):
    bn = bnext.BatchNorm1d(3)
    state = {key: value for key, value in bn.__getstate__().items() if key != "in_place"}
    other = bnext.BatchNorm1d.__new__(bnext.BatchNorm1d)
    other.__setstate__(state)
    x = rng.normal(size=(5, 3)).astype(np.float32)
    assert other(x) is not x
    assert other.in_place is False


def test_repr():
    assert "in_place" not in repr(bnext.BatchNorm1d(3))
    assert repr(bnext.BatchNorm1d(3, in_place=True)).endswith(
        "track_running_stats=True, in_place=True)"
    )


def test_what_was_saved_says_so(rng):
    x = rng.normal(size=(5, 3))
    assert bnext.batch_norm_forward(x)[1].in_place is False
    assert bnext.batch_norm_forward(x, activation="relu")[1].in_place is False
    assert bnext.batch_norm_forward(x, out=np.empty_like(x))[1].in_place is False
    _, saved = bnext.batch_norm_forward(x, out=x)
    assert (saved.in_place, saved.activation, saved.residual) == (True, None, False)


# --- groups ---------------------------------------------------------------------------------------


@NAMES
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=name_of)
def test_members_of_a_group(rng, name, dtype):
    """As the whole batch; also beside members that are not in place, since sums are the same."""
    inputs = drawn(rng, Case("shards", (29, 5, 3)), dtype, name, False)
    whole = both_passes(inputs)
    group = bnext.sync.ThreadGroup(3, timeout=30)
    shards = [slice(0, 3), slice(3, 17), slice(17, None)]

    def member(rank, part):
        x, dy = inputs.x[part].copy(), inputs.dy[part].copy()
        in_place = rank != 1
        y, saved = bnext.batch_norm_forward(
            x, inputs.weight, inputs.bias, group=group, out=x if in_place else None,
            **inputs.options,
        )  # fmt: skip
        assert saved.in_place is in_place
        assert (y is x) == in_place
        return bnext.batch_norm_backward(
            dy, x, saved, inputs.weight, parameter_gradients="total", out=dy
        )

    results = group.run(member, shards)
    close = {"rtol": 0, "atol": 2e-12 if dtype is np.float64 else 2e-5}
    np.testing.assert_allclose(np.concatenate([dx for dx, *_ in results]), whole.dx, **close)
    for _, dweight, dbias in results:
        np.testing.assert_allclose(dweight, whole.dweight, **close)
        np.testing.assert_allclose(dbias, whole.dbias, **close)


def test_a_member_that_is_refused_stops_the_others(rng):
    """Before anything is written."""
    x = rng.normal(size=(8, 3))
    before = x.copy()
    group = bnext.sync.ThreadGroup(2, timeout=30)

    def member(rank, shard):
        name = "relu" if rank == 0 else None
        bnext.batch_norm_forward(shard, group=group, activation=name, out=shard)

    with pytest.raises((ValueError, bnext.sync.GroupError), match=r"activation: expected None, or"):
        group.run(member, [x[:4], x[4:]])
    assert_same_bits(x, before)


def test_micro_batches(rng):
    data = rng.normal(size=(3, 6, 4)).astype(np.float32)
    gradients = []
    for in_place in (True, False):
        bn = bnext.BatchNorm1d(4, activation="leaky_relu", in_place=in_place)

        def step(x, bn=bn):
            y = bn(x.copy())
            return bn.backward(np.cos(y)), bn.weight_grad

        with bnext.micro_batches([bn]) as union:
            gradients.append(list(union.run(step, list(data))))
    for (dx, dweight), (other_dx, other_dweight) in zip(*gradients, strict=True):
        np.testing.assert_allclose(dx, other_dx, rtol=0, atol=1e-5)
        np.testing.assert_allclose(dweight, other_dweight, rtol=0, atol=1e-5)


def test_arrays_of_other_libraries(rng):
    torch = pytest.importorskip("torch")
    inputs = drawn(rng, CASES[0], np.float32, "leaky_relu", False)
    expected = both_in_place(inputs)
    x, dy = torch.tensor(inputs.x), torch.tensor(inputs.dy)
    version = x._version
    y, saved = bnext.batch_norm_forward(x, inputs.weight, inputs.bias, out=x, **inputs.options)
    assert y is x
    assert x._version > version
    assert_same_bits(x.numpy(), expected.y)
    dx, *_ = bnext.batch_norm_backward(dy, x, saved, inputs.weight, out=dy)
    assert dx is dy
    assert_same_bits(dy.numpy(), expected.dx)
