"""A group whose members take turns: one batch in pieces, one piece at a time, in one thread.

Threads that hold parts of a batch wait for each other in every call of a layer. One thread that has
all parts cannot wait; but it can run a part until the call whose statistics are not known, leave it
there, and run the next. When all parts have come to the call, its statistics are those of the whole
batch, and in the next round every part gets through it: by being run again from the start
(memory for compute), or, for forward passes, by going on where it was left (compute for memory).
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnext._moments import Moments
from bnext.groups.exchange import Header, Merged, Rows
from bnext.groups.group import Group, Part
from bnext.inference.layers import PassGroup
from bnext.layers import BatchNorm

__all__ = ["ReplayGroup", "Turn", "drop", "greenlets"]

ITEM_SIZES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


class Stopped(BaseException):
    """Ends a turn at a call whose result is not known yet; no Exception, so that few catch it."""

    def __init__(self) -> None:
        super().__init__("a pass ends here early, at a layer whose statistics are not known yet")


class Point(NamedTuple):
    """A call that all members have come to, and what they get from it."""

    header: Header
    merged: Merged


def greenlets() -> Any:
    """Find the library that leaves a call where it is; None where it is not installed."""
    try:
        import greenlet
    except ImportError:
        return None
    return greenlet


class ReplayGroup(PassGroup):
    """The pieces of one batch as members that come one after the other.

    A piece counts as a batch of `PassGroup`.
    """

    def __init__(self, layers: Sequence[BatchNorm], inner: Group | None, *, once: bool) -> None:
        super().__init__(layers, inner, once=once)
        self.points: list[Point] = []
        self._parts: dict[Any, Part] = {}  # of the whole batch, in calls of the inner group
        self._turn = Turn(self, lambda: None)
        self._turns = 0  # of this round
        self._stops = 0
        self._header: Header | None = None
        self._union: Any = None  # of what was brought: Moments; or count and sums

    @property
    def size(self) -> int:
        """How many pieces there were in this round so far."""
        return self._turns

    # --- rounds -----------------------------------------------------------------------------------

    def start(self, turn: Turn) -> None:
        """Make it the turn of one piece, from its start or from where it was left."""
        self._turn = turn
        self._calls = turn.calls
        self._turns += 1

    def end_round(self) -> bool:
        """Make what was brought known; False if all pieces came to their end."""
        turns, stops, header = self._turns, self._stops, self._header
        self._turns = self._stops = 0
        if header is None:
            return False
        if stops < turns:
            raise ValueError(
                f"network: expected the same calls for every batch, got {text_of(header)} for "
                f"{stops} of {turns} batches"
            )
        self.points.append(Point(header, self._merged(header)))
        self._header = self._union = None
        return True

    def _merged(self, header: Header) -> Merged:
        """Merge what all pieces brought with what other members of the inner group have."""
        union, call = self._union, header[:2]
        if header.direction == "forward":
            part = self._parts[call] = self.inner_part(header.layer)
            mean, m2 = np.array(union.mean), np.array(union.m2)
            merged = part.merge_moments(header.dtype, union.count, mean, m2, union.mean_low)
        elif self._inner is None:
            merged = Merged(union[0], union[1], union[2], 0, False)
        else:
            merged = self._parts[call].merge_sums(*union[1:])
        if merged.shared and self._inner is not None and self._inner.size > 1 and not self._once:
            raise RuntimeError(
                f"layers[{header.layer}]: expected a replica for each member of the group, got a "
                "layer that members share, which has the gradients of one of them"
            )
        return merged._replace(generation=len(self.points) + 1, shared=False)

    # --- the calls of a piece ---------------------------------------------------------------------

    def part(self, layer: Any) -> Part:
        """Begin a forward call; see `Group`."""
        return PieceOfCall(self, layer)

    def recalled(self, header: Header) -> Merged | None:
        """Give what the call gave in an earlier round; None if there was none."""
        turn = self._turn
        if turn.cursor >= len(self.points):
            return None
        point = self.points[turn.cursor]
        check_same_call(header, point.header)
        turn.cursor += 1
        return point.merged

    def _exchange(self, header: Header, count: float, rows: Rows) -> Merged:
        """Merge in the order of pieces, and leave the piece at a call that no point is known of."""
        if header.direction == "double_backward":
            raise RuntimeError(
                "network: expected forward and backward passes in pieces of a batch, got a double "
                "backward pass"
            )
        recalled = self.recalled(header)
        if recalled is not None:
            return recalled
        if self._header is not None:
            check_same_call(header, self._header)
        self._header = header
        if header.direction == "forward":
            brought = Moments(count, *rows)
            if self._once and self.leaves_out(header.layer, brought):
                brought = Moments.empty(header.channels)
            self._union = brought if self._union is None else self._union + brought
        else:
            union = self._union or (0, np.zeros(header.channels), np.zeros(header.channels))
            if count:
                with np.errstate(all="ignore"):  # as the kernels do of NaN and overflow
                    union = (union[0] + count, union[1] + rows[0], union[2] + rows[1])
            self._union = union
        self._stops += 1
        turn = self._turn
        turn.bytes = int(count) * header.channels * ITEM_SIZES[header.dtype]
        turn.leave()
        turn.cursor += 1  # it goes on
        return self.points[turn.cursor - 1].merged


class PieceOfCall(Part):
    """The part of a piece in a call, whose result an earlier round may have."""

    __slots__ = ()
    group: ReplayGroup
    recalls = True

    def recalled(self, channels: int, dtype: str, count: float) -> Merged | None:
        """See `Part`; then the exchange counts as made."""
        self.header = self.header._replace(channels=channels, dtype=dtype)
        self.count = count
        return self.group.recalled(self.header)


class Turn:
    """One piece on its way through the network, which `run` sends it through."""

    def __init__(self, group: ReplayGroup, run: Callable[[], Any]) -> None:
        self.calls: dict[int, int] = {}
        self.cursor = 0  # how many calls it is through
        self.bytes = 0  # of the input of the call that it stopped at
        self.ended: bool = False
        self.result: Any = None
        self._group = group
        self._run = run
        self._greenlet: Any = None
        self._held = False
        self._stopped = False

    def go_on(self, *, hold: bool) -> None:
        """Run to the next call that is not known, or to the end; `hold` it there or give it up."""
        self._group.start(self)
        self._held = hold
        if self._greenlet is None and not hold:
            self._to_the_end()
            return
        if self._greenlet is None:
            self._greenlet = greenlets().greenlet(self._to_the_end)
            self._greenlet.gr_context = contextvars.copy_context()
        self._greenlet.switch()

    def _to_the_end(self) -> None:
        try:
            self.result = self._run()
        except Stopped:
            return
        if self._stopped:
            raise RuntimeError(
                "network: expected it to let an exception pass that ends a pass early, got one "
                "that goes on (a bare `except:`, or `return` in a `finally:`)"
            )
        self.ended = True

    def leave(self) -> None:
        """Stop here: come back from this when the others have come as far, or never."""
        if not self._held:
            self._stopped = True
            raise Stopped
        self._greenlet.parent.switch()

    def drop(self) -> None:
        """Give up a piece that is held."""
        if self._greenlet is not None and not self._greenlet.dead:
            self._stopped = True
            self._greenlet.throw(Stopped)


def drop(turns: list[Turn]) -> None:
    """Give up all of them, and empty the list; raise the first error of what they run then."""
    errors: list[BaseException] = []
    while turns:
        try:
            turns.pop().drop()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]


def check_same_call(got: Header, expected: Header) -> None:
    """ValueError where two pieces do not do the same."""
    if got[:5] != expected[:5]:
        raise ValueError(
            f"network: expected the same calls for every batch, got {text_of(got)} where others "
            f"had {text_of(expected)}"
        )


def text_of(header: Header) -> str:
    """Name a call."""
    return (
        f"layers[{header.layer}] {header.direction} with {header.channels} channels of "
        f"{header.dtype}"
    )
