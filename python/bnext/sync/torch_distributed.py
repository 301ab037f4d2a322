"""Processes of a torch.distributed process group (gloo)."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.sync.group import Float64Array
from bnext.sync.processes import ProcessGroup
from bnext.sync.store_board import StoreBoard

__all__ = ["TorchDistributedGroup"]

# How many groups each process group has: their notes are kept apart.
_made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


class TorchDistributedGroup(ProcessGroup):
    """The processes of `process_group`, each with a shard of the batch and a replica of the layers.

    ``with group:`` tells the others of an error in its body, and that this process leaves.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        One that takes tensors of the CPU, such as gloo's; the default group if not given.
        ``torch.distributed.new_group`` gives sub-groups. All of its ranks make the group together.
    timeout : float
        For how many seconds a member waits for the others. Who is missing is found out by the store
        of `process_group`; where that is lost as well, the error names nobody.

    Raises
    ------
    RuntimeError
        torch.distributed has not been initialized.
    ValueError
        This process is no member of `process_group`, or `timeout` is not above 0.
    """

    def __init__(self, process_group: Any = None, *, timeout: float = 60.0) -> None:
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            raise RuntimeError(
                "process_group: expected torch.distributed.init_process_group to have been called"
            )
        super().__init__(timeout)
        self._torch: Any = torch
        self._dist: Any = dist
        self._group = process_group
        self._rank, self._size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self._rank < 0:
            raise ValueError("process_group: expected one that this process is a member of")
        self._board = self._new_board()

    def _new_board(self) -> StoreBoard | None:
        """Make a board in the store of the process group, where it has one."""
        process_group = self._dist.group.WORLD if self._group is None else self._group
        number = _made[process_group] = _made.get(process_group, 0) + 1
        try:
            store = process_group.get_group_store()
        except (AttributeError, RuntimeError):
            return None
        return StoreBoard(store, f"bnext-{number}", self.rank, self.size)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return int(self._size)

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return int(self._rank)

    def _start_sum(self, buffer: Float64Array) -> Any:
        tensor = self._torch.from_numpy(buffer)
        return self._dist.all_reduce(tensor, group=self._group, async_op=True)

    def _start_gather(self, row: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8]) -> Any:
        into = [self._torch.from_numpy(each) for each in rows]
        return self._dist.all_gather(
            into, self._torch.from_numpy(row), group=self._group, async_op=True
        )

    def _is_done(self, request: Any) -> bool:
        if not request.is_completed():
            return False
        request.wait()  # raises what went wrong
        return True
