"""Timing of several calls in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Call = Callable[[], object]

# Long enough for the clock, and for some hundred repeats of a call of microseconds.
SHORTEST_TURN = 2e-3
FEWEST_TURNS = 3
MOST_TURNS = 50


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median over the turns, the 10th and 90th percentile, the quickest."""

    median: float
    p10: float
    p90: float
    turns: int
    best: float = field(default=math.nan, compare=False)

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarize the seconds of each turn."""
        p10, median, p90 = np.percentile(seconds, [10, 50, 90])
        return cls(float(median), float(p10), float(p90), len(seconds), float(min(seconds)))


def alternate(
    calls: Mapping[str, Call], seconds: float, fewest: int = FEWEST_TURNS
) -> dict[str, Timing]:
    """Time `calls` in turns, forwards and then backwards, so that a drift meets all of them.

    Dropping the result is part of a call's time. Calls have equal shares of the `seconds` in all; a
    call ends once it has used its share and had `fewest` turns.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    share = seconds / len(calls)
    for turn in range(MOST_TURNS):
        names = [name for name in calls if turn < fewest or spent[name] < share]
        if not names:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            took = _turn(calls[name], repeats[name])
            spent[name] += took
            samples[name].append(took / repeats[name])
    return {name: Timing.of(values) for name, values in samples.items()}


def _repeats(call: Call) -> int:
    first = _turn(call, 1)  # may include the start of threads and cold caches
    if first > 50 * SHORTEST_TURN:
        return 1
    return max(1, math.ceil(SHORTEST_TURN / _turn(call, 1)))


def _turn(call: Call, repeats: int) -> float:
    if repeats > 1:
        call()  # not timed: the call before may leave other caches and spinning threads
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - begin
