"""Times that are compared: calls in turns, and ratios of neighbouring turns."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

FEWEST_TURNS, MOST_TURNS = 5, 60
SHORTEST_TURN = 5e-3  # seconds: shorter calls are repeated more often than
FEWEST_CALLS = 2
DIGITS = 4  # more would be noise


@dataclass(frozen=True)
class Turns:
    """Seconds of one call of each, turn by turn."""

    samples: dict

    def packed(self):
        """What JSON holds: for each the median, the 10th and 90th percentile, and the turns."""
        return {name: [*_spread(times), len(times)] for name, times in self.samples.items()}

    def ratio(self, one, other):
        """How many times as long `one` takes as `other`: the median over the turns, p10 and p90.

        Of turns next to each other, which the work of others on the machine mostly meets both.
        """
        pairs = zip(self.samples[one], self.samples[other], strict=True)
        return _spread([a / b for a, b in pairs])

    def saved_share(self, one, other):
        """How much of `one`'s time `other` does without, likewise."""
        pairs = zip(self.samples[one], self.samples[other], strict=True)
        return statistics.median(1 - b / a for a, b in pairs)


def in_turns(calls, seconds):
    """Time `calls` in turns, forwards and then backwards, until `seconds` are spent.

    A turn is several calls, and one before them that is not timed.

    Parameters
    ----------
    calls : mapping of str to callable
    seconds : float
        In all; five turns are taken at least.

    Returns
    -------
    Turns
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for turn in range(MOST_TURNS):
        if turn >= FEWEST_TURNS and time.perf_counter() > end:
            break
        for name in calls if turn % 2 == 0 else reversed(calls):
            calls[name]()  # the first one feels what came before
            samples[name].append(_turn(calls[name], repeats[name]))
    return Turns(samples)


def _repeats(call):
    call()  # what happens once: memory, caches, the choice of algorithms
    return max(FEWEST_CALLS, round(SHORTEST_TURN / min(_turn(call, 1), _turn(call, 1))))


def _turn(call, repeats):
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _spread(values):
    return [float(f"{v:.{DIGITS}g}") for v in np.percentile(values, [50, 10, 90])]
