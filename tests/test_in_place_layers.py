"""Calls in place (``out=x``): what they refuse; layers, groups and micro-batches that have them."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import bnext

from .activations import ACTIVATIONS
from .cases import Case
from .compare import assert_same_bits
from .epilogues import CASES, both_passes, computed, drawn
from .in_place import DATA, NAMES, both_in_place, rounding
from .sixteen import name_of
from .snapshots import layer_state, raises_exactly
from .test_epilogue_layers import layer_of

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


def test_arrays_of_torch(torch, rng):
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
