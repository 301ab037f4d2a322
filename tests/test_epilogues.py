"""An activation and a residual, in the same pass: against their definition, in every dtype."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest

import bnext

from . import activations, reference
from .activations import ACTIVATIONS, SLOPE, SMOOTH
from .array_libraries import (
    Producer,
    Small,
    as_jax,
    as_torch,
    from_jax,
    from_nothing,
    from_small,
    from_torch,
)
from .cases import MEMORIES, MEMORIES_SHAPE, Case
from .compare import assert_same_bits, assert_same_memory_order
from .conftest import AVAILABLE_ISAS
from .epilogues import CASES, DTYPES, Expected, both_passes, computed, drawn
from .everywhere import FUSED
from .numerical import numerical_gradient
from .optional import marked
from .sixteen import name_of

ALL = [*ACTIVATIONS, None]
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
NAMES = ("y", "dx", "dweight", "dbias", "dresidual")


def on_every_isa(call):
    """Results of `call` on each instruction set, by its name."""
    results = {}
    for isa in AVAILABLE_ISAS:
        with bnext.use_isa(isa):
            results[isa] = call()
    return results


def assert_all_same_bits(results, expected):
    for what, actual, other in zip(NAMES, results, expected, strict=False):
        if other is not None:
            assert_same_bits(actual, other, what)


@RESIDUAL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_definition(rng, case, name, dtype, residual):
    """On each instruction set; those with fused multiply-add have the same bits."""
    inputs = drawn(rng, case, dtype, name, residual)
    expected = Expected(inputs)
    results = on_every_isa(lambda: both_passes(inputs))
    for each in results.values():
        expected.assert_are_results(each)
        assert_same_memory_order(each.y, inputs.x)
        assert_same_memory_order(each.dx, inputs.x)
    for isa in FUSED[1:]:
        assert_all_same_bits(results[isa], results[FUSED[0]])


@RESIDUAL
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", CASES[1:4], ids=str)
def test_normalize_agrees_with_the_definition(rng, case, name, dtype, residual):
    parameters = computed(dtype)
    mean = rng.uniform(-2, 2, case.channels).astype(parameters)
    var = rng.uniform(0.25, 4, case.channels).astype(parameters)
    inputs = drawn(rng, case, dtype, name, residual, (mean, var))
    expected = Expected(inputs, (mean, var))

    def call():
        return bnext.normalize(
            inputs.x, mean, var, inputs.weight, inputs.bias, **inputs.options
        )  # fmt: skip

    for y in on_every_isa(call).values():
        expected.assert_is_y(y)


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=str)
def test_weight_and_bias_are_each_optional(rng, dtype, name, given):
    inputs = drawn(rng, CASES[0], dtype, name, True)
    inputs = inputs._replace(**{key: None for key in ("weight", "bias") if key not in given})
    z = reference.forward(inputs.x, inputs.weight, inputs.bias) + inputs.residual
    inputs = inputs._replace(dy=activations.without_kinks(inputs.dy, z, name))
    Expected(inputs).assert_are_results(both_passes(inputs))


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_the_derivatives(rng, name):
    """Of sum(y * dy), by central differences in float64, away from kinks."""
    inputs = drawn(rng, Case("few", (7, 2, 3)), np.float64, name, True)
    gradients = both_passes(inputs)[1:]
    places = {"x": 0, "weight": 1, "bias": 2, "residual": 3}

    def loss(what, at):
        of = inputs._replace(**{what: at})
        y, _ = bnext.batch_norm_forward(of.x, of.weight, of.bias, **of.options)
        return float((y * of.dy).sum())

    for what, place in places.items():
        expected = numerical_gradient(partial(loss, what), getattr(inputs, what))
        atol = 1e-7 * np.abs(expected).max()
        np.testing.assert_allclose(gradients[place], expected, rtol=0, atol=atol, err_msg=what)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=name_of)
@pytest.mark.parametrize("of_x", MEMORIES)
def test_arrays_may_lie_in_memory_in_different_orders(rng, name, dtype, of_x):
    """A residual and a dy in any order, and any `out`."""
    case = Case("mixed", MEMORIES_SHAPE, memory=MEMORIES[of_x])
    inputs = drawn(rng, case, dtype, name, True)
    expected = Expected(inputs)
    memories = list(MEMORIES.values())
    for k, memory in enumerate(memories):
        other = memories[(k + 5) % len(memories)]
        residual, dy = memory.place(inputs.residual), other.place(inputs.dy)
        moved = inputs._replace(residual=residual, dy=dy)
        expected.assert_are_results(both_passes(moved))
        out = memory.allocate(inputs.x.shape, dtype)[1]
        into = other.allocate(inputs.x.shape, dtype)[1]
        y, saved = bnext.batch_norm_forward(
            inputs.x, inputs.weight, inputs.bias, out=out, **moved.options
        )
        assert y is out
        x = other.place(inputs.x)  # other than where the flags were made
        gradients = bnext.batch_norm_backward(
            dy, x, saved, inputs.weight, out=into, **moved.again(saved)
        )
        assert gradients[0] is into
        expected.assert_are_results((y, *gradients))


@pytest.mark.parametrize("name", ["leaky_relu", "gelu", None])
def test_elements_of_a_residual_may_share_memory(rng, name):
    """With each other, or with x."""
    inputs = drawn(rng, Case("planes", MEMORIES_SHAPE), np.float32, name, True)
    row = np.broadcast_to(inputs.residual[:, :, :1], MEMORIES_SHAPE)
    windows = np.lib.stride_tricks.as_strided(inputs.dy, MEMORIES_SHAPE, (4, 4, 4, 4))
    for residual in (row, windows, inputs.x):
        z = reference.forward(inputs.x, inputs.weight, inputs.bias) + residual
        dy = activations.without_kinks(inputs.dy, z, name)
        moved = inputs._replace(residual=residual, dy=dy)
        Expected(moved).assert_are_results(both_passes(moved))


@pytest.mark.parametrize("name", ["relu", "tanh", None])
def test_a_residual_may_be_a_list(rng, name):
    inputs = drawn(rng, Case("few", (5, 3, 2)), np.float64, name, True)
    given = inputs._replace(residual=inputs.residual.tolist(), dy=inputs.dy.tolist())
    y, saved = bnext.batch_norm_forward(inputs.x, inputs.weight, inputs.bias, **given.options)
    again = {"residual": given.residual} if saved.reads_residual else {}
    gradients = bnext.batch_norm_backward(given.dy, inputs.x, saved, inputs.weight, **again)
    if name is None:
        assert gradients[3] is given.dy
        gradients = (*gradients[:3], inputs.dy)
    assert_all_same_bits((y, *gradients), both_passes(inputs))


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "hardswish", "gelu", None])
def test_empty_batches(empty_case, dtype, name, residual):
    case = empty_case
    x = np.empty(case.shape, dtype)
    options = {
        "channel_axis": case.channel_axis, "activation": name, "residual": x if residual else None,
    }  # fmt: skip
    y, saved = bnext.batch_norm_forward(x, **options)
    again = {"residual": x} if saved.reads_residual else {}
    dx, dweight, dbias, *dresidual = bnext.batch_norm_backward(x, x, saved, **again)
    assert y.shape == dx.shape == x.shape
    assert dweight.tolist() == dbias.tolist() == [0.0] * case.channels
    assert [each.shape for each in dresidual] == [x.shape] * residual
    one = np.ones(case.channels, dtype)
    assert bnext.normalize(x, one, one, **options).shape == x.shape


@pytest.mark.parametrize("name", [None, "relu", "leaky_relu", "silu"])
def test_inputs_are_left_alone(rng, name):
    inputs = drawn(rng, CASES[5], np.float32, name, True)
    before = [each.copy() for each in inputs[2:]]
    both_passes(inputs)
    for each, value in zip(inputs[2:], before, strict=True):
        assert_same_bits(each, value)


def test_what_is_saved_says_what_was_applied(rng):
    x = rng.normal(size=(5, 3))
    for name in ALL:
        for residual in (None, x):
            _, saved = bnext.batch_norm_forward(x, activation=name, residual=residual)
            assert saved.activation == name
            assert saved.residual is (residual is not None)
            assert saved.reads_residual is (residual is not None and name in SMOOTH)
    _, saved = bnext.batch_norm_forward(x)
    assert (saved.activation, saved.residual, saved.reads_residual) == (None, False, False)


def test_the_slope_of_leaky_relu_is_a_hundredth_by_default(rng):
    x = rng.normal(size=(7, 3))
    z, _ = bnext.batch_norm_forward(x)
    for options, slope in (({}, 0.01), ({"negative_slope": -SLOPE}, -SLOPE)):
        y, _ = bnext.batch_norm_forward(x, activation="leaky_relu", **options)
        assert_same_bits(y, np.where(z < 0, z * slope, z))


LIBRARIES = {
    "torch": (as_torch, from_torch),
    "jax": (as_jax, from_jax),
    "small": (Small, from_small),
    "producer": (Producer, from_nothing),
}


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", None])
@pytest.mark.parametrize("library", marked(LIBRARIES))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=name_of)
def test_arrays_of_other_libraries_give_the_bits_of_numpy_s(rng, dtype, library, name, residual):
    convert, back = LIBRARIES[library]
    inputs = drawn(rng, Case("NCHW-7x7", (5, 50, 7, 7)), dtype, name, residual)
    theirs = inputs._replace(
        **{
            key: convert(getattr(inputs, key))
            for key in ("x", "dy", "residual", "weight", "bias")
            if getattr(inputs, key) is not None
        }
    )
    y, saved = bnext.batch_norm_forward(theirs.x, theirs.weight, theirs.bias, **theirs.options)
    gradients = bnext.batch_norm_backward(
        theirs.dy, theirs.x, saved, theirs.weight, **theirs.again(saved)
    )
    if residual and name is None:
        assert gradients[3] is theirs.dy
        gradients = gradients[:3]
    else:
        assert len(gradients) == 3 + residual
    for actual, expected in zip((y, *gradients), both_passes(inputs), strict=False):
        assert_same_bits(np.asarray(back(actual)), expected)
