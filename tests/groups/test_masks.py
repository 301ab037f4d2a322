"""Masks and weights in groups: members that hold unequal parts agree with one process."""

import numpy as np
import pytest

import bnext

from ..compare import assert_same_bits
from .support import new_group
from .test_sums import SIZE, on_all_ranks


def drawn(rng, size, dtype=np.float64):
    """A batch, its gradient, masks and weights, in unequal parts; one member's has no True."""
    counts = [1 + 2 * rank for rank in range(size)]
    n = sum(counts)
    x = (rng.normal(size=(n, 3, 7)) + 5).astype(dtype)
    dy = rng.normal(size=(n, 3, 7)).astype(dtype)
    mask = rng.random((n, 7)) < 0.5
    cut = np.cumsum(counts)[:-1]
    mask[cut[0] : cut[0] + 1] = True
    mask[: cut[0]] = False
    weights = rng.exponential(size=(n, 7)) * mask
    return x, dy, mask, weights, cut


def close(actual, expected, bound):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=bound * max(np.abs(expected).max(), 1)
    )


@pytest.mark.parametrize(
    ("size", "activation", "adds"),
    [*((size, None, False) for size in (2, 3, 4, 5)),
     *((size, name, True) for size in (2, 3, 5) for name in (None, "relu", "silu"))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
def test_unequal_members_are_one_process(rng, size, kind, activation, adds):
    """NaN under masks of x, of dy and of the residual, whose gradient there is, too."""
    x, dy, mask, weights, cut = drawn(rng, size)
    given = mask if kind == "mask" else weights
    over = np.broadcast_to(mask[:, None], x.shape)
    dirty, dirty_dy = np.where(over, x, np.nan), np.where(over, dy, np.inf)
    residual = np.where(over, rng.normal(size=x.shape), np.nan)
    group = new_group(size)
    options = {"dtype": np.float64, "activation": activation}
    bn = bnext.BatchNorm1d(3, group=group, parameter_gradients="total", **options)
    alone = bnext.BatchNorm1d(3, **options)
    for layer in (bn, alone):
        layer.weight[...], layer.bias[...] = (1.5, -0.5, 2.0), (0.1, 0.2, 0.3)

    def step(layer, x, dy, residual, given):
        y = layer(x, **({"residual": residual} if adds else {}), **{kind: given})
        gradients = layer.backward(dy)
        return y, *(gradients if adds else [gradients])

    def member(rank, part):
        return *step(bn, *part), bn.weight_grad, bn.bias_grad

    whole = dirty, dirty_dy, residual, given
    results = group.run(member, list(zip(*(np.split(a, cut) for a in whole), strict=True)))
    for k, value in enumerate(step(alone, *whole)):
        close(np.concatenate([r[k] for r in results]), value, 1e-13)
    for *_, dweight, dbias in results:
        close(dweight, alone.weight_grad, 1e-12)
        close(dbias, alone.bias_grad, 1e-12)
    close(bn.running_mean, alone.running_mean, 1e-14)
    close(bn.running_var, alone.running_var, 1e-14)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
def test_processes_add_up_weights(rng, kind):
    """The sum over all ranks has the weights of each, as float64."""
    x, dy, mask, weights, cut = drawn(rng, SIZE)
    given = mask if kind == "mask" else weights
    parts = [np.split(each, cut) for each in (x, dy, given)]

    def body(group):
        shard, gradient, part = (each[group.rank] for each in parts)
        y, saved = bnext.batch_norm_forward(shard, group=group, **{kind: part})
        return y, saved.count, bnext.batch_norm_backward(gradient, shard, saved)[0]

    results, _ = on_all_ranks(body)
    y, saved = bnext.batch_norm_forward(x, **{kind: given})
    close(np.concatenate([r[0] for r in results]), y, 1e-13)
    close(
        np.concatenate([r[2] for r in results]), bnext.batch_norm_backward(dy, x, saved)[0], 1e-13
    )
    for _, count, _ in results:
        assert type(count) is (int if kind == "mask" else float)
        close(count, saved.count, 1e-14)


@pytest.mark.parametrize("masked", ["zero", "normalized", "unchanged"])
def test_no_member_has_a_value(rng, masked):
    """Running statistics stay, the batch is counted, gradients are 0."""
    x = rng.normal(size=(6, 3, 4)).astype(np.float32)
    mask = np.zeros((6, 4), bool)
    group = new_group(3)
    bn = bnext.BatchNorm1d(3, group=group)

    def member(rank, part):
        y = bn(part[0], mask=part[1], masked=masked)
        return y, bn.backward(np.full_like(y, np.nan))

    for y, dx in group.run(member, zip(np.split(x, 3), np.split(mask, 3), strict=True)):
        assert np.isfinite(y).all()
        assert not dx.any()
    assert not bn.running_mean.any()
    assert (bn.running_var == 1).all()
    assert bn.num_batches_tracked == 1


def test_one_shard_is_a_call_without_a_group(rng):
    x, dy, mask, weights, _ = drawn(rng, 2, np.float32)
    group = new_group(1)

    def member(rank, part):
        y, saved = bnext.batch_norm_forward(part, sample_weight=weights, mask=mask, group=group)
        return y, saved.count, *bnext.batch_norm_backward(dy, part, saved)

    [(y, count, *gradients)] = group.run(member, [x])
    expected, saved = bnext.batch_norm_forward(x, sample_weight=weights, mask=mask)
    assert count == saved.count
    assert_same_bits(y, expected)
    for one, two in zip(gradients, bnext.batch_norm_backward(dy, x, saved), strict=True):
        assert_same_bits(one, two)


def test_a_wrong_mask_is_announced(rng):
    """The others need not wait for a member whose mask is refused."""
    x = rng.normal(size=(6, 3)).astype(np.float32)
    group = new_group(2)

    def member(rank, shard):
        mask = np.ones(3 - rank, bool)
        with pytest.raises(ValueError if rank else bnext.sync.GroupError, match="mask: expected"):
            bnext.batch_norm_forward(shard, mask=mask, group=group)

    group.run(member, np.split(x, 2))


def test_micro_batches_are_the_whole_batch(rng):
    """Exact micro-batches weigh by what counts."""
    x, dy, mask, _, _ = drawn(rng, 3, np.float32)
    bn, whole = bnext.BatchNorm1d(3), bnext.BatchNorm1d(3)
    expected = whole(x, mask=mask)
    pieces = list(
        zip(np.array_split(x, 3), np.array_split(mask, 3), np.array_split(dy, 3), strict=True)
    )

    def step(piece):
        shard, part, gradient = piece
        return bn(shard, mask=part), bn.backward(gradient)

    with bnext.micro_batches([bn]) as union:
        results = list(union.run(step, pieces))
    np.testing.assert_allclose(np.concatenate([y for y, _ in results]), expected, rtol=0, atol=1e-5)
    dx = whole.backward(dy)
    np.testing.assert_allclose(np.concatenate([d for _, d in results]), dx, rtol=0, atol=1e-5)
    np.testing.assert_allclose(bn.running_var, whole.running_var, rtol=1e-6)
