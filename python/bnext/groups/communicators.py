"""Communicators that belong to MPI groups, and when they are freed.

The notes of `MPIGroup` say when and why. A rank only notes that it has given a communicator up.
When a group is made, all ranks of its communicator meet anyway: they tell each other what they have
given up, and free what all of its ranks have, in one order everywhere. So no rank waits for another
one. MPI frees the rest when it ends.

A message that was sent and not received would be the next communicator's that gets the same number.
So ranks say how many notes they have sent, and receive them all before they free. A communicator on
which an exchange did not end is never freed: MPI may still have messages of it.
"""

from __future__ import annotations

import collections
import itertools
import secrets
from typing import Any, NamedTuple

from bnext.groups.roll_call import Board

__all__ = ["Duplicate", "free_given_up"]

LOOKS = 50  # looks for a message, in vain, before a read gives up; a microsecond each

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


class Duplicate(Board):
    """A communicator of one group: a duplicate of the one that the group is given.

    It is the board of the group's roll call as well, with notes that are sent to each of the
    others. Messages between two ranks are not mixed up with sums.
    """

    def __init__(self, comm: Any) -> None:
        self._identity: Identity = free_given_up(comm)
        self.comm: Any = comm.Dup()
        self.rank: int = int(comm.rank)
        self.size: int = int(comm.size)
        self.stuck = False  # whether an exchange did not end
        self.given_up = False  # whether this rank needs it no more
        self._sent = 0  # notes, to each of the others
        self._requests: list[Any] = []  # of sent notes, as far as they have not ended
        self._received: collections.Counter[int] = collections.Counter()  # notes, by rank
        self._notes: dict[int, str] = {}
        _duplicates[self._identity] = self

    def write(self, note: str, bell: str) -> None:
        """See `Board`; notes come by themselves, without a bell."""
        to = [other for other in range(self.size) if other != self.rank]
        self._requests += [self.comm.isend((self.rank, note), other) for other in to]
        self._sent += 1

    def read(self, bells: list[str], patience: float = 0.0) -> dict[int, str]:
        """See `Board`."""
        # MPI does its work while it is asked: the first answers may be too early.
        looks = LOOKS if patience else 1
        while looks:
            if self.comm.iprobe():
                self._receive()
            else:
                looks -= 1
        self.is_settled()
        return self._notes

    def is_settled(self, patience: float = 0.0) -> bool:
        """See `Board`. Short messages leave at once, before another rank takes them."""
        self._requests = [request for request in self._requests if not request.test()[0]]
        return True

    def _receive(self, **source: int) -> None:
        rank, note = self.comm.recv(**source)
        self._received[rank] += 1
        self._notes[rank] = note

    def say(self) -> GivenUp:
        """Give what the other ranks have to know of it."""
        return GivenUp(self._identity, self.rank, self._sent, self.stuck)

    def free(self, said: list[GivenUp]) -> None:
        """Free it, which all of its ranks do; or keep it for good, if one of them has to."""
        if any(each.stuck for each in said):
            _lost.append(self)
            return
        for each in said:
            while each.rank != self.rank and self._received[each.rank] < each.notes:
                self._receive(source=each.rank)
        for request in self._requests:
            request.wait()
        self.comm.Free()


def free_given_up(comm: Any) -> Identity:
    """Free what all ranks of a communicator have given up; all ranks of `comm` call this together.

    Communicators that have a rank outside of `comm` stay. The result is an identity that no
    communicator has had, the same for all ranks.
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
