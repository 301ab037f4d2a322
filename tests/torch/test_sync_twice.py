"""Gradients of gradients of SyncBatchNorm: shards beside the whole batch in a layer of torch.nn."""

import pytest

import bnext
from bnext.sync import GroupError

from ..groups.support import CUTS, members, new_group
from ..groups.test_processes import outcomes_of, run
from .penalties import differentiate_shards_twice, differentiate_twice
from .support import layers, torch
from .worker import TWICE, new_layer, twice_data

SIZE = 3


def replicas_of(theirs, group, activation):
    """Layers with torch.nn's parameters, one for each member."""
    replicas = []
    for _ in range(group.size):
        replica = bnext.torch.SyncBatchNorm(
            theirs.num_features, process_group=group, activation=activation,
            dtype=theirs.weight.dtype,
        )  # fmt: skip
        replica.load_state_dict(theirs.state_dict())
        replicas.append(replica)
    return replicas


def check(results, expected):
    """Data's gradients are the whole batch's, parameters' add up to it."""
    scale = max(float(each.abs().max()) for each in expected["by data"])
    for number, right in enumerate(expected["by data"]):
        found = torch.cat([result["by data"][number] for result in results])
        assert float((found - right).abs().max()) <= 1e-10 * scale
    for number, right in enumerate(expected["by parameters"]):
        found = sum(result["by parameters"][number] for result in results)
        assert float((found - right).abs().max()) <= 1e-10 * max(scale, float(right.abs().max()))


@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("cut", ["equal", "unequal", "empty-in-between"])
def test_threads_differentiate_twice(cut, activation, has_residual):
    theirs, _ = layers("BatchNorm2d", dtype=torch.float64)
    x, residual = torch.randn(2, 9, 5, 3, 4, dtype=torch.float64)
    residual = residual if has_residual else None
    group = new_group(SIZE)
    replicas = replicas_of(theirs, group, activation)

    results = differentiate_shards_twice(group, replicas, cut, x, residual, activation)
    check(results, differentiate_twice(theirs, x, residual, activation))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_threads_keep_their_digits(activation):
    """At mean / std = 10^4, float32 beside float64 of the same values."""
    theirs, _ = layers("BatchNorm2d")
    x = torch.randn(12, 5, 8, 8) + 1e4
    group = new_group(SIZE)
    replicas = replicas_of(theirs, group, activation)
    shards = torch.tensor_split(x, CUTS["unequal"](12))
    results = members(
        group, lambda rank: differentiate_twice(replicas[rank], shards[rank], None, activation)
    )
    expected = differentiate_twice(theirs.double(), x.double(), None, activation)
    found = torch.cat([result["by data"][0] for result in results])
    right = expected["by data"][0]
    # Activations are in float32, as the forward pass has them.
    assert float((found - right).abs().max() / right.abs().max()) <= 1e-5


def test_a_member_that_fails_in_it():
    group = new_group(SIZE)
    layer = bnext.torch.SyncBatchNorm(4, process_group=group)

    def member(rank):
        x = torch.randn(5, 4, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        if rank == 1:
            raise KeyError("mine")
        dx.square().sum().backward()

    results = members(group, member)
    for survivor in (results[0], results[2]):
        assert isinstance(survivor, GroupError)
        assert "double_backward: rank 1 raised KeyError: 'mine'" in str(survivor)


def test_third_derivatives_are_refused():
    group = new_group(1)
    layer = bnext.torch.SyncBatchNorm(4, process_group=group)

    def member(rank):
        x = torch.randn(5, 4, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(dx.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            again.square().sum().backward()

    assert members(group, member) == [None]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_differentiate_twice(size, tmp_path):
    """Shards of unequal size, one of them empty."""
    said, statuses = run("gloo", "twice", size, tmp_path, module="tests.torch.worker")
    assert set(statuses) == {0}, said
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for activation in TWICE:
        x, residual, _ = twice_data(size)
        expected = differentiate_twice(new_layer(), x, residual, activation)
        check([rank[str(activation)] for rank in ranks], expected)


def test_processes_are_told_of_an_error_in_it(tmp_path):
    said, statuses = run("gloo", "twice-raises", 2, tmp_path, module="tests.torch.worker")
    assert set(statuses) == {0}, said
    survivor, culprit = (outcomes_of(tmp_path, rank, said) for rank in range(2))
    assert culprit["type"] == "KeyError"
    assert survivor["type"] == "GroupError", survivor
    assert "rank 1 raised KeyError: 'mine'" in survivor["text"]
