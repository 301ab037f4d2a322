"""Rows of measurements, and the JSON document that holds all of them."""

import os

from benchmarks.kit.documents import Format, all_packed

# What was timed; bytes that bnext sends; how much equal work differs in time; what is not there.
FORMAT = Format("bnext barrier", "the barrier", ("rows", "messages", "jitter", "skipped"))


def usable_processors():
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row(what, engine, ranks, timings, **more):
    """What JSON holds of one comparison: times as [median, p10, p90, turns]."""
    about = {"what": what, "engine": engine, "ranks": ranks, **more}
    return {**about, "seconds": all_packed(timings)}


def median(found, name):
    """Seconds of a row."""
    return found["seconds"][name][0]


def select(document, **wanted):
    """Rows with these values, in order."""
    return [r for r in document["rows"] if all(r.get(k) == v for k, v in wanted.items())]


def fits_processors(document, found):
    """Whether each member had a processor of its own."""
    return found["ranks"] <= document["environment"]["usable_processors"]
