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
from bnext.groups.exchange import Float64Array, Header, Merged
from bnext.groups.group import Group, Part
from bnext.inference.layers import called_twice
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


class ReplayGroup(Group):
    """The pieces of one batch as members that come one after the other.

    Parameters
    ----------
    layers : sequence of BatchNorm
        Those that pieces meet in; errors call them by their place here.
    inner : Group, optional
        A group of which the whole batch is this caller's shard.
    once : bool
        Whether a layer that a piece calls twice is an error.
    """

    recalls = True

    def __init__(self, layers: Sequence[BatchNorm], inner: Group | None, *, once: bool) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._places = {id(layer): place for place, layer in enumerate(layers)}
        self._layers = layers
        self._inner = inner
        self._parts: dict[Any, Part] = {}  # of the whole batch, in calls of the inner group
        self._once = once
        self._turn = Turn(self, lambda: None)
        self._turns = 0  # of this round
        self._stops = 0
        self._header: Header | None = None
        self._union: Any = None

    @property
    def size(self) -> int:
        """How many pieces there were in this round so far."""
        return self._turns

    @property
    def rank(self) -> int:
        """0: a layer keeps what one piece needs, that whose turn it is."""
        return 0

    # --- rounds -----------------------------------------------------------------------------------

    def start(self, turn: Turn) -> None:
        """Make it the turn of one piece, from its start or from where it was left."""
        self._turn = turn
        self._turns += 1

    def end_round(self) -> bool:
        """Make what was brought known; False if all pieces came to their end."""
        turns, stops, header = self._turns, self._stops, self._header
        self._turns = self._stops = 0
        if stops == 0:
            return False
        assert header is not None
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
        place, call = header.layer, header[:2]
        forward = header.direction == "forward"
        if forward:
            union = self._union
            count, first, second, low = union.count, union.mean, union.m2, union.mean_low
        else:
            (count, first, second), low = self._union, None
        merged = Merged(count, np.array(first), np.array(second), 0, False, low)
        if self._inner is not None and forward:
            part = self._parts[call] = self._inner.part(self._layers[place])
            merged = part.merge_moments(header.dtype, *merged[:3], low)
        elif self._inner is not None:
            merged = self._parts[call].merge_sums(*merged[1:3])
        if merged.shared and self._inner is not None and self._inner.size > 1 and not self._once:
            raise RuntimeError(
                f"layers[{place}]: expected a replica for each member of the group, got a layer "
                "that members share, which has the gradients of one of them"
            )
        return merged._replace(generation=len(self.points) + 1, shared=False)

    # --- the calls of a piece ---------------------------------------------------------------------

    def begin(self, layer: Any) -> tuple[int, int]:
        """Give the layer's place among `layers`, and how often this piece has called it before."""
        place = self._places[id(layer)]
        step = self._turn.calls.get(place, 0)
        self._turn.calls[place] = step + 1
        if step and self._once:
            raise called_twice(place)
        return place, step

    def recalled(self, header: Header) -> Merged | None:
        """Give what the call gave in an earlier round; None if there was none."""
        turn = self._turn
        if turn.cursor >= len(self.points):
            return None
        point = self.points[turn.cursor]
        if not same_call(point.header, header):
            raise self._differs(header, point.header)
        turn.cursor += 1
        # Whoever gets it may mark it read-only, or keep it.
        return point.merged

    def merge_moments(
        self,
        header: Header,
        count: int,
        mean: Float64Array,
        m2: Float64Array,
        mean_low: Float64Array | None = None,
    ) -> Merged:
        """Merge Moments in the order of pieces; see `Group`."""
        recalled = self.recalled(header)
        if recalled is not None:
            return recalled
        brought = Moments(count, mean, m2, mean_low)
        union = brought if self._union is None else self._union + brought
        return self._stop(header, union, count)

    def merge_sums(
        self, header: Header, count: int, sum_dy: Float64Array, sum_dy_xmu: Float64Array
    ) -> Merged:
        """Add up sums in the order of pieces; see `Group`."""
        recalled = self.recalled(header)
        if recalled is not None:
            return recalled
        union = self._union or (0, 0.0, 0.0)
        if count:
            with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
                union = (union[0] + count, union[1] + sum_dy, union[2] + sum_dy_xmu)
        elif self._union is None:
            union = (0, np.zeros(header.channels), np.zeros(header.channels))
        return self._stop(header, union, count)

    def _stop(self, header: Header, union: Any, count: int) -> Merged:
        """Leave the piece at this call, which no point is known of."""
        if self._header is not None and not same_call(self._header, header):
            raise self._differs(header, self._header)
        self._header, self._union = header, union
        self._stops += 1
        turn = self._turn
        turn.bytes = count * header.channels * ITEM_SIZES[header.dtype]
        turn.leave()
        turn.cursor += 1  # it goes on
        return self.points[turn.cursor - 1].merged

    def _differs(self, got: Header, expected: Header) -> ValueError:
        return ValueError(
            f"network: expected the same calls for every batch, got {text_of(got)} where others "
            f"had {text_of(expected)}"
        )

    def fail(self, message: str) -> None:
        """Tell nobody: there is no other member that waits."""


class Turn:
    """One piece on its way through the network.

    Parameters
    ----------
    group : ReplayGroup
        Where it meets the others.
    run : callable
        What is done with the piece.
    """

    def __init__(self, group: ReplayGroup, run: Callable[[], Any]) -> None:
        self.calls: dict[int, int] = {}
        self.cursor = 0  # how many calls it is through
        self.bytes = 0  # of the input of the call that it stopped at
        self.ended = False
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


def same_call(one: Header, other: Header) -> bool:
    """Whether two pieces do the same."""
    return one[:5] == other[:5]


def text_of(header: Header) -> str:
    """Name a call."""
    return (
        f"layers[{header.layer}] {header.direction} with {header.channels} channels of "
        f"{header.dtype}"
    )
