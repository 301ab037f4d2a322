"""Timing of calls that several members make together, in turns that all of them take."""

import math

from benchmarks.kit import turns
from benchmarks.kit.turns import turn_of
from bnext.bench.timing import MOST_TURNS, SHORTEST_TURN

FEWEST_TURNS = 5
TRIALS = 3


def in_turns(bodies, share, seconds):
    """Time the calls in turns, forwards and then backwards, so that a drift meets all of them.

    Every member calls this with bodies of the same names; the times are those of its own clock.

    Parameters
    ----------
    bodies : mapping of str to callable
        What is compared. Each call waits for all members.
    share : callable
        Gives all members the value of rank 0, which so decides how often everybody calls.
    seconds : float
        To be spent in all; five turns are taken at least.

    Returns
    -------
    dict of str to Timing
        Of one call, over the turns.
    """
    trial = {}
    for name, body in bodies.items():
        body()  # what happens once: connections, caches
        trial[name] = turn_of(body, TRIALS)
    repeats, number = share(plan(trial, seconds))

    def sample(name):
        return turn_of(bodies[name], repeats[name])

    return turns.in_turns(bodies, 0.0, sample=sample, fewest=number, most=number).timings()


def plan(trial, seconds):
    """Calls in a turn of each, so that the clock is exact, and the number of turns."""
    repeats = {name: max(1, math.ceil(SHORTEST_TURN / took)) for name, took in trial.items()}
    once = sum((repeats[name] + 1) * took for name, took in trial.items())
    return repeats, min(MOST_TURNS, max(FEWEST_TURNS, round(seconds / once)))
