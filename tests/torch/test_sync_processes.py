"""SyncBatchNorm in real processes, with torch.distributed's gloo."""

import pytest

from ..groups.test_processes import outcomes_of, run
from ..optional import import_torch
from .support import assert_close, torch
from .worker import STEPS, fit, new_layer, new_model, train

import_torch()


def learned(size, folder):
    said, statuses = run("gloo", "learn", size, folder, module="tests.torch.worker")
    assert set(statuses) == {0}, said
    assert said == [""] * size  # and no warning
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def check_shards(ranks, size):
    """What members have is what one layer of torch.nn has, given the whole batch."""
    for name, expected in train(new_layer(), -1, size).items():
        actual = [rank[name] for rank in ranks]
        if name.startswith(("y-", "dx-")):
            assert_close(torch.cat(actual), expected, name, 100.0)
        elif name.endswith("gradient"):  # of the shard; torch.nn's SyncBatchNorm has it so too
            assert_close(sum(actual), expected, name, 1000.0)
        else:
            assert_close(actual[0], expected, name, 100.0)
            assert all(torch.equal(other, actual[0]) for other in actual[1:]), name


@pytest.mark.parametrize("size", [2, 3])
def test_processes_learn_what_one_learns(size, tmp_path):
    """Shards of unequal size and an empty one; then a model, of which DDP averages gradients."""
    ranks = learned(size, tmp_path)
    check_shards([rank["layer"] for rank in ranks], size)
    check_shards([rank["pair"] for rank in ranks[:2]], 2)
    for rank in ranks:
        assert "expected input tensor to be on GPU" in rank["refusal"]
        assert rank["layer"]["num_batches_tracked"] == STEPS
    if size == 3:
        for name, expected in train(new_layer(), -1, 2).items():
            assert_close(ranks[2]["alone"][name], expected, name, 1000.0)
        return
    for name, expected in fit(new_model(), -1, size).items():
        assert torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]), name
        torch.testing.assert_close(ranks[0]["model"][name], expected, rtol=1e-8, atol=1e-10)


# What the culprit gets, and what the other is told.
FAULTS = {
    "wrong-shape": ("ValueError", "rank 1 raised ValueError: expected at least 2D input"),
    "raises": ("KeyError", "rank 1 raised KeyError: 'mine'"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_processes_are_told_of_an_error_of_one(kind, tmp_path):
    said, statuses = run("gloo", kind, 2, tmp_path, module="tests.torch.worker")
    assert set(statuses) == {0}, said
    survivor, culprit = (outcomes_of(tmp_path, rank, said) for rank in range(2))
    of_culprit, text = FAULTS[kind]
    assert culprit["type"] == of_culprit
    assert survivor["type"] == "GroupError", survivor
    assert text in survivor["text"]
