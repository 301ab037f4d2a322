"""Timing of calls that several members make together, in turns that all of them take."""

import math
import time

from bnext.bench.timing import MOST_TURNS, SHORTEST_TURN, Timing

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
        trial[name] = _turn(body, TRIALS)
    repeats, turns = share(plan(trial, seconds))
    samples = {name: [] for name in bodies}
    for turn in range(turns):
        for name in bodies if turn % 2 == 0 else reversed(bodies):
            bodies[name]()  # a short call would feel what came before
            samples[name].append(_turn(bodies[name], repeats[name]))
    return {name: Timing.of(found) for name, found in samples.items()}


def plan(trial, seconds):
    """Calls in a turn of each, so that the clock is exact, and the number of turns."""
    repeats = {name: max(1, math.ceil(SHORTEST_TURN / took)) for name, took in trial.items()}
    once = sum((repeats[name] + 1) * took for name, took in trial.items())
    return repeats, min(MOST_TURNS, max(FEWEST_TURNS, round(seconds / once)))


def _turn(body, repeats):
    began = time.perf_counter()
    for _ in range(repeats):
        body()
    return (time.perf_counter() - began) / repeats
