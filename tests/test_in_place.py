"""Calls in place (``out=x``): y over x, and a backward pass from y, against higher precision."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnext
from bnext import _core

from . import reference
from .activations import ACTIVATIONS, SLOPE
from .cases import CASES as LAYOUTS
from .cases import MEMORIES, MEMORIES_SHAPE, Case
from .compare import assert_same_bits
from .epilogues import CASES, DTYPES, both_passes, computed, drawn, is_16_bit
from .everywhere import FUSED, OF_ONE, assert_same_bits_everywhere
from .in_place import DATA, NAMES, FromOutput, InPlace, both_in_place, rounding
from .sixteen import name_of
from .test_epilogue_layers import layer_of
from .test_hypothesis import THOROUGH, environments, small_cases


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


def arrays_of(inputs):
    results = both_in_place(inputs)._asdict()
    return {what: results[what] for what in ("y", "dx", "dweight", "dbias")}


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@NAMES
@pytest.mark.parametrize(
    "case", [each for each in LAYOUTS if "many-chunks" in each.name or "rows" in each.name], ids=str
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
def test_same_bits_for_any_number_of_threads_and_any_schedule(rng, case, dtype, name):
    inputs = drawn(rng, case, dtype, name, False)
    assert_same_bits_everywhere(lambda: arrays_of(inputs), OF_ONE)


@NAMES
@DATA
def test_same_bits_on_every_instruction_set(rng, dtype, name):
    inputs = drawn(rng, CASES[3], dtype, name, False)
    assert_same_bits_everywhere(lambda: arrays_of(inputs), [(None, None, isa) for isa in FUSED])


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
    with bnext.use_isa(isa):
        results = both_in_place(inputs, over_dy)
        assert_same_bits(results.y, both_passes(inputs).y, "y")
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
