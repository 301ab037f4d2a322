"""What groups of processes share: one sum over all ranks for each exchange, with a header in it.

A sum costs each rank O(C), however many there are. Moments add up as sums about a shift that all
ranks have: the mean of the last exchange of that layer, which is the same to the bit everywhere.
With ``d = mean - shift``, the member brings ``n d`` and ``m2 + n d**2``, in float64, and

    mean = shift + D,  m2 = S2 - S1 D,  D = S1 / N

of the sums N, S1, S2. What cancels in m2 is ``N D**2``. Where that is not small beside m2, all
ranks see it alike, and add up once more about the mean that they have just found. The mean of
float64 data has a low part, in d as in the result.

The header is a few small integers, each with its square: sums over n ranks are n a and n a**2 only
if all ranks have the same a. Blocks have one size, whatever the header says, so that ranks meet
though they call different things. A layer's channels beyond a block are added up after it.

`roll_call.py` deals with exchanges that do not end.
"""

from __future__ import annotations

import abc
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bnext import _core
from bnext.arguments import amount_of
from bnext.groups.exchange import (
    CLOSED,
    DIRECTIONS,
    Calls,
    Float64Array,
    GroupError,
    Header,
    Merged,
    Rows,
    error_of,
)
from bnext.groups.group import Group, error_text
from bnext.groups.roll_call import PATIENCE, RollCall, Verdict
from bnext.rows import two_sum

__all__ = ["ProcessGroup"]

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Sums of squares of 2**14 such numbers are integers that float64 has.
MODULUS = 1 << 19
HEAD = 2 * 5 + 2  # each field and its square; how many failed; count
TEXT = 512  # bytes of what a rank says where something is wrong
# m2 has lost 10 of 53 bits where N D**2 is as much larger; 2, which float64 results can do without.
CANCELLED = 1024.0
CANCELLED_OF_FLOAT64 = 4.0
ROOM = 64  # how many shifts are kept before the shifts of dead layers are dropped

let_others_run: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))

# What engines may still write to, of exchanges that did not end: also when their group is gone.
_abandoned: list[Abandoned] = []


class Abandoned(NamedTuple):
    """A sum that was given up, and its buffer."""

    has_ended: Callable[[], bool]
    buffer: Float64Array
    process: int


def forget_ended() -> None:
    """Let go of the buffers of abandoned sums that have come to an end since."""
    # A forked child has only copies, of which its engine knows nothing.
    _abandoned[:] = [
        each for each in _abandoned if each.process != os.getpid() or not each.has_ended()
    ]


class ProcessGroup(Group):
    """A group whose members are processes; subclasses say how to add up numbers among them."""

    def __init__(self, rank: int, size: int, timeout: float, block: int = 512) -> None:
        super().__init__()
        if not 0 < timeout < 3.2e7:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
        self.timeout: float = float(timeout)
        self.broken: str = ""
        self._broken_rank: int | None = None
        self._rank, self._size = rank, size
        self._roll = RollCall(rank, size, self.timeout)
        self._block = block
        self._calls = Calls()
        self._exchanges = 0
        self._shifts: dict[tuple[int, int], Float64Array] = {}
        self._room = ROOM
        self._at = Header(-1, 0, "forward", 0, "float32")
        self._message = ""
        self._stuck = False  # whether the engine has an exchange that did not end
        self._began = time.monotonic()  # the latest exchange
        self._process = os.getpid()
        forget_ended()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._size

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self._rank

    # --- the engine -------------------------------------------------------------------------------

    @abc.abstractmethod
    def _start_sum(self, buffer: Float64Array) -> Any:
        """Begin to add up `buffer` over all ranks, in place."""

    @abc.abstractmethod
    def _is_done(self, request: Any) -> bool:
        """Whether that has ended. Raises what the engine does where it failed."""

    def _abandon(self, request: Any, buffer: Float64Array) -> None:
        """Keep the buffer that the engine may still write to, and start nothing more."""
        self._stuck = True
        _abandoned.append(Abandoned(self._end_of(request), buffer, self._process))

    def _end_of(self, request: Any) -> Callable[[], bool]:
        """Give what says whether `request` has ended, without holding the group; here: never."""
        return lambda: False

    def _release(self) -> None:
        """Tell the others, and give back what the engine has; see `Group`."""
        if os.getpid() != self._process:  # a forked child has none of it
            return
        if self._works() and not self.broken and not self._stuck:
            self._roll.close(self._exchanges)
        self._give_up()
        forget_ended()

    def _works(self) -> bool:
        """Whether the engine has not been ended."""
        return True

    def _give_up(self) -> None:
        """Give back what the engine has, or leave it for when all ranks have."""

    # --- the protocol -----------------------------------------------------------------------------

    def begin(self, layer: Any) -> tuple[int, int]:
        """Count a forward call; see `Group`."""
        self.check_open()
        number, step, first = self._calls.begin(layer)
        if first and len(self._shifts) >= self._room:
            # Of layers that died: no number is given twice.
            alive = self._calls.numbers() | {-1}
            self._shifts = {key: mean for key, mean in self._shifts.items() if key[0] in alive}
            self._room = max(ROOM, 2 * len(self._shifts))
        return number, step

    def _exchange(self, header: Header, count: float, rows: Rows) -> Merged:
        self._open(header)
        if count == 0:
            rows = np.zeros(header.channels), np.zeros(header.channels), None
        low = None
        if header.direction != "forward":
            total, first, second = self._sum(header, count, *rows[:2])
        else:
            total, first, second, low = self._moments(header, count, *rows)
        self._exchanges += 1
        return Merged(total, first, second, self._exchanges, self.size == 1, low)

    def _moments(
        self, header: Header, count: float, mean: Float64Array, m2: Float64Array, low: Any
    ) -> tuple[float, Float64Array, Float64Array, Float64Array | None]:
        """Merge Moments by one sum, or by two where the first cancels."""
        key = (header.layer, header.channels)
        of_float64 = header.dtype == "float64"
        cancelled = CANCELLED_OF_FLOAT64 if of_float64 else CANCELLED
        shift = self._shifts.get(key)
        if shift is None:
            shift = np.zeros(header.channels)
        with np.errstate(all="ignore"):  # of NaN and infinities in the data
            for last in (False, True):
                d = mean - shift if count else mean  # or zeros
                if of_float64 and low is not None:
                    d += low
                first = count * d
                total, s1, s2 = self._sum(header, count, first, first * d + m2)
                drift = s1 / (total or 1)
                lost = s1 * drift
                merged_m2 = np.maximum(s2 - lost, 0.0)
                merged_mean, merged_low = two_sum(shift, drift)
                if last or not (lost > cancelled * merged_m2).any():
                    break
                shift = finite(merged_mean)
            if total:
                self._shifts[key] = finite(merged_mean)
        return total, merged_mean, merged_m2, merged_low if of_float64 else None

    def fail(self, message: str) -> None:
        """Tell the other ranks, when they come, that this one cannot go on.

        It waits for them, for the time-out at most.

        Parameters
        ----------
        message : str
            Why.
        """
        if self.broken or self.closed:  # another message would not be understood
            return
        self._message = message
        why = Verdict(f"rank {self.rank} {message}", self.rank)
        try:
            if self._stuck:  # as after Ctrl-C: the engine takes nothing more, but the board does
                why = self._roll.decide(*why)
                return
            self._began = time.monotonic()
            self._roll.cannot_go_on(message)
            buffer = np.zeros(HEAD + 2 * self._block)
            buffer[HEAD - 2] = 1.0
            self._run(buffer)
            why = self._say_what_is_wrong()
        except GroupError:  # not all have come: this member's own error says enough
            pass
        finally:
            if not self.broken:
                self.broken, self._broken_rank = why

    def __enter__(self) -> ProcessGroup:
        """Announce errors of the body to the other ranks, and that this one leaves."""
        self.check_open()
        self._roll.enter()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and not isinstance(error, GroupError):
            self.fail(error_text(error))
        tell = error is None and not self.broken and not self.closed
        self._roll.leave(self._exchanges, tell=tell)

    # --- sums -------------------------------------------------------------------------------------

    def _open(self, header: Header) -> None:
        """Begin an exchange, unless the others have given it up."""
        self._at = header
        if self.closed:
            raise error_of(header, CLOSED)
        if self.broken:
            raise self._error(self.broken, self._broken_rank)
        now = time.monotonic()
        # They cannot have waited for longer than since this rank came to the latest one.
        if now - self._began > self._roll.grace:
            verdict = self._roll.look(self._exchanges + 1, 0.0, PATIENCE)
            if verdict is not None:
                raise self._error(*verdict)
        self._began = now

    def _sum(
        self, header: Header, count: float, first: Float64Array, second: Float64Array
    ) -> tuple[float, Float64Array, Float64Array]:
        block = min(header.channels, self._block)
        numbers = numbers_of(header)
        numbers += [number * number for number in numbers]
        buffer = np.zeros(HEAD + 2 * self._block)
        buffer[:HEAD] = [*numbers, 0, count]
        parts = [buffer[at : at + block] for at in (HEAD, HEAD + self._block)]
        parts[0][:], parts[1][:] = first[:block], second[:block]
        self._run(buffer)
        *sums, failed, total = buffer[:HEAD].tolist()
        if failed or sums != [self.size * number for number in numbers]:
            raise self._error(*self._say_what_is_wrong())
        if header.channels > block:
            rest = np.concatenate([first[block:], second[block:]])
            self._run(rest)
            rests = rest[: header.channels - block], rest[header.channels - block :]
            parts = [np.concatenate(pair) for pair in zip(parts, rests, strict=True)]
        return amount_of(total, "count"), parts[0], parts[1]

    def _run(self, buffer: Float64Array) -> None:
        """Start a sum, and wait for it; whatever goes wrong is a `GroupError`."""
        request = None
        try:
            request = self._start_sum(buffer)
            began = time.monotonic()
            next_look = self._began + self._roll.interval
            while not self._is_done(request):
                now = time.monotonic()
                if now > next_look:
                    verdict = self._roll.look(self._exchanges + 1, now - self._began)
                    if verdict is not None:
                        raise self._error(*verdict)
                    next_look = now + self._roll.interval
                # Messages among processes of one machine take microseconds: look at first, and let
                # others have the core, perhaps the process that this one waits for.
                if now - began > 0.002:
                    time.sleep(min(0.001, (now - began) / 20))
                elif now - began > 20e-6:
                    let_others_run()
        except BaseException as error:
            self._abandon(request, buffer)
            if isinstance(error, GroupError) or not isinstance(error, Exception):
                raise
            # Whatever the engine raises: a rank that died, mostly.
            raise self._failure(str(error)) from error

    def _failure(self, text: str) -> GroupError:
        """Find which rank made the engine fail with this text."""
        failed = time.monotonic()
        while True:
            now = time.monotonic()
            verdict = self._roll.look_after_failure(
                self._exchanges + 1, now - self._began, now - failed, text
            )
            if verdict is not None:
                return self._error(*verdict)
            time.sleep(0.005)

    def _say_what_is_wrong(self) -> Verdict:
        """Find reason and rank in the call of each rank; all ranks come here together."""
        text = "{} {} {} {} {}|".format(*self._at[:5]) + self._message
        said = np.frombuffer(text.encode()[:TEXT], np.uint8)
        rows = np.zeros((self.size, TEXT))  # of which each rank has one; the sum has all
        rows[self.rank, : said.size] = said
        self._run(rows)
        texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows.astype(np.uint8)]
        calls, messages = zip(*(each.split("|", 1) for each in texts), strict=True)
        for rank, message in enumerate(messages):
            if message:
                return Verdict(f"rank {rank} {message}", rank)
        for rank, call in enumerate(calls):
            if call != calls[0]:
                got = _core.difference(fields_of(call), fields_of(calls[0]))
                return Verdict(f"rank {rank} differs from rank 0: {got}", rank)
        return Verdict("the ranks disagree", None)

    def _error(self, reason: str, rank: int | None = None) -> GroupError:
        if not self.broken:
            self.broken, self._broken_rank = reason, rank
        return error_of(self._at, reason, rank)

    def __repr__(self) -> str:
        """Give the rank, the size, and what broke the group."""
        state = f", broken: {self.broken}" if self.broken else ""
        state = ", closed" if self.closed else state
        return f"<bnext.sync.{type(self).__name__}: rank {self.rank} of {self.size}{state}>"


def finite(values: Float64Array) -> Float64Array:
    """Copy `values`, with 0 in place of NaN and infinity."""
    result = np.array(values)
    if not math.isfinite(values @ values):  # the cheapest way to see whether there are any
        result[~np.isfinite(values)] = 0.0
    return result


def numbers_of(header: Header) -> list[int]:
    """Give the fields of a header as numbers, small enough that sums of their squares are exact."""
    direction = DIRECTIONS.index(header.direction)
    dtype = DTYPES.index(header.dtype)
    numbers = (header.layer + 1, header.step, direction, header.channels, dtype)
    return [number % MODULUS for number in numbers]


def fields_of(call: str) -> tuple[int, int, str, int, str]:
    """Read the fields of a header that a rank has sent in words."""
    layer, step, direction, channels, dtype = call.split()
    return int(layer), int(step), direction, int(channels), dtype
