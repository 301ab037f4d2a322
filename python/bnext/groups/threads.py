"""Python threads of one process that each hold a shard of the batch."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from bnext import _core
from bnext.arguments import index_of
from bnext.groups.exchange import CLOSED, Calls, GroupError, Header, Merged, Rows, error_of
from bnext.groups.group import Group, error_text

__all__ = ["ThreadGroup"]

# How often `run` looks for signals that another thread received, and for errors; in seconds.
POLL = 0.25

Shard = TypeVar("Shard")
Result = TypeVar("Result")


class Local(threading.local):
    """A thread's own: its rank and ticket, if it is a member."""

    membership: tuple[int, int] | None = None


class ThreadGroup(Group):
    """A group of `size` threads, reusable for any number of layers and steps.

    A thread becomes a member by `run`, or by ``with group.member(rank):`` in a thread of the
    caller's own. Members wait for each other in C++ without the GIL.

    Parameters
    ----------
    size : int
        How many members there are.
    timeout : float
        For how many seconds a member waits for the others before it gives up.

    Raises
    ------
    ValueError
        `size` is less than 1, or `timeout` is not between 0 and a year.
    TypeError
        An argument is not a number.

    Notes
    -----
    A member that raises, leaves, comes too late or brings something else breaks the group: the
    others get a `GroupError`, at once if they wait, and until `reset` whenever they come. `close`
    does the same for good, and so does the end of ``with ThreadGroup(size) as group:``.

    A layer may be one object that all members share: running statistics then move once a step, and
    parameter gradients are the group's total. Or each member has a replica: its running statistics
    are the same to the bit in all of them. Layers are told apart by the order in which each member
    first calls them.
    """

    def __init__(self, size: int, *, timeout: float = 60.0) -> None:
        size = index_of(size, "size")
        if isinstance(timeout, bool) or not hasattr(timeout, "__float__"):
            raise TypeError(f"timeout: expected seconds, got {type(timeout).__name__}")
        super().__init__()
        self._barrier = _core.ThreadGroup(size, timeout)
        self._local = Local()
        self._process = os.getpid()
        self._forget()

    def _forget(self) -> None:
        self._calls = [Calls() for _ in range(self.size)]
        # Layers that are shared must have the same number for all.
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @property
    def size(self) -> int:
        """How many members there are."""
        return self._barrier.size

    @property
    def timeout(self) -> float:
        """For how many seconds a member waits for the others."""
        return self._barrier.timeout

    @property
    def broken(self) -> str:
        """Why the group is broken; empty if it is not."""
        return CLOSED if self.closed else self._barrier.broken

    @property
    def rank(self) -> int:
        """Which member the calling thread is.

        Raises
        ------
        GroupError
            The calling thread is no member.
        """
        return self._membership()[0]

    @property
    def rank_or_none(self) -> int | None:
        """The same; None where the calling thread is no member."""
        membership = self._local.membership
        return None if membership is None else membership[0]

    def _membership(self) -> tuple[int, int]:
        membership = self._local.membership
        if membership is None:
            raise GroupError(
                "group: expected a call from a member, got one from a thread that is none; use "
                "group.run(fn, shards) or `with group.member(rank):`"
            )
        return membership

    def __enter__(self) -> ThreadGroup:
        """Give the group, which is closed at the end of the block."""
        self.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        # In a forked child a thread that is not there may have the lock of the barrier.
        if os.getpid() == self._process:
            self._barrier.fail(-1, 0, CLOSED)

    # --- members ----------------------------------------------------------------------------------

    def member(self, rank: int) -> Member:
        """Context manager that makes the calling thread the member `rank`.

        All ranks are to be taken equally often. An error that leaves the body breaks the group;
        without one, others that wait for this member in the body are told that it has left.

        Parameters
        ----------
        rank : int
            From 0 to size - 1.

        Returns
        -------
        context manager
            It gives the group. Entering raises ValueError if there is no such rank or another
            thread has it, `GroupError` if the group is broken or closed.
        """
        return Member(self, rank)

    def run(self, fn: Callable[[int, Shard], Result], shards: Iterable[Shard]) -> list[Result]:
        """Call ``fn(rank, shard)`` for each shard, in `size` threads at once.

        Parameters
        ----------
        fn : callable
            What a member does. Calls of layers and functions with this group are exchanges.
        shards : iterable of `size` objects
            What each member is given.

        Returns
        -------
        list
            What the calls returned, in the order of ranks.

        Raises
        ------
        ValueError
            `shards` has another length.
        Exception
            The first error of a member, with its rank as the attribute ``rank`` and in a note.
            The group is broken then. A member that does not end within the time-out after the
            error is left behind.
        """
        self.check_open()
        shards = list(shards)
        if len(shards) != self.size:
            raise ValueError(f"shards: expected {self.size}, one a member, got {len(shards)}")
        results: dict[int, Result] = {}
        errors: list[tuple[int, BaseException]] = []  # the first that came is the first here

        def work(rank: int) -> None:
            try:
                with self.member(rank):
                    try:
                        results[rank] = fn(rank, shards[rank])
                    except BaseException as error:
                        errors.append((rank, error))  # before the others learn of it
                        raise
            except BaseException as error:
                if all(error is not known for _, known in errors):
                    errors.append((rank, error))

        threads: list[threading.Thread] = []
        try:
            for rank in range(self.size):
                thread = threading.Thread(
                    target=work, args=(rank,), name=f"bnext-member-{rank}", daemon=True
                )
                thread.start()
                threads.append(thread)
            self._wait_for(threads, errors)
        except BaseException as error:
            self._barrier.fail(-1, 0, f"run {error_text(error)}")
            self._wait_for(threads, errors, seconds=1.0)
            raise
        if errors:
            rank, first = errors[0]
            note = f"This was rank {rank} of {self.size}."
            first.__dict__.setdefault("rank", rank)
            first.__dict__.setdefault("__notes__", []).append(note)
            try:
                raise first
            finally:
                del first, errors  # a frame that keeps its own error is a cycle
        return [results[rank] for rank in range(self.size)]

    def _wait_for(
        self,
        threads: list[threading.Thread],
        errors: list[tuple[int, BaseException]],
        seconds: float | None = None,
    ) -> None:
        """Wait until all threads have ended, for `seconds`, or the time-out after an error."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in threads:
            while thread.is_alive():
                if deadline is None and errors:
                    deadline = time.monotonic() + self.timeout
                left = POLL if deadline is None else min(deadline - time.monotonic(), POLL)
                if left <= 0:
                    return
                thread.join(left)

    def reset(self) -> None:
        """Make a broken group work again.

        Memberships end: threads that go on enter anew. Members that still wait get an error.
        Layers and steps are numbered from 0 again.

        Raises
        ------
        GroupError
            The group was closed.
        """
        self.check_open()
        self._barrier.reset()
        self._forget()

    def fail(self, message: str) -> None:
        """Tell the other members that the calling one cannot go on.

        Parameters
        ----------
        message : str
            What it did, as in "raised ValueError: ...".
        """
        if self._local.membership is not None:
            self._barrier.fail(*self._local.membership, message)

    # --- exchanges --------------------------------------------------------------------------------

    def begin(self, layer: Any) -> tuple[int, int]:
        """Count a forward call; see `Group`."""
        self.check_open()
        rank, _ = self._membership()
        number, step, first = self._calls[rank].begin(layer)
        if first:
            with self.lock:
                known = self._numbers.setdefault(layer, number)
            if known != number:
                self.fail(f"calls layer {known} where layer {number} is next")
                reason = f"rank {rank} calls layer {known} where it is to call layer {number}"
                raise error_of(Header(number, step, "forward", 0, ""), reason, rank)
        return number, step

    def _exchange(self, header: Header, count: float, rows: Rows) -> Merged:
        rank, ticket = self._membership()
        first, second, mean_low = rows
        try:
            merged = self._barrier.exchange(
                rank, ticket, header.layer, header.step, header.direction, header.channels,
                header.dtype, header.owner, count, first, second, mean_low,
            )  # fmt: skip
        except _core.GroupFailure as failure:
            raise converted(failure, header) from None
        return Merged._make(merged)

    def __repr__(self) -> str:
        """Give the size, and what broke the group."""
        if self.closed:
            return f"<bnext.sync.ThreadGroup of {self.size}, closed>"
        broken = f", broken: {self.broken}" if self.broken else ""
        return f"<bnext.sync.ThreadGroup of {self.size}{broken}>"


class Member:
    """A membership of the thread that enters; `ThreadGroup.member` makes them."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group = group
        self._rank = index_of(rank, "rank")

    def __enter__(self) -> ThreadGroup:
        group = self._group
        group.check_open()
        if group.rank_or_none is not None:
            raise ValueError(
                f"rank: expected a thread that is no member, got rank {self._rank} for one that "
                f"is rank {group.rank}"
            )
        try:
            ticket = group._barrier.enter(self._rank)
        except _core.GroupFailure as failure:
            raise converted(failure, None) from None
        group._local.membership = (self._rank, ticket)
        return group

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        group = self._group
        if error is not None:
            group.fail(error_text(error))
        group._barrier.leave(*group._membership())
        del group._local.membership


def converted(failure: _core.GroupFailure, header: Header | None) -> GroupError:
    """Make the error that users get from the error of the C++ barrier."""
    reason, rank = failure.args
    return error_of(header, reason, None if rank < 0 else rank)
