"""SyncBatchNorm in a group of threads: shards beside the whole batch in one layer of torch.nn."""

import copy

import pytest

import bnext

from ..groups.support import CUTS, members, new_group
from ..limits import NEVER
from .support import (
    DTYPES,
    PARAMETERS,
    assert_close,
    buffers_of,
    layers,
    name_of_dtype,
    torch,
)

SIZE = 3
STEPS = 3


def synchronized(layer, group):
    """A copy of torch.nn's layer whose statistics are the group's."""
    return bnext.torch.convert(copy.deepcopy(layer), sync=group)


def shards_of(x, cut):
    return torch.tensor_split(x, CUTS[cut](len(x)))


def batches(shape, dtype=torch.float64):
    return (torch.randn(STEPS, 2, *shape, dtype=torch.float64) * 2 + 1).to(dtype)


def train(layer, steps):
    """y and dx of every step, and the gradients of the parameters, which add up."""
    results = []
    for x, dy in steps:
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad))
    return results


def gradients_of(layer):
    return [getattr(layer, name).grad for name in PARAMETERS]


def steps_of(rank, data, cut):
    return [(shards_of(x, cut)[rank], shards_of(dy, cut)[rank]) for x, dy in data]


def check(results, expected, buffers, gradients, whole_layer):
    for number, (y, dx) in enumerate(expected):
        assert_close(torch.cat([member[number][0] for member in results]), y, "y", 10.0)
        assert_close(torch.cat([member[number][1] for member in results]), dx, "dx", 10.0)
    for name, value in buffers_of(whole_layer).items():
        assert_close(buffers[name], value, name, 1.0)
    for actual, expected_sum in zip(gradients, gradients_of(whole_layer), strict=True):
        assert_close(actual, expected_sum, "gradient", 100.0)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(9, 5), (9, 5, 3, 4)], ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_threads_with_replicas(cut, shape, momentum):
    theirs, _ = layers(f"BatchNorm{max(len(shape) - 2, 1)}d", dtype=torch.float64,
                       momentum=momentum)  # fmt: skip
    group, data = new_group(SIZE), batches(shape)
    replicas = [synchronized(theirs, group) for _ in range(SIZE)]
    results = members(group, lambda rank: train(replicas[rank], steps_of(rank, data, cut)))
    expected = train(theirs, data)
    first, *others = map(buffers_of, replicas)
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first), "not the same bits"
    sums = [sum(each) for each in zip(*map(gradients_of, replicas), strict=True)]
    check(results, expected, first, sums, theirs)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("cut", CUTS)
def test_threads_that_share_the_layer(cut, momentum):
    """Its statistics move once a step, and its gradients are the sum of all."""
    theirs, _ = layers("BatchNorm2d", dtype=torch.float64, momentum=momentum)
    group, data = new_group(SIZE), batches((9, 5, 3, 4))
    shared = synchronized(theirs, group)
    results = members(group, lambda rank: train(shared, steps_of(rank, data, cut)))
    check(results, train(theirs, data), buffers_of(shared), gradients_of(shared), theirs)
    assert shared.num_batches_tracked == 3 + STEPS


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(dtype, dtype) for dtype in DTYPES]
    + [(dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)],
    ids=name_of_dtype,
)
def test_threads_with_data_of_every_dtype(dtype, kind):
    theirs, _ = layers("BatchNorm2d", dtype=kind)
    group, data = new_group(SIZE), batches((9, 5, 3, 4), dtype)
    replicas = [synchronized(theirs, group) for _ in range(SIZE)]
    results = members(group, lambda rank: train(replicas[rank], steps_of(rank, data, "unequal")))
    exact = copy.deepcopy(theirs).double()
    expected = train(exact, data.double())
    allowed = (16 if dtype == torch.float64 else 2) * torch.finfo(dtype).eps
    for number, (y, dx) in enumerate(expected):
        for which, value in ((0, y), (1, dx)):
            actual = torch.cat([member[number][which] for member in results])
            assert actual.dtype == dtype
            assert (actual - value).abs().max() <= allowed * value.abs().max()
    for replica in replicas:
        assert replica.weight.grad.dtype == replica.running_var.dtype == kind
        assert_close(replica.running_var, exact.running_var.to(kind), "running_var")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_threads_keep_the_memory_format(memory_format):
    group = new_group(2)
    layer = bnext.torch.SyncBatchNorm(5, process_group=group)
    x = torch.randn(4, 5, 3, 2).contiguous(memory_format=memory_format)

    def body(rank):
        leaf = x[2 * rank : 2 * rank + 2].requires_grad_()
        y = layer(leaf)
        y.sum().backward()  # a gradient of stride 0
        return y.is_contiguous(memory_format=memory_format), leaf.grad.abs().max() < 1e-4

    assert members(group, body) == [(True, True)] * 2


@pytest.mark.parametrize("wanted", ["x", "parameters", "nothing"])
def test_threads_where_only_some_gradients_are_wanted(wanted):
    theirs, _ = layers("BatchNorm1d", dtype=torch.float64)
    theirs.requires_grad_(wanted == "parameters")
    group = new_group(SIZE)
    shared = synchronized(theirs, group)
    x = torch.randn(9, 5, dtype=torch.float64)

    def run(layer, x):
        leaf = x.clone().requires_grad_(wanted == "x")
        y = layer(leaf)
        if wanted != "nothing":
            y.square().sum().backward()
        assert y.requires_grad == (wanted != "nothing")
        return y.detach(), leaf.grad

    results = members(group, lambda rank: run(shared, shards_of(x, "unequal")[rank]))
    y, dx = run(theirs, x)
    assert_close(torch.cat([each[0] for each in results]), y, "y")
    if wanted == "x":
        assert_close(torch.cat([each[1] for each in results]), dx, "dx", 1.0)
    if wanted == "parameters":
        for actual, expected in zip(gradients_of(shared), gradients_of(theirs), strict=True):
            assert_close(actual, expected, "gradient", 10.0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_threads_with_activation_checkpointing(use_reentrant):
    """The forward pass is exchanged again in the backward pass, and nothing moves twice."""
    from torch.utils.checkpoint import checkpoint

    theirs, _ = layers("BatchNorm1d", dtype=torch.float64)
    group, data = new_group(SIZE), batches((9, 5))
    shared = synchronized(theirs, group)

    def kept_little(x):
        return checkpoint(shared, x, use_reentrant=use_reentrant)

    results = members(group, lambda rank: train(kept_little, steps_of(rank, data, "unequal")))
    check(results, train(theirs, data), buffers_of(shared), gradients_of(shared), theirs)


def test_threads_in_evaluation_wait_for_nobody():
    theirs, _ = layers("BatchNorm1d")
    for tracked in (True, False):
        layer = synchronized(theirs, new_group(SIZE, timeout=0.5)).eval()
        expected = theirs.eval()
        if not tracked:
            for each in (layer, expected):
                each.running_mean = each.running_var = None
        x = torch.randn(4, 5)
        assert_close(layer(x), expected(x), "y")


def test_threads_with_one_value_in_all():
    group = new_group(SIZE)
    shared = bnext.torch.SyncBatchNorm(5, process_group=group)
    results = members(group, lambda rank: shared(torch.randn(int(rank == 1), 5)))
    for error in results:
        assert type(error) is ValueError
        assert "more than 1 value per channel" in str(error)
    assert shared.num_batches_tracked == 0


WRONG = {
    "channels": (lambda: torch.randn(4, 6), "weight: expected"),
    "dtype": (lambda: torch.ones(4, 5, dtype=torch.int64), "torch.int64 on cpu"),
    "rank": (lambda: torch.randn(4), "expected at least 2D input"),
    "no channels": (lambda: torch.randn(4, 0), "should be non-zero"),
}


@pytest.mark.parametrize("what", WRONG)
def test_threads_are_told_of_an_error_of_one(what):
    make, text = WRONG[what]
    group = new_group(SIZE, timeout=NEVER)
    shared = bnext.torch.SyncBatchNorm(5, process_group=group)
    results = members(group, lambda rank: shared(make() if rank == 1 else torch.randn(4, 5)))
    assert text in str(results[1])
    for rank in (0, 2):
        assert isinstance(results[rank], bnext.sync.GroupError), results[rank]
        assert results[rank].rank == 1
    assert shared.num_batches_tracked == 0
    assert torch.equal(shared.running_var, torch.ones(5))


def test_copies_of_a_layer_are_in_its_group():
    group = new_group(1)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(5))
    bnext.torch.convert(model, sync=group)
    with group.member(0):
        model(torch.randn(4, 5))
        other = copy.deepcopy(model)
        assert other[0].process_group is group
        other(torch.randn(4, 5))
    assert (model[0].num_batches_tracked, other[0].num_batches_tracked) == (1, 2)
    assert type(bnext.torch.revert(other)[0]) is torch.nn.BatchNorm1d
    assert type(model[0]) is bnext.torch.SyncBatchNorm
