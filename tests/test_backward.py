"""batch_norm_backward: against the definition, finite differences and what must sum to zero."""

import numpy as np
import pytest

import bnext

from . import reference
from .cases import FEW, MEMORIES, MEMORIES_SHAPE
from .compare import (
    assert_are_gradients,
    assert_is_sum,
    assert_same_bits,
    assert_same_memory_order,
)
from .numerical import numerical_gradient
from .tolerances import DX, FINITE_DIFFERENCE

pytestmark = pytest.mark.usefixtures("runtime")


def test_agrees_with_the_definition(rng, case, dtype):
    x, dy, weight = case.x(rng, dtype), case.dy(rng, dtype), case.weight(rng, dtype)
    x_before, dy_before = x.copy(), dy.copy()
    _, saved = bnext.batch_norm_forward(x, weight, channel_axis=case.channel_axis)
    fresh = bnext.batch_norm_backward(dy, x, saved, weight)
    assert_same_memory_order(fresh[0], x)
    assert_are_gradients(fresh, dy, x, weight, channel_axis=case.channel_axis)

    out = case.poisoned(dtype)
    gradients = bnext.batch_norm_backward(dy, x, saved, weight, out=out)
    assert gradients[0] is out
    for actual, expected in zip(gradients, fresh, strict=True):
        assert_same_bits(actual, expected)
    assert_same_bits(x, x_before, "x")
    assert_same_bits(dy, dy_before, "dy")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_weight_is_optional(rng, case, dtype):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    _, saved = bnext.batch_norm_forward(x)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x)


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 100])
def test_eps_is_the_one_of_the_forward_pass(rng, case, dtype, eps):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, eps=eps)
    assert_are_gradients(bnext.batch_norm_backward(dy, x, saved), dy, x, eps=eps)


@pytest.mark.parametrize("of_x", MEMORIES)
def test_dy_may_lie_in_memory_otherwise_than_x(rng, dtype, of_x):
    shape = MEMORIES_SHAPE
    x = MEMORIES[of_x].place(rng.normal(size=shape).astype(dtype))
    weight = rng.normal(size=shape[1]).astype(dtype)
    _, saved = bnext.batch_norm_forward(x, weight)
    for memory in MEMORIES.values():
        dy = memory.place(rng.normal(size=shape).astype(dtype))
        gradients = bnext.batch_norm_backward(dy, x, saved, weight)
        assert_same_memory_order(gradients[0], x)
        assert_are_gradients(gradients, dy, x, weight)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_gradient_is_orthogonal_to_what_is_normalized_away(rng, case, dtype):
    """dx has no component along 1 nor, without eps, along xhat: y does not depend on either."""
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    _, saved = bnext.batch_norm_forward(x, eps=0.0)
    dx, _, _ = bnext.batch_norm_backward(dy, x, saved)
    xhat = reference.standardize(x, saved.mean, saved.var, eps=0.0)
    rows = reference.per_channel(dx)
    # Each element carries an error of its own of DX units; of n of them the errors add up.
    allowed = DX[dtype] * np.spacing(np.abs(rows).max(axis=1).astype(dtype)) * case.count
    assert (np.abs(rows.sum(axis=1)) <= allowed).all()
    assert (np.abs((rows * xhat).sum(axis=1)) <= allowed * np.abs(xhat).max(axis=1)).all()


@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 3), 1), ((2, 4, 3), 1), ((2, 3, 2, 2), 1), ((2, 3, 2, 3), -1)]
)
@pytest.mark.parametrize("argument", ["x", "weight", "bias"])
def test_agrees_with_finite_differences(rng, shape, axis, argument):
    values = {
        "x": rng.normal(size=shape),
        "weight": rng.uniform(0.5, 2, shape[axis]),
        "bias": rng.normal(size=shape[axis]),
    }
    dy = rng.normal(size=shape)

    def loss(varied):
        given = values | {argument: varied}
        y, _ = bnext.batch_norm_forward(**given, channel_axis=axis)
        return (dy * y).sum()

    _, saved = bnext.batch_norm_forward(**values, channel_axis=axis)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, values["x"], saved, values["weight"])
    expected = numerical_gradient(loss, values[argument])
    actual = {"x": dx, "weight": dweight, "bias": dbias}[argument]
    np.testing.assert_allclose(actual, expected, atol=FINITE_DIFFERENCE * np.abs(expected).max())


def test_rstd_zero_gives_zero_gradient(dtype):
    """A constant channel with eps = 0: y is the bias whatever x is, and dweight has no xhat."""
    x = np.array([[3, 1], [3, 2], [3, 4]], dtype)
    dy = np.array([[1, 2], [3, 4], [5, 7]], dtype)
    _, saved = bnext.batch_norm_forward(x, eps=0.0)
    dx, dweight, dbias = bnext.batch_norm_backward(dy, x, saved)
    assert dx[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert (dweight[0], dbias[0]) == (0.0, 9.0)
    assert np.isfinite(dx).all()


def test_dbias_is_the_sum_of_dy_whatever_x_is(rng, dtype):
    x, dy = rng.normal(size=(2, 333, 5)).astype(dtype)
    _, saved = bnext.batch_norm_forward(x)
    for weight in (None, np.full(5, 3, dtype)):
        dbias = bnext.batch_norm_backward(dy, x, saved, weight)[2]
        assert_is_sum(dbias, reference.per_channel(dy), "dbias")


def test_saved_serves_more_than_one_backward(rng, dtype):
    x, dy = rng.normal(size=(2, 33, 5)).astype(dtype)
    _, saved = bnext.batch_norm_forward(x)
    first = bnext.batch_norm_backward(dy, x, saved)
    second = bnext.batch_norm_backward(dy, x.copy(), saved)  # equal values are the same x
    for one, other in zip(first, second, strict=True):
        assert_same_bits(other, one)


def test_empty_batch(empty_case, dtype):
    case = empty_case
    x = np.empty(case.shape, dtype)
    weight = np.ones(case.channels, dtype)
    _, saved = bnext.batch_norm_forward(x, weight, channel_axis=case.channel_axis)
    dx, dweight, dbias = bnext.batch_norm_backward(np.empty_like(x), x, saved, weight)
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert dweight.tolist() == dbias.tolist() == [0.0] * case.channels
