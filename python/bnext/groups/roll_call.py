"""The roll call: how processes find the missing rank when an exchange does not end.

The engine that adds up numbers knows only that the sum has not ended. So members have a board
beside it, where each has one note that all others can read:

    waits   an exchange for which it waits, or for which another rank has called the roll
    failed  the text of the error that keeps it from going on
    left    which ``with group:`` it has left, and how many exchanges it had been through
    closed  how many exchanges it had been through when it closed the group
    over    the verdict, once it has given up: the reason, and the rank

Some time before the time-out, a rank that waits writes so: that calls the roll, and all other ranks
that wait answer. A rank that has not answered at the time-out is missing. That is the verdict. A
rank that reads a verdict gives up too, with the same reason; a late rank reads it before it waits.
As long as exchanges end soon no rank looks at the board.
"""

from __future__ import annotations

import abc
import json
from typing import Any, NamedTuple

__all__ = ["Board", "RollCall", "Verdict"]

ROLL = "roll"
PATIENCE = 0.25  # seconds to wait for the board, where its answer is needed


class Verdict(NamedTuple):
    """Why an exchange is given up, and the rank that caused it."""

    reason: str
    rank: int | None


class Board(abc.ABC):
    """One note for each rank. Nothing here may take long: members have a time-out to keep."""

    @abc.abstractmethod
    def write(self, note: str, bell: str) -> None:
        """Replace this rank's note, and ring a bell for the ranks that listen to it."""

    @abc.abstractmethod
    def read(self, bells: list[str], patience: float = 0.0) -> dict[int, str]:
        """Give the notes of the others, as far as they are known by now.

        They are asked for if one of `bells` has been rung. `patience` is for how many seconds to
        wait for an answer; without it, the answer may be the one of the call before.
        """

    @abc.abstractmethod
    def is_settled(self, patience: float = 0.0) -> bool:
        """Whether all that was written is there to be read, within so many seconds."""

    broken = False  # whether it has failed, for good


class RollCall:
    """One member's part in it."""

    def __init__(self, rank: int, size: int, timeout: float, board: Board | None = None) -> None:
        self.timeout = timeout
        # How long before the time-out the roll is called; how often a waiting rank looks.
        self.grace: float = min(1.0, timeout / 2)
        self.interval: float = min(0.05, self.grace / 8)
        self.verdict: Verdict | None = None
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._board: Board | None = None
        self.use(board)
        self._mine: dict[str, Any] = {"waits": 0}
        self._notes: dict[int, dict[str, Any]] = {}
        self._entered = self._depth = 0

    def use(self, board: Board | None) -> None:
        """Put a board in the place of the present one; None: hold it no more."""
        self._board = board if self._others else None

    # --- a wait that takes long -------------------------------------------------------------------

    def look(self, exchange: int, waited: float, patience: float = 0.0) -> Verdict | None:
        """Give the verdict on an exchange after a wait of so many seconds; None: to wait on."""
        self._read(exchange, patience)
        called = max((note["waits"] for note in self._notes.values()), default=0)
        if waited > self.timeout - self.grace or called > self._mine["waits"]:
            self._answer(max(exchange, called))
        if self.verdict is None and waited > self.timeout:
            reason = f"time-out after {self.timeout:g} s"
            self._read(exchange, PATIENCE)
            if not self._works():
                self.verdict = Verdict(f"{reason}: not all ranks have come", None)
            else:
                self._find_missing(exchange, reason)
        return self.verdict

    def look_after_failure(
        self, exchange: int, waited: float, lasted: float, text: str
    ) -> Verdict | None:
        """Do the same where the engine has failed, `lasted` seconds ago, and said `text`.

        Ranks that are alive answer when they come. One that never will is known when all others
        have; two, at the time-out.
        """
        self._answer(exchange)
        self._read(exchange, PATIENCE)
        if self.verdict is None:
            missing = self._missing(exchange)
            enough = lasted > self.grace / 2 or waited > self.timeout
            if not self._works():
                if enough or self._board is None or self._board.broken:
                    reason = f"the exchange failed, as when a rank dies: {text}"
                    self.verdict = Verdict(reason, None)
            elif not missing:
                self.decide(f"the exchange failed: {text}", None)
            elif (enough and len(missing) == 1) or waited > self.timeout:
                self._find_missing(exchange, "the exchange failed")
        return self.verdict

    def decide(self, reason: str, rank: int | None) -> Verdict:
        """Give up, and let the others know; what one of them has decided before stands."""
        if self.verdict is None:
            notes = {**self._notes, self._rank: self._mine}
            failed = [each for each in sorted(notes) if "failed" in notes[each]]
            if failed:  # which came first, or is known for certain
                rank = failed[0]
                reason = f"rank {rank} {notes[rank]['failed']}; {reason}"
            self.verdict = Verdict(reason, rank)
            self._tell(ROLL, over=self.verdict)
        return self.verdict

    def cannot_go_on(self, text: str) -> None:
        """Remember what the others are told when they call the roll."""
        self._mine["failed"] = text

    # --- `with group:` ----------------------------------------------------------------------------

    def enter(self) -> None:
        """Count it, unless it is within another one."""
        self._entered += self._depth == 0
        self._depth += 1

    def leave(self, exchanges: int, *, tell: bool) -> None:
        """Let others know, in case they wait for this rank; it has been through `exchanges`."""
        self._depth -= 1
        if tell and self._depth == 0 and self.verdict is None:
            self._tell(bell_of_leaving(self._entered), left=(self._entered, exchanges))

    def close(self, exchanges: int) -> None:
        """Let others know, in case they wait for this rank; it has been through `exchanges`."""
        if self.verdict is None:
            self._tell(ROLL, closed=exchanges)

    # --- the board --------------------------------------------------------------------------------

    def _read(self, exchange: int, patience: float = 0.0) -> None:
        if self._board is None or self.verdict is not None:
            return
        block = self._entered if self._depth else 0
        bells = [ROLL, bell_of_leaving(block)] if block else [ROLL]
        notes = self._board.read(bells, patience)
        self._notes = {rank: json.loads(notes[rank]) for rank in sorted(notes)}
        for note in self._notes.values():
            if "over" in note:
                self.verdict = Verdict(*note["over"])
                return
        closed = [r for r, note in self._notes.items() if note.get("closed", exchange) < exchange]
        # A rank that has left, and entered no more often than this member, has no part in the
        # exchange of this member; but in the one before, which may not have ended here.
        left = []
        for rank, note in self._notes.items():
            entered, through = note.get("left", (0, 0))
            if block and entered >= block and through < exchange:
                left.append(rank)
        if closed:
            self.decide(f"{names_of(closed, 'has', 'have')} closed the group", closed[0])
        elif left:
            self.decide(f"{names_of(left, 'has', 'have')} left the group", left[0])

    def _tell(self, bell: str, **changes: Any) -> None:
        """Write to the board, and see to it that others can read it."""
        self._write(bell, **changes)
        if self._board is not None:
            self._board.is_settled(PATIENCE)

    def _write(self, bell: str, **changes: Any) -> None:
        self._mine |= changes
        if self._board is not None:
            self._board.write(json.dumps(self._mine), bell)

    def _answer(self, call: int) -> None:
        if self.verdict is None and call > self._mine["waits"]:
            self._write(ROLL, waits=call)

    def _works(self) -> bool:
        return self._board is not None and not self._board.broken and self._board.is_settled()

    def _missing(self, exchange: int) -> list[int]:
        notes = self._notes
        return [r for r in self._others if r not in notes or notes[r]["waits"] < exchange]

    def _find_missing(self, exchange: int, reason: str) -> None:
        if self.verdict is not None:
            return
        missing = self._missing(exchange)
        if missing:
            self.decide(f"{reason}: {names_of(missing, 'is', 'are')} missing", missing[0])
        else:
            self.decide(f"{reason}, though all ranks have come", None)


def bell_of_leaving(block: int) -> str:
    """Give the bell of ranks that leave their n-th ``with group:``."""
    return f"left-{block}"


def names_of(ranks: list[int], one: str, many: str) -> str:
    """``rank 1 is``, or ``ranks 1, 2 are``."""
    names = ", ".join(map(str, ranks))
    return f"rank {names} {one}" if len(ranks) == 1 else f"ranks {names} {many}"
