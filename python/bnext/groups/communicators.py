"""Communicators that belong to MPI groups, and when they are freed.

MPI has few communicators (MPICH about 2,000 in a process), and all ranks of one free it together. A
rank alone may not, when it closes a group or the garbage collector finds one. So a rank only notes
that it has given a communicator up. When a group is made, all ranks of its communicator meet
anyway: they tell each other what they have given up, and free what all of its ranks have, in one
order everywhere. So nobody waits for a rank that does not come, and ranks need not close at one
time. What is left when MPI ends is freed by MPI.

A message that was sent and not received would be the next communicator's that gets the same number.
So ranks say how many notes they have sent, and receive them all before they free. A communicator on
which an exchange did not end is never freed: MPI may still have messages of it.
"""

from __future__ import annotations

import collections
import itertools
import secrets
from typing import Any, NamedTuple

__all__ = ["Duplicate", "free_given_up"]

Identity = tuple[str, int]  # the process that was rank 0 when it was made, and a number of its own

_process = secrets.token_hex(8)
_numbers = itertools.count()
_duplicates: dict[Identity, Duplicate] = {}
# They are not freed; kept, since MPI may still use what they send from.
_lost: list[Duplicate] = []


class GivenUp(NamedTuple):
    """What a rank says of a communicator that it needs no more."""

    identity: Identity
    rank: int
    notes: int  # that it has sent to each of the others
    stuck: bool


class Duplicate:
    """A communicator of one group: a duplicate of the one that the group is given.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        The duplicate.
    notes_sent : int
        How many notes this rank has sent to each of the others.
    notes_received : Counter
        How many notes have come, by rank.
    requests : list
        Of notes that were sent, as far as they have not ended.
    stuck : bool
        Whether an exchange did not end.
    given_up : bool
        Whether this rank needs it no more.
    """

    def __init__(self, comm: Any) -> None:
        self._identity: Identity = free_given_up(comm)
        self.comm: Any = comm.Dup()
        self.rank, self.size = int(comm.rank), int(comm.size)
        self.notes_sent = 0
        self.notes_received: collections.Counter[int] = collections.Counter()
        self.requests: list[Any] = []
        self.stuck = self.given_up = False
        _duplicates[self._identity] = self

    def send(self, note: str) -> None:
        """Send a note to each of the others."""
        to = [other for other in range(self.size) if other != self.rank]
        self.requests += [self.comm.isend((self.rank, note), other) for other in to]
        self.notes_sent += 1

    def receive(self, source: int) -> tuple[int, str]:
        """Receive a note that has been sent."""
        rank, note = self.comm.recv(source=source)
        self.notes_received[rank] += 1
        return rank, note

    def say(self) -> GivenUp:
        """Give what the other ranks have to know of it."""
        return GivenUp(self._identity, self.rank, self.notes_sent, self.stuck)

    def free(self, said: list[GivenUp]) -> None:
        """Free it, which all of its ranks do; or keep it for good, if one of them has to."""
        if any(each.stuck for each in said):
            _lost.append(self)
            return
        for each in said:
            while each.rank != self.rank and self.notes_received[each.rank] < each.notes:
                self.receive(each.rank)
        for request in self.requests:
            request.wait()
        self.comm.Free()


def free_given_up(comm: Any) -> Identity:
    """Free what all ranks of a communicator have given up; all ranks of `comm` call this together.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Communicators that have a rank outside of it stay.

    Returns
    -------
    Identity
        One that no communicator has had, the same for all ranks of `comm`.
    """
    given_up = [each.say() for each in list(_duplicates.values()) if each.given_up]
    said = comm.allgather(((_process, next(_numbers)), given_up))
    by_identity = collections.defaultdict(list)
    for _, of_rank in said:
        for each in of_rank:
            by_identity[each.identity].append(each)
    for identity in sorted(by_identity):
        duplicate = _duplicates.get(identity)
        if duplicate is not None and len(by_identity[identity]) == duplicate.size:
            del _duplicates[identity]
            duplicate.free(by_identity[identity])
    new: Identity = said[0][0]
    return new
