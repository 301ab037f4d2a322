"""Rows of measurements, and the JSON document that holds all of them."""

import json
import os

FORMAT, VERSION = "bnext barrier", 1
DIGITS = 4  # more would be noise
# What was timed; bytes that bnext sends; how much equal work differs in time; what is not there.
LISTS = ("rows", "messages", "jitter", "skipped")


def usable_processors():
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row(what, engine, ranks, timings, **more):
    """What JSON holds of one comparison: times as [median, p10, p90, turns]."""
    seconds = {name: packed(timing) for name, timing in timings.items()}
    return {"what": what, "engine": engine, "ranks": ranks, **more, "seconds": seconds}


def packed(timing):
    times = (rounded(value) for value in (timing.median, timing.p10, timing.p90))
    return [*times, timing.turns]


def rounded(value):
    return float(f"{value:.{DIGITS}g}")


def document(environment, assumptions, **lists):
    """A results document: the environment, the assumptions of the prediction, and the lists."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": environment,
        "assumptions": assumptions,
        **{name: lists.get(name, []) for name in LISTS},
    }


def median(found, name):
    """Seconds of a row."""
    return found["seconds"][name][0]


def select(document, **wanted):
    """Rows with these values, in order."""
    return [r for r in document["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def fits_processors(document, found):
    """Whether each member had a processor of its own."""
    return found["ranks"] <= document["environment"]["usable_processors"]


def read(path):
    """Read a document, or say what is wrong with it."""
    found = json.loads(path.read_text())
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"{path}: expected results of the barrier, version {VERSION}")
    return found
