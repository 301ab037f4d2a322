"""Gradients of the backward pass in a group: what the whole batch gives, and nobody hangs."""

import re

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from .. import reference, twice_reference
from ..activations import ACTIVATIONS, SLOPE
from ..cases import Case, named
from ..compare import assert_same_bits
from ..epilogues import DTYPES, computed
from ..sixteen import name_of
from ..test_double_backward import NAMES, assert_all_same_bits, assert_are, drawn
from .support import CUTS, batch_axis, members, new_group, shards_of, whole

ALL = [*ACTIVATIONS, None]
CASES = named("NC", "NHWC-three-channels", "NCHW-stored-NHWC", "C-first")
OF_DATA = ("x", "dy", "residual", "ddx", "ddresidual")
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])


def parts_of(rng, inputs, cut):
    """Inputs of each member, with a ddweight and a ddbias of its own."""
    axis = batch_axis(inputs.case)
    shards = {
        name: [None] * 3 if getattr(inputs, name) is None
        else shards_of(getattr(inputs, name), cut, axis)
        for name in OF_DATA
    }  # fmt: skip
    parameters = computed(inputs.x.dtype)
    return [
        inputs._replace(
            **{name: each[rank] for name, each in shards.items()},
            ddweight=inputs.case.weight(rng, parameters), ddbias=inputs.case.bias(rng, parameters),
        )
        for rank in range(3)
    ]  # fmt: skip


def forward(part, group):
    return bnext.batch_norm_forward(
        part.x, part.weight, part.bias, channel_axis=part.case.channel_axis,
        residual=part.residual, activation=part.name, negative_slope=SLOPE, group=group,
    )[1]  # fmt: skip


def in_group(parts, **options):
    group = new_group(len(parts))

    def member(rank, part):
        return part.twice(forward(part, group), **options)

    return group.run(member, parts)


def joined(inputs, results, total=False):
    """Of the whole batch: gradients by parameters are sums of shares, or the same for all."""
    fields = {}
    for name in NAMES:
        each = [getattr(result, name) for result in results]
        if each[0] is None:
            fields[name] = None
        elif name not in ("weight", "bias"):
            fields[name] = inputs.case.memory.place(whole(each, batch_axis(inputs.case)))
        elif total:
            for other in each[1:]:
                assert_same_bits(other, each[0])
            fields[name] = each[0]
        else:
            fields[name] = sum(part.astype(float) for part in each).astype(each[0].dtype)
    return bnext.SecondGradients(**fields)


def expected_of(inputs, parts, total=False):
    """What is defined, with the ddweight and ddbias of each value's member."""
    outer = {}
    for name in ("ddweight", "ddbias"):
        rows = [np.asarray(getattr(part, name), np.float64) for part in parts]
        outer[name] = sum(rows)
        if not total:
            axis = inputs.case.channel_axis
            shape = [1] * len(inputs.case.shape)
            shape[axis] = -1
            spread = [
                np.broadcast_to(row.reshape(shape), part.x.shape)
                for row, part in zip(rows, parts, strict=True)
            ]
            outer[name] = reference.per_channel(whole(spread, batch_axis(inputs.case)), axis)
    return twice_reference.double_backward(
        inputs.dy, inputs.x, inputs.weight, inputs.bias, inputs.residual, ddx=inputs.ddx,
        ddresidual=inputs.ddresidual, activation=inputs.name,
        channel_axis=inputs.case.channel_axis, **outer,
    )  # fmt: skip


@RESIDUAL
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cut", ["unequal", "empty-in-between"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_definition_of_the_whole_batch(rng, case, cut, name, dtype, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    parts = parts_of(rng, inputs, cut)
    results = in_group(parts)
    assert_are(joined(inputs, results), inputs, expected_of(inputs, parts), 2.0)


@pytest.mark.parametrize("name", ["relu", "silu", None])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("cut", CUTS)
def test_totals(rng, cut, dtype, name):
    """Of one dweight and dbias for all: the sum over members gives their gradients."""
    inputs = drawn(rng, named("NCHW-7x7")[0], dtype, name, True)
    parts = parts_of(rng, inputs, cut)
    results = in_group(parts, parameter_gradients="total")
    expected = expected_of(inputs, parts, total=True)
    assert_are(joined(inputs, results, total=True), inputs, expected, 2.0)


def test_shares_are_gradients_by_the_member_s_own_parameters(rng):
    """Beside finite differences, where a member's copy of a parameter changes alone."""
    inputs = drawn(rng, Case("small", (7, 2, 2)), np.float64, "gelu", True)
    parts = parts_of(rng, inputs, "unequal")

    def loss(parts):
        group = new_group(3)

        def member(rank, part):
            gradients = bnext.batch_norm_backward(
                part.dy, part.x, forward(part, group), part.weight, residual=part.residual
            )
            outer = part.ddx, part.ddweight, part.ddbias, part.ddresidual
            return sum((a * b).sum() for a, b in zip(gradients, outer, strict=True))

        return sum(group.run(member, parts))

    results = in_group(parts)
    for rank, part in enumerate(parts):
        for name in ("weight", "bias"):
            for c in range(2):
                losses = []
                for step in (1e-5, -1e-5):
                    moved = getattr(part, name).copy()
                    moved[c] += step
                    others = list(parts)
                    others[rank] = part._replace(**{name: moved})
                    losses.append(loss(others))
                numerical = (losses[0] - losses[1]) / 2e-5
                found = getattr(results[rank], name)[c]
                np.testing.assert_allclose(found, numerical, rtol=1e-6, atol=1e-6)


@RESIDUAL
@pytest.mark.parametrize("name", [None, "relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_one_shard_is_a_call_without_a_group(rng, name, dtype, residual):
    inputs = drawn(rng, named("NC")[0], dtype, name, residual)
    parts = parts_of(rng, inputs, "all-in-the-last")
    actual = joined(inputs, in_group(parts))
    assert_all_same_bits(actual, parts[-1]._replace(case=inputs.case).twice())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cut", ["unequal", "empty-first"])
@pytest.mark.parametrize("name", [None, "relu", "silu"])
@pytest.mark.parametrize("case", named("NC", "NCHW-7x7", "NHWC"), ids=str)
def test_means_large_beside_deviations(rng, case, name, cut, dtype):
    ratio = 1e4
    x, dy = (case.memory.place((rng.normal(size=case.shape) + ratio).astype(dtype)) for _ in "ab")
    ddx = case.memory.place((rng.normal(size=case.shape) - ratio).astype(dtype))
    inputs = drawn(rng, case, dtype, name, x=x, dy=dy if name is None else None, ddx=ddx)
    parts = parts_of(rng, inputs, cut)
    units = ratio if dtype == np.float64 else 2.0
    # Shares by the weight are as large as ddx, and each is rounded: only their total is exact.
    expected = expected_of(inputs, parts)
    results = joined(inputs, in_group(parts))._replace(weight=expected.weight.astype(dtype))
    assert_are(results, inputs, expected, units)
    totals = joined(inputs, in_group(parts, parameter_gradients="total"), total=True)
    assert_are(totals, inputs, expected_of(inputs, parts, total=True), units)


@pytest.mark.parametrize("name", [None, "silu"])
@pytest.mark.parametrize("lacking", [(1,), (0, 1, 2)])
def test_members_without_ddx(rng, lacking, name):
    """None stands for 0, for one member as for all."""
    inputs = drawn(rng, named("NCHW-7x7")[0], np.float32, name, True)
    parts = parts_of(rng, inputs, "unequal")
    zeros = [
        part._replace(ddx=np.zeros_like(part.x)) if rank in lacking else part
        for rank, part in enumerate(parts)
    ]
    ddx = whole([part.ddx for part in zeros])
    parts = [
        part._replace(ddx=None) if rank in lacking else part for rank, part in enumerate(parts)
    ]
    inputs = inputs._replace(ddx=ddx)
    assert_are(joined(inputs, in_group(parts)), inputs, expected_of(inputs, zeros), 2.0)


def test_every_member_has_results_of_the_same_bits_in_any_order(rng):
    inputs = drawn(rng, named("NCHW-7x7")[0], np.float32, "gelu", True)
    parts = parts_of(rng, inputs, "unequal")
    first = in_group(parts)
    for _ in range(5):
        for one, other in zip(in_group(parts), first, strict=True):
            assert_all_same_bits(one, other)


def test_without_values():
    group = new_group(2)
    x = np.zeros((0, 3), np.float32)

    def member(rank, shard):
        saved = bnext.batch_norm_forward(shard, group=group)[1]
        return bnext.batch_norm_double_backward(shard, shard, shard, saved)

    for result in group.run(member, [x, x]):
        assert result.x.shape == (0, 3)
        np.testing.assert_array_equal(result.weight, np.zeros(3))


def test_wanted_results_alone(rng):
    inputs = drawn(rng, named("NC")[0], np.float32, "silu", True)
    parts = parts_of(rng, inputs, "unequal")
    for some, every in zip(in_group(parts, wanted=("x",)), in_group(parts), strict=True):
        assert_same_bits(some.x, every.x)
        assert some.dy is some.weight is some.bias is some.residual is None


# --- faults ---------------------------------------------------------------------------------------


def after_forward(body, size=3, timeout=None):
    """What `body(rank, x, saved)` returned or raised in a group, for each member."""
    group = new_group(size) if timeout is None else new_group(size, timeout)
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)

    def member(rank):
        return body(rank, x, bnext.batch_norm_forward(x, group=group)[1])

    return members(group, member), group


WRONG = {
    "ddx": ({"ddx": np.zeros((4, 2), np.float32)}, r"ddx: expected shape \(4, 3\), got \(4, 2\)"),
    "ddweight": ({"ddweight": np.zeros(2, np.float32)}, r"ddweight: expected shape \(3,\)"),
    "dy": ({"dy": np.zeros((3, 3), np.float32)}, r"dy: expected shape \(4, 3\)"),
    "x": ({"x": np.ones((4, 3), np.float32)}, "saved: made from another x"),
    "kind": ({"parameter_gradients": "mine"}, "parameter_gradients: expected 'local' or 'total'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_error_of_a_member_is_announced(what):
    """In the first exchange, before anybody has computed anything of the data's size."""
    changed, text = WRONG[what]

    def body(rank, x, saved):
        operands = {"ddx": x, "dy": x, "x": x} | (changed if rank == 1 else {})
        return bnext.batch_norm_double_backward(saved=saved, **operands)

    results, group = after_forward(body)
    assert isinstance(results[1], ValueError)
    assert re.match(text, str(results[1]))
    for survivor in (results[0], results[2]):
        assert isinstance(survivor, GroupError)
        assert re.search("double_backward: rank 1 raised ValueError: " + text, str(survivor))
        assert survivor.reason == group.broken


def test_another_pass_of_a_member_is_noticed():
    def body(rank, x, saved):
        if rank == 2:
            return bnext.batch_norm_backward(x, x, saved)
        return bnext.batch_norm_double_backward(x, x, x, saved)

    results, _ = after_forward(body)
    assert all(isinstance(result, GroupError) for result in results)
    text = "(double_backward instead of backward|backward instead of double_backward)"
    assert all(re.search(text, str(result)) for result in results)


def test_members_that_differentiate_sums_and_a_total_are_told():
    def body(rank, x, saved):
        kind = "total" if rank == 0 else "local"
        return bnext.batch_norm_double_backward(x, x, x, saved, parameter_gradients=kind)

    results, _ = after_forward(body)
    assert all(isinstance(result, GroupError) for result in results)
    assert "channels instead of" in str(results[0])


@pytest.mark.parametrize("how", ["raises", "leaves", "is missing"])
def test_a_member_that_does_not_come(how):
    class OwnError(Exception):
        pass

    def body(rank, x, saved):
        if rank == 1 and how == "raises":
            raise OwnError("mine")
        if rank == 1 and how == "is missing":
            while not saved.group.broken:
                pass
        return None if rank == 1 else bnext.batch_norm_double_backward(x, x, x, saved)

    results, _ = after_forward(body, timeout=0.2 if how == "is missing" else None)
    reason = {"raises": "raised OwnError: mine", "leaves": "has left", "is missing": "is missing"}
    for survivor in (results[0], results[2]):
        assert isinstance(survivor, GroupError)
        assert f"rank 1 {reason[how]}" in str(survivor)
