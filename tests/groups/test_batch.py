"""A batch held by three threads gives what one process with the whole batch gives."""

import threading

import ml_dtypes
import numpy as np
import pytest

import bnext

from .. import reference
from ..cases import FEW, named
from ..compare import assert_are_gradients, assert_is_forward, assert_same_bits, assert_within
from ..sixteen import assert_is_rounded, name_of
from ..tolerances import FEW_ROUNDINGS
from .support import CUTS, batch_axis, layer_step, new_group, shards_of, whole

MORE = named("C-first", "C-last-alone", "NCL", "NCDHW", "NHWC", "NHWC-many-chunks",
             "NCHW-one-example", "all-backwards", "off-by-1-byte", "NCHW-inner-1")  # fmt: skip
CASES_IN_GROUPS = FEW + MORE


def in_group(case, cut, x, dy, weight, bias, **options):
    """y, saved, gradients of each member."""
    group = new_group(3)
    axis = batch_axis(case)
    xs, dys = shards_of(x, cut, axis), shards_of(dy, cut, axis)

    def member(rank, shard):
        y, saved = bnext.batch_norm_forward(
            shard, weight, bias, channel_axis=case.channel_axis, group=group
        )
        return y, saved, bnext.batch_norm_backward(dys[rank], shard, saved, weight, **options)

    return group.run(member, xs)


@pytest.mark.parametrize("case", CASES_IN_GROUPS, ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_agrees_with_the_definition_of_the_whole_batch(rng, case, cut, dtype):
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    weight, bias = case.weight(rng, dtype), case.bias(rng, dtype)
    results = in_group(case, cut, x, dy, weight, bias, parameter_gradients="total")
    axis, options = batch_axis(case), {"channel_axis": case.channel_axis}
    ys, saved, gradients = zip(*results, strict=True)
    assert_is_forward(whole(ys, axis), x, weight, bias, **options)
    dx = whole((g[0] for g in gradients), axis)
    for _, dweight, dbias in gradients:
        assert_are_gradients((dx, dweight, dbias), dy, x, weight, **options)
        assert_same_bits(dweight, gradients[0][1])
        assert_same_bits(dbias, gradients[0][2])
    batch = reference.moments(x, case.channel_axis)
    for each in saved:
        assert each.count == batch.count
        for name in ("mean", "m2", "var", "rstd"):
            assert_same_bits(getattr(each, name), getattr(saved[0], name), name)


@pytest.mark.parametrize("case", FEW, ids=str)
def test_local_gradients_add_up_to_the_total(rng, case):
    x, dy = case.x(rng, np.float64), case.dy(rng, np.float64)
    arguments = (case, "unequal", x, dy, case.weight(rng, np.float64), None)
    local = in_group(*arguments)
    total = in_group(*arguments, parameter_gradients="total")
    for which in (1, 2):
        parts = np.array([gradients[which] for *_, gradients in local])
        expected = total[0][2][which]
        scale = np.abs(parts).sum(axis=0)
        assert_within(parts.sum(axis=0), expected, FEW_ROUNDINGS * np.spacing(scale), "sum")
        assert not np.array_equal(parts[0], expected)


def test_one_shard_is_a_call_without_a_group(rng, dtype):
    """What one member has is merged with nothing, and so keeps its bits."""
    case = FEW[0]
    x, dy = case.x(rng, dtype), case.dy(rng, dtype)
    results = in_group(case, "all-in-the-last", x, dy, None, None, parameter_gradients="total")
    y, saved = bnext.batch_norm_forward(x)
    gradients = bnext.batch_norm_backward(dy, x, saved)
    assert_same_bits(results[2][0], y)
    for actual, expected in zip(results[2][2], gradients, strict=True):
        assert_same_bits(actual, expected)
    assert results[0][0].shape == (0, 20)
    for which in (1, 2):
        assert_same_bits(results[0][2][which], gradients[which])


@pytest.mark.parametrize("dtype16", [np.float16, ml_dtypes.bfloat16], ids=name_of)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("case", named("NC", "NCHW-7x7", "NCHW-stored-NHWC"), ids=str)
def test_16_bit_data(rng, case, cut, dtype16):
    x, dy = case.x(rng, dtype16), case.dy(rng, dtype16)
    weight, bias = case.weight(rng, np.float32), case.bias(rng, np.float32)
    results = in_group(case, cut, x, dy, weight, bias, parameter_gradients="total")
    ys, _, gradients = zip(*results, strict=True)
    exact = reference.forward(x, weight, bias)
    assert_is_rounded(whole(ys), exact, "y")
    expected = reference.backward(dy, x, weight)
    assert_is_rounded(whole(g[0] for g in gradients), expected.dx, "dx")
    assert gradients[0][1].dtype == np.float32
    scale = np.abs(expected.dweight) + np.sqrt(case.count)
    assert_within(gradients[0][1], expected.dweight, 1e-5 * scale, "dweight")


def test_statistics_far_from_zero(rng):
    """A mean of 1e8 costs the variance what is rounded of the means, and does not cancel it."""
    x = rng.normal(size=(60, 7)) + 1e8
    group = new_group(3)

    def member(rank, shard):
        return bnext.batch_norm_forward(shard, group=group)[1].var

    var = group.run(member, np.split(x, [20, 21]))[0]
    bound = FEW_ROUNDINGS * np.spacing(1e8)
    np.testing.assert_allclose(var, reference.moments(x).var, rtol=bound)


def test_mean_and_m2_do_not_depend_on_who_comes_first(rng):
    x = rng.normal(size=(8, 5)).astype(np.float32)
    seen = set()
    for first in range(4):
        group = new_group(4)
        turn = [threading.Event() for _ in range(4)]
        turn[first].set()

        def member(rank, shard, group=group, turn=turn):
            turn[rank].wait()
            count_mean_m2 = bnext.moments(shard)
            turn[(rank + 1) % 4].set()
            assert count_mean_m2.count == 2
            saved = bnext.batch_norm_forward(shard, group=group)[1]
            return saved.mean.tobytes() + saved.m2.tobytes()

        seen.update(group.run(member, np.split(x, 4)))
    assert len(seen) == 1


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("replicas", [False, True], ids=["shared", "replicas"])
def test_layers_learn_what_one_layer_with_the_whole_batch_learns(rng, dtype, momentum, replicas):
    group = new_group(3)
    options = {"momentum": momentum, "dtype": dtype}
    alone = bnext.BatchNorm2d(6, **options)
    layers = [bnext.BatchNorm2d(6, group=group, **options) for _ in range(3 if replicas else 1)]
    of = [layers[rank % len(layers)] for rank in range(3)]
    batches = [rng.normal(1, 2, size=(n, 6, 5, 3)).astype(dtype) for n in (9, 4, 12)]
    grads = [rng.normal(size=x.shape).astype(dtype) for x in batches]

    def member(rank, shards):
        return [layer_step(of[rank], x, dy) for x, dy in shards]

    xs = [shards_of(x, "unequal") for x in batches]
    dys = [shards_of(dy, "unequal") for dy in grads]
    shards = [[(x[r], dy[r]) for x, dy in zip(xs, dys, strict=True)] for r in range(3)]
    results = group.run(member, shards)
    for step, (x, dy) in enumerate(zip(batches, grads, strict=True)):
        y = whole(result[step][0] for result in results)
        dx = whole(result[step][1] for result in results)
        alone_y, alone_dx = layer_step(alone, x, dy)
        close = {"rtol": 0, "atol": 1e-5 if dtype == np.float32 else 1e-13}
        np.testing.assert_allclose(y, alone_y, **close)
        np.testing.assert_allclose(dx, alone_dx, **close)
    for layer in layers:
        assert layer.num_batches_tracked == 3
        for name in ("running_mean", "running_var"):
            assert_same_bits(getattr(layer, name), getattr(layers[0], name), name)
            few = FEW_ROUNDINGS * np.spacing(np.abs(getattr(alone, name)).max())
            assert_within(getattr(layer, name), getattr(alone, name), few, name)
    gradient = sum(layer.weight_grad for layer in layers)
    np.testing.assert_allclose(gradient, alone.weight_grad, **close, verbose=True)
    if replicas:
        assert not np.array_equal(layers[0].weight_grad, layers[1].weight_grad)


def test_replicas_can_ask_for_the_total(rng):
    group = new_group(2)
    layers = [bnext.BatchNorm1d(4, group=group, parameter_gradients="total") for _ in range(2)]
    x = rng.normal(size=(10, 4)).astype(np.float32)
    group.run(lambda rank, shard: layer_step(layers[rank], shard, shard), np.split(x, [3]))
    assert_same_bits(layers[0].weight_grad, layers[1].weight_grad)
    alone = bnext.BatchNorm1d(4)
    layer_step(alone, x, x)
    np.testing.assert_allclose(layers[0].weight_grad, alone.weight_grad, rtol=1e-6)


def test_two_layers_one_after_the_other(rng):
    group = new_group(3)
    first, second = (bnext.BatchNorm1d(5, group=group) for _ in range(2))
    alone = [bnext.BatchNorm1d(5) for _ in range(2)]
    x = rng.normal(size=(9, 5)).astype(np.float32)

    def member(rank, shard):
        y = second(2 * first(shard) + shard)
        return y, first.backward(second.backward(y))

    for _ in range(3):
        results = group.run(member, shards_of(x, "equal"))
        y = alone[1](2 * alone[0](x) + x)
        dx = alone[0].backward(alone[1].backward(y))
    np.testing.assert_allclose(whole(r[0] for r in results), y, atol=1e-5)
    np.testing.assert_allclose(whole(r[1] for r in results), dx, atol=1e-5)
    np.testing.assert_allclose(second.running_var, alone[1].running_var, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_all_shards_empty(momentum):
    group = new_group(2)
    layer = bnext.BatchNorm2d(3, group=group, momentum=momentum)
    before = layer.state_dict()
    empty = np.empty((0, 3, 4, 4), np.float32)
    for y, dx in group.run(lambda rank, x: layer_step(layer, x, x), [empty, empty]):
        assert y.shape == dx.shape == empty.shape
    for name in ("running_mean", "running_var"):
        assert_same_bits(layer.state_dict()[name], before[name])
    assert layer.num_batches_tracked == 1  # as of an empty batch without a group
    assert not layer.weight_grad.any()
    assert not layer.bias_grad.any()


def test_one_value_per_channel_is_about_the_whole_batch():
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    one = np.ones((1, 3), np.float32)
    group.run(lambda rank, x: layer(x), [one, 2 * one])  # one each: two
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
        group.run(lambda rank, x: layer(x), [one, one[:0]])
    assert layer.num_batches_tracked == 1


def test_evaluation_exchanges_nothing(rng):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group).eval()
    alone = bnext.BatchNorm1d(3).eval()
    x = rng.normal(size=(4, 3)).astype(np.float32)
    assert_same_bits(layer(x), alone(x))
    assert_same_bits(layer.backward(x), alone.backward(x))
    assert_same_bits(layer.weight_grad, alone.weight_grad)


def test_nan_poisons_its_own_channel(rng):
    group = new_group(2)
    layer = bnext.BatchNorm1d(3, group=group)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    x[1, 2] = np.nan
    y = whole(group.run(lambda rank, shard: layer(shard), np.split(x, 2)))
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(y[:, :2]).all()
