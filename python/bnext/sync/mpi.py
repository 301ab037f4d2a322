"""Processes of an MPI communicator, by mpi4py (the extra ``bnext[mpi]``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.sync.group import Float64Array
from bnext.sync.processes import ProcessGroup

__all__ = ["MPIGroup"]


class MPIGroup(ProcessGroup):
    """The processes of `comm`, each with a shard of the batch and a replica of the layers.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        It is duplicated, so that messages of others on it do not interfere; so all of its ranks
        make the group together. ``comm.Split`` gives sub-groups.
    timeout : float
        For how many seconds a member waits for the others. After a time-out MPI still has the
        message that nobody answered: end the process, with ``comm.Abort`` at worst.

    Raises
    ------
    TypeError
        `comm` is not a communicator.
    ValueError
        `timeout` is not above 0.
    """

    def __init__(self, comm: Any, *, timeout: float = 60.0) -> None:
        from mpi4py import MPI

        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, got {type(comm).__name__}")
        super().__init__(timeout)
        self._mpi: Any = MPI
        self._comm: Any = comm.Dup()
        self._rank, self._size = int(comm.rank), int(comm.size)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._size

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self._rank

    def _start_sum(self, buffer: Float64Array) -> Any:
        return self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, op=self._mpi.SUM)

    def _start_gather(self, row: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8]) -> Any:
        return self._comm.Iallgather(row, rows)

    def _is_done(self, request: Any) -> bool:
        return bool(request.Test())
