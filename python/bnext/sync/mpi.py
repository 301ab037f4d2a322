"""Processes of an MPI communicator, by mpi4py (the extra ``bnext[mpi]``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.sync.group import Float64Array, engine_module
from bnext.sync.processes import ProcessGroup
from bnext.sync.roll_call import Board

__all__ = ["MPIGroup"]

LOOKS = 50  # how often who must know looks for a message in vain; a microsecond each


class MPIGroup(ProcessGroup):
    """The processes of `comm`, each with a shard of the batch and a replica of the layers.

    ``with group:`` tells the others of an error in its body, and that this process leaves.

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
        MPI = engine_module("mpi4py.MPI", "MPIGroup", "mpi")  # noqa: N806 - as mpi4py names it
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, got {type(comm).__name__}")
        super().__init__(timeout)
        self._mpi: Any = MPI
        self._comm: Any = comm.Dup()
        self._rank, self._size = int(comm.rank), int(comm.size)
        self._board = MessageBoard(self._comm, MPI.ANY_SOURCE)

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


class MessageBoard(Board):
    """Notes sent to each of the others. Messages between two ranks are not mixed up with sums."""

    def __init__(self, comm: Any, any_source: int) -> None:
        self._comm = comm
        self._any_source = any_source
        self._notes: dict[int, str] = {}
        self._sent: list[Any] = []

    def write(self, note: str, bell: str) -> None:
        """See `Board`; nobody has to listen for what comes by itself."""
        rank, size = self._comm.rank, self._comm.size
        to = [other for other in range(size) if other != rank]
        self._sent += [self._comm.isend((rank, note), other) for other in to]

    def read(self, bells: list[str], patience: float = 0.0) -> dict[int, str]:
        """See `Board`."""
        # MPI does its work while it is asked: the first answers may be too early.
        looks = LOOKS if patience else 1
        while looks:
            if self._comm.iprobe(self._any_source):
                rank, note = self._comm.recv(source=self._any_source)
                self._notes[rank] = note
            else:
                looks -= 1
        self.is_settled()
        return self._notes

    def is_settled(self, patience: float = 0.0) -> bool:
        """See `Board`. Short messages leave at once, whether or not anybody takes them."""
        self._sent = [request for request in self._sent if not request.test()[0]]
        return True
