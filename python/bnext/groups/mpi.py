"""Processes of an MPI communicator, by mpi4py (the extra ``bnext[mpi]``)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from bnext.groups.communicators import Duplicate, free_given_up
from bnext.groups.exchange import Float64Array
from bnext.groups.group import engine_module
from bnext.groups.processes import ProcessGroup

__all__ = ["MPIGroup"]


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

    Notes
    -----
    MPI has few communicators, MPICH about 2,000, and all ranks of one must free it together. So
    neither `close` nor the garbage collector frees the duplicate: they give it up. Once all of its
    ranks have, it is freed when these ranks next make a group, be it of this communicator or of one
    that has more ranks; `free_closed` does it without making one. A program that makes one group
    after the other has no more duplicates than groups in use, and one. The duplicate of a group in
    which an exchange did not end, as after a time-out, is never freed, since MPI may still write
    to it.
    """

    def __init__(self, comm: Any, *, timeout: float = 60.0) -> None:
        MPI = check_communicator(comm)  # noqa: N806 - as mpi4py calls it
        super().__init__(int(comm.rank), int(comm.size), timeout)
        self._mpi: Any = MPI
        self._duplicate = Duplicate(comm)
        self._comm: Any = self._duplicate.comm
        self._roll.use(self._duplicate)
        # It may run in any thread, also one that MPI does not allow: it only takes a note.
        weakref.finalize(self, setattr, self._duplicate, "given_up", True).atexit = False

    @staticmethod
    def free_closed(comm: Any) -> None:
        """Free the communicators of groups that all of their ranks have closed.

        Making a group does so too. This is for programs that make no more groups, or of other ranks
        each time.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm
            All of its ranks call this together. Groups that have a rank outside of it keep theirs.

        Raises
        ------
        TypeError
            `comm` is not a communicator.
        """
        check_communicator(comm)
        free_given_up(comm)

    def _start_sum(self, buffer: Float64Array) -> Any:
        return self._comm.Iallreduce(self._mpi.IN_PLACE, buffer, op=self._mpi.SUM)

    def _is_done(self, request: Any) -> bool:
        return bool(request.Test())

    def _abandon(self, request: Any, buffer: Float64Array) -> None:
        self._duplicate.stuck = True
        super()._abandon(request, buffer)

    def _end_of(self, request: Any) -> Callable[[], bool]:
        mpi = self._mpi

        def has_ended() -> bool:
            try:
                return request is not None and not mpi.Is_finalized() and bool(request.Test())
            except mpi.Exception:  # it has failed, and so ended
                return True

        return has_ended

    def _works(self) -> bool:
        return not self._mpi.Is_finalized()

    def _give_up(self) -> None:
        self._duplicate.given_up = True


def check_communicator(comm: Any) -> Any:
    """Give mpi4py.MPI, if `comm` is a communicator of it."""
    MPI = engine_module("mpi4py.MPI", "MPIGroup", "mpi")  # noqa: N806 - as mpi4py names it
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm: expected an mpi4py.MPI.Intracomm, got {type(comm).__name__}")
    return MPI
