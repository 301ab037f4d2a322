"""Processes of a torch.distributed process group: gloo, MPI, NCCL."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from bnext.groups.exchange import Float64Array, GroupError
from bnext.groups.group import engine_module
from bnext.groups.processes import ProcessGroup
from bnext.groups.store_board import Keys, StoreBoard

__all__ = ["TorchDistributedGroup"]

# How many groups each process group has: their notes are kept apart.
_made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
# Process groups and keys in their stores, of groups that were never closed and are garbage now.
_left_behind: list[tuple[int, weakref.ref[Any], Keys]] = []


class TorchDistributedGroup(ProcessGroup):
    """The processes of `process_group`, each with a shard of the batch and a replica of the layers.

    ``with group:`` tells the others of an error in its body, and that this process leaves.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        One that takes tensors of the CPU or of CUDA devices; the default group if not given.
        ``torch.distributed.new_group`` gives sub-groups. All of its ranks make the group together.
    timeout : float
        For how many seconds a member waits for the others. The store of `process_group` tells which
        rank is missing; where the store is lost as well, the error names none.

    Raises
    ------
    RuntimeError
        torch.distributed has not been initialized.
    ValueError
        This process is no member of `process_group`, which takes tensors of neither, or `timeout`
        is not above 0.

    Notes
    -----
    Data may lie anywhere, whatever the backend: the exchanged rows are small, and in the memory of
    the host. A backend that takes them there is used as it is: gloo, MPI, and of
    ``"cpu:gloo,cuda:nccl"`` the first. With NCCL alone they go through a CUDA device, by the
    current stream there: the device that `process_group` is bound to (`device_id` of
    ``init_process_group``), else the one that is current when the group is made; so call
    ``torch.cuda.set_device`` before. Sums are float64 with any of them, and the same to the bit for
    all ranks as far as the backend's sums are.

    It holds `process_group` weakly, so that ``destroy_process_group`` ends it, and a few keys in
    its store. The last rank that closes the group takes them out; of a group that is garbage, ranks
    do so when they make or close another one.
    """

    def __init__(self, process_group: Any = None, *, timeout: float = 60.0) -> None:
        torch = engine_module("torch", "TorchDistributedGroup", "torch")
        dist = engine_module("torch.distributed", "TorchDistributedGroup", "torch")
        if not dist.is_initialized():
            raise RuntimeError(
                "process_group: expected torch.distributed.init_process_group to have been called"
            )
        rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if rank < 0:
            raise ValueError("process_group: expected one that this process is a member of")
        super().__init__(rank, size, timeout)
        self._torch: Any = torch
        self._dist: Any = dist
        # Those that make groups for each model must be able to destroy them.
        bound = dist.group.WORLD if process_group is None else process_group
        self._group = weakref.ref(bound)
        self._device = device_of(torch, dist, process_group)
        self._board = self._new_board(bound)
        self._roll.use(self._board)
        take_out_what_was_left()

    def _new_board(self, process_group: Any) -> StoreBoard | None:
        """Make a board in the store of the process group, where it has one."""
        number = _made[process_group] = _made.get(process_group, 0) + 1
        store = store_of(process_group)
        if store is None:
            return None
        keys = Keys(f"bnext-{number}", self.rank, self.size)
        left = os.getpid(), weakref.ref(process_group), keys
        self._finalizer = weakref.finalize(self, _left_behind.append, left)
        self._finalizer.atexit = False
        return StoreBoard(store, keys)

    def _give_up(self) -> None:
        board, self._board = self._board, None
        self._roll.use(None)  # which holds the store
        if board is not None:
            self._finalizer.detach()
            if self._works():
                board.retire()
        take_out_what_was_left()

    def _works(self) -> bool:
        return self._group() is not None

    def _process_group(self) -> Any:
        group = self._group()
        if group is None:
            raise GroupError(
                "process_group: expected one that is in use, got one that was destroyed"
            )
        return group

    def _start_sum(self, buffer: Float64Array) -> Any:
        here = self._torch.from_numpy(buffer)
        there = here if self._device is None else here.to(self._device, copy=True)
        work = self._dist.all_reduce(there, group=self._process_group(), async_op=True)
        return work if there is here else Staged(work, here, there)

    def _is_done(self, request: Any) -> bool:
        if not request.is_completed():
            return False
        request.wait()  # raises what went wrong
        return True

    def _end_of(self, request: Any) -> Callable[[], bool]:
        return super()._end_of(request) if request is None else request.is_completed


class Staged(NamedTuple):
    """A sum in a copy on a device, in the way of a Work of torch.distributed.

    Once it `is_completed`, which the device is asked for without waiting, `wait` fetches the sum.
    """

    work: Any
    here: Any
    there: Any

    def is_completed(self) -> bool:
        """Whether the device has done it."""
        return bool(self.work.is_completed())

    def wait(self) -> None:
        """Raise what went wrong, or copy the sum back."""
        self.work.wait()  # and let the current stream wait for the one of the sum
        self.here.copy_(self.there)


def store_of(process_group: Any) -> Any:
    """Give the store of a process group; None where it has none."""
    try:
        return process_group.get_group_store()
    except (AttributeError, RuntimeError):
        return None


def take_out_what_was_left() -> None:
    """Take the keys of groups that are garbage out of stores that are still in use."""
    while _left_behind:
        process, reference, keys = _left_behind.pop()
        process_group = reference()
        # The store is the parent's, where this is a forked child.
        if process_group is not None and process == os.getpid():
            store = store_of(process_group)
            if store is not None:
                StoreBoard(store, keys).retire()


def device_of(torch: Any, dist: Any, process_group: Any) -> Any:
    """Find the device that the backend takes tensors of; None for the host, if that is one."""
    config = dist.get_backend_config(process_group)  # "cpu:gloo,cuda:nccl"
    kinds = [pair.partition(":")[0] for pair in config.split(",")]
    if "cpu" in kinds:
        return None
    if "cuda" not in kinds:
        raise ValueError(
            "process_group: expected one that takes tensors of the CPU or of CUDA devices, got one "
            f"of {config}"
        )
    bound = getattr(process_group or dist.group.WORLD, "bound_device_id", None)
    return bound or torch.device("cuda", torch.cuda.current_device())
