"""An activation and a residual in a group: what the whole batch gives, forward and backward."""

import re

import numpy as np
import pytest

import bnext
from bnext.sync import GroupError

from ..activations import ACTIVATIONS, SLOPE, SMOOTH
from ..cases import named
from ..compare import assert_same_bits
from ..epilogues import DTYPES, Expected, Results, both_passes, computed, drawn
from ..sixteen import name_of
from .support import CUTS, batch_axis, members, new_group, shards_of, whole

ALL = [*ACTIVATIONS, None]
CASES = named("NC", "NHWC-three-channels", "NCHW-stored-NHWC", "C-first")
RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])


def shards(inputs, cut):
    """x, dy and the residual (None without) of each member."""
    axis = batch_axis(inputs.case)
    residuals = [None] * 3
    if inputs.residual is not None:
        residuals = shards_of(inputs.residual, cut, axis)
    return list(
        zip(shards_of(inputs.x, cut, axis), shards_of(inputs.dy, cut, axis), residuals, strict=True)
    )


def results_of(parts, axis):
    """Of the whole batch; parameters' gradients, which are totals, of the first member."""
    ys, dxs, dweights, dbiases, dresiduals = zip(*parts, strict=True)
    for each in (dweights, dbiases):
        for other in each[1:]:
            assert_same_bits(other, each[0])
    dresidual = None if dresiduals[0] is None else whole(dresiduals, axis)
    return Results(whole(ys, axis), whole(dxs, axis), dweights[0], dbiases[0], dresidual)


def in_group(inputs, cut):
    def member(rank, shard):
        x, dy, residual = shard
        y, saved = bnext.batch_norm_forward(
            x, inputs.weight, inputs.bias, group=group, **inputs.options | {"residual": residual}
        )
        assert saved.activation == inputs.name
        assert saved.residual is (residual is not None)
        assert saved.reads_residual is (residual is not None and inputs.name in SMOOTH)
        again = {"residual": residual} if saved.reads_residual else {}
        gradients = bnext.batch_norm_backward(
            dy, x, saved, inputs.weight, parameter_gradients="total", **again
        )
        return Results(y, *gradients)

    group = new_group(3)
    return results_of(group.run(member, shards(inputs, cut)), batch_axis(inputs.case))


@RESIDUAL
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cut", ["unequal", "empty-in-between"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_definition_of_the_whole_batch(rng, case, cut, name, dtype, residual):
    inputs = drawn(rng, case, dtype, name, residual)
    Expected(inputs).assert_are_results(in_group(inputs, cut))


@RESIDUAL
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", None])
@pytest.mark.parametrize("dtype", [d for d in DTYPES if np.dtype(d).itemsize == 2], ids=name_of)
@pytest.mark.parametrize("cut", CUTS)
def test_16_bit_data(rng, cut, name, dtype, residual):
    inputs = drawn(rng, named("NCHW-7x7")[0], dtype, name, residual)
    Expected(inputs).assert_are_results(in_group(inputs, cut))


@RESIDUAL
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_one_shard_is_a_call_without_a_group(rng, name, dtype, residual):
    inputs = drawn(rng, named("NC")[0], dtype, name, residual)
    results = in_group(inputs, "all-in-the-last")
    for actual, expected in zip(results, both_passes(inputs), strict=True):
        assert (actual is None) == (expected is None)
        if expected is not None:
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("cut", CUTS)
def test_flags_are_the_forward_s(rng, dtype, cut):
    """The residual's gradient is dy where y is not 0, and 0 where it is."""
    inputs = drawn(rng, named("NCHW-7x7")[0], dtype, "relu", True)
    results = in_group(inputs, cut)
    expected = np.where(results.y == 0, dtype(0), inputs.dy)
    assert 0 < np.count_nonzero(expected) < expected.size
    assert_same_bits(results.dresidual, expected)


@pytest.mark.parametrize("name", ALL)
def test_layers(rng, name):
    """A step of a layer that the members share, and the same in evaluation, where none waits."""
    inputs = drawn(rng, named("NCHW-7x7")[0], np.float32, name, True)
    case = inputs.case
    group = new_group(3)
    bn = bnext.BatchNorm2d(
        case.channels, group=group, activation=name, negative_slope=SLOPE,
        parameter_gradients="total", dtype=computed(np.float32),
    )  # fmt: skip
    bn.weight[...], bn.bias[...] = inputs.weight, inputs.bias

    def member(rank, shard):
        x, dy, residual = shard
        y = bn(x, residual=residual)
        dx, dresidual = bn.backward(dy)
        return Results(y, dx, bn.weight_grad, bn.bias_grad, dresidual)

    results = results_of(group.run(member, shards(inputs, "unequal")), 0)
    Expected(inputs).assert_are_results(results)
    assert bn.num_batches_tracked == 1
    bn.eval()
    ys = group.run(lambda rank, shard: bn(shard[0], residual=shard[2]), shards(inputs, "unequal"))
    bn.group = None
    assert_same_bits(whole(ys), bn(inputs.x, residual=inputs.residual))


@pytest.mark.parametrize("name", SMOOTH)
def test_a_missing_residual_is_refused_before_anyone_waits(rng, name):
    x = rng.normal(size=(6, 3))
    group = new_group(3)

    def member(rank, shard):
        _, saved = bnext.batch_norm_forward(shard, group=group, activation=name, residual=shard)
        with pytest.raises(ValueError, match=rf"^residual: .* since the derivative of {name} "):
            bnext.batch_norm_backward(shard, shard, saved)
        return True

    assert group.run(member, np.split(x, 3)) == [True] * 3


def test_a_wrong_residual_is_seen_before_anyone_has_written(rng):
    x = rng.normal(size=(6, 3))
    group = new_group(3)
    bn = bnext.BatchNorm1d(3, dtype=np.float64, group=group, activation="relu")

    def member(rank, shard):
        return bn(shard, residual=shard[:1] if rank == 1 else shard)

    text = r"rank 1 raised ValueError: residual: expected shape \(2, 3\), got \(1, 3\)$"
    results = members(group, lambda rank: member(rank, np.split(x, 3)[rank]))
    assert all(isinstance(result, (ValueError, GroupError)) for result in results)
    assert re.search(text, str(results[0]))
    assert str(results[1]) == "residual: expected shape (2, 3), got (1, 3)"
    assert bn.num_batches_tracked == 0
    assert not bn.running_mean.any()
