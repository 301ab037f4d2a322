"""Turns: calls that are compared take turns, so that a drift of the machine meets all of them."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.kit.documents import packed, rounded
from bnext.bench.timing import Timing

FEWEST_TURNS, MOST_TURNS = 5, 60
SHORTEST_TURN = 5e-3  # seconds: shorter calls are repeated more often than
FEWEST_CALLS = 2


@dataclass(frozen=True)
class Turns:
    """Seconds of one call of each, turn by turn."""

    samples: dict

    def timings(self):
        """For each the median, the 10th and 90th percentile, and the turns."""
        return {name: Timing.of(times) for name, times in self.samples.items()}

    def packed(self):
        """The same in types of JSON."""
        return {name: packed(timing) for name, timing in self.timings().items()}

    def ratio(self, one, other):
        """How many times as long `one` takes as `other`: the median over the turns, p10 and p90.

        Of turns next to each other, which the work of others on the machine mostly meets both.
        """
        pairs = zip(self.samples[one], self.samples[other], strict=True)
        return [rounded(v) for v in np.percentile([a / b for a, b in pairs], [50, 10, 90])]

    def saved_share(self, one, other):
        """The share of `one`'s time that `other` does without, by the same turns."""
        pairs = zip(self.samples[one], self.samples[other], strict=True)
        return statistics.median(1 - b / a for a, b in pairs)


def orders(names, fewest, most, is_over):
    """The names in the order of each turn, every other turn backwards.

    There are at least `fewest` turns, and then as many as begin before `is_over()`.
    """
    names = list(names)
    for turn in range(most):
        if turn >= fewest and is_over():
            return
        yield names if turn % 2 == 0 else names[::-1]


def in_turns(calls, seconds, *, sample=None, fewest=FEWEST_TURNS, most=MOST_TURNS):
    """Time `calls` in turns, forwards and then backwards, until `seconds` are spent.

    A turn is several calls, and one before them that is not timed.

    Parameters
    ----------
    calls : mapping of str to callable
    seconds : float
        In all; `fewest` turns are taken at least.
    sample : callable, optional
        Gives a sample of the call of a name. By default, the seconds of one of several calls.

    Returns
    -------
    Turns
    """
    if sample is None:
        repeats = {name: _repeats(call) for name, call in calls.items()}

        def sample(name):
            return turn_of(calls[name], repeats[name])

    samples = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for order in orders(calls, fewest, most, lambda: time.perf_counter() > end):
        for name in order:
            calls[name]()  # the first one feels the call before it
            samples[name].append(sample(name))
    return Turns(samples)


def _repeats(call):
    call()  # what happens once: memory, caches, the choice of algorithms
    return max(FEWEST_CALLS, round(SHORTEST_TURN / min(turn_of(call, 1), turn_of(call, 1))))


def turn_of(call, repeats):
    """Seconds of one of so many calls."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats
