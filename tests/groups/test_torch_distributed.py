"""TorchDistributedGroup where the backend takes no tensors of the CPU, as NCCL does.

Without a GPU: a stand-in for torch.distributed over the ranks of threads, and gloo over copies.
With one: tests/cuda/test_gpu_groups.py.
"""

import threading
import types

import numpy as np
import pytest

import bnext
from bnext.groups import torch_distributed

from .. import reference
from ..compare import assert_same_bits
from .support import in_threads
from .test_processes import assert_first_is_told, assert_learn_as_one
from .test_sums import World

pytestmark = pytest.mark.torch
SIZE = 3


@pytest.mark.parametrize(
    ("config", "bound", "expected"),
    [
        ("cpu:gloo,cuda:gloo", None, None),
        ("cpu:gloo,cuda:nccl", None, None),
        ("cuda:nccl,cpu:gloo", None, None),
        ("cpu:mpi,cuda:mpi", None, None),
        ("cuda:nccl", None, "cuda:3"),
        ("cuda:nccl", "cuda:1", "cuda:1"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_the_device_that_torch_s_backend_wants(torch, config, bound, expected, given):
    group = types.SimpleNamespace(bound_device_id=bound and torch.device(bound))
    dist = types.SimpleNamespace(
        get_backend_config=lambda asked: config if (asked is group) == given else None,
        group=types.SimpleNamespace(WORLD=None if given else group),
    )
    fake = types.SimpleNamespace(
        device=torch.device, cuda=types.SimpleNamespace(current_device=lambda: 3)
    )
    device = torch_distributed.device_of(fake, dist, group if given else None)
    assert device == (expected and torch.device(expected))


def test_torch_backends_of_other_devices_are_refused(torch):
    dist = types.SimpleNamespace(get_backend_config=lambda group: "xpu:xccl")
    text = "^process_group: expected one that takes tensors of the CPU or of CUDA .*of xpu:xccl$"
    with pytest.raises(ValueError, match=text):
        torch_distributed.device_of(torch, dist, None)


class Backend:
    """torch.distributed as NCCL has it, for threads: results come when the device is through."""

    POLLS = 3

    def __init__(self):
        self.rank = threading.local()
        self.world = World(SIZE)
        self.seen = []

    def is_initialized(self):
        return True

    def get_rank(self, group):
        return self.rank.value

    def get_world_size(self, group):
        return SIZE

    def all_reduce(self, tensor, group, async_op):
        return Work(self, tensor)


class Work:
    """Nothing has arrived before it says so, and whoever asks is not kept waiting."""

    def __init__(self, backend, tensor):
        self.polls = 0
        self.backend, self.tensor = backend, tensor
        backend.seen.append(tensor)

    def is_completed(self):
        self.polls += 1
        if self.polls == Backend.POLLS:
            brought = self.backend.world.collect(self.backend.rank.value, self.tensor.numpy())
            self.tensor.numpy()[...] = sum(brought)
        return self.polls >= Backend.POLLS

    def wait(self):
        assert self.polls >= Backend.POLLS, "it would not wait for the host"


def on_all_ranks(body, monkeypatch):
    import torch

    backend = Backend()
    for name in ("is_initialized", "get_rank", "get_world_size", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, getattr(backend, name))
    monkeypatch.setattr(torch_distributed, "device_of", lambda *_: torch.device("cpu"))
    process_group = type("WithoutStore", (), {})()

    def member(rank):
        backend.rank.value = rank
        return body(bnext.sync.TorchDistributedGroup(process_group))

    return in_threads(member, SIZE), backend


def test_torch_sums_come_back_from_the_device(rng, monkeypatch):
    x, dy = rng.normal(1, 2, (2, 7, 5))
    cuts = [0, 3]

    def body(group):
        shard = np.split(x, cuts)[group.rank]
        y, saved = bnext.batch_norm_forward(shard, group=group)
        gradients = bnext.batch_norm_backward(
            np.split(dy, cuts)[group.rank], shard, saved, parameter_gradients="total"
        )
        return y, saved.var, *gradients

    results, backend = on_all_ranks(body, monkeypatch)
    ys, variances, dxs, dweights, dbiases = zip(*results, strict=True)
    expected = reference.backward(dy, x)
    np.testing.assert_allclose(np.concatenate(ys), reference.forward(x), atol=1e-13)
    np.testing.assert_allclose(np.concatenate(dxs), expected.dx, atol=1e-13)
    np.testing.assert_allclose(dweights[0], expected.dweight, atol=1e-12)
    for rank in range(SIZE):
        assert_same_bits(variances[rank], variances[0])
        assert_same_bits(dweights[rank], dweights[0])
        assert_same_bits(dbiases[rank], dbiases[0])
    assert len(backend.seen) == 2 * SIZE


def test_torch_buffers_of_the_host_are_not_handed_over(monkeypatch):
    """What the backend gets is a copy, which is there until it is through."""
    brought = []

    def body(group):
        start = group._start_sum

        def started(buffer):
            brought.append(buffer)
            return start(buffer)

        group._start_sum = started
        bnext.batch_norm_forward(np.ones((2, 3)), group=group)

    results, backend = on_all_ranks(body, monkeypatch)
    assert results == [None] * SIZE
    addresses = {buffer.ctypes.data for buffer in brought}
    assert len(backend.seen) == len(brought) > 0
    assert not addresses & {tensor.data_ptr() for tensor in backend.seen}


def test_torch_ranks_are_told_apart_over_the_device(monkeypatch):
    def body(group):
        x = np.ones((2, 3 + (group.rank == 1)), np.float32)
        bnext.batch_norm_forward(x, group=group)

    results, _ = on_all_ranks(body, monkeypatch)
    assert all(isinstance(error, bnext.sync.GroupError) for error in results), results
    reason = "rank 1 differs from rank 0: 4 channels instead of 3 channels"
    assert {error.reason for error in results} == {reason}


def test_torch_processes_over_copies(tmp_path):
    """Two real ones, whose every sum goes over copies; as those that need none."""
    assert_learn_as_one("staged", 2, tmp_path)


@pytest.mark.parametrize("kind", ["raises", "other-channels"])
def test_torch_faults_over_copies(kind, tmp_path):
    assert_first_is_told("staged", kind, tmp_path)
