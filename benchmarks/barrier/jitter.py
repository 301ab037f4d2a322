"""How much equal work differs in time: what members wait for at every barrier.

A thread does the same small training step over and over. Neighbouring steps are taken together to
longer and longer segments of work. Of each length: the standard deviation, and by how much the
longest of k segments exceeds the mean, for k = 2, 4, 8, ...
"""

import time

import numpy as np

import bnext
from benchmarks.kit.documents import rounded

SHAPE = (4, 64, 14, 14)
FEWEST_BLOCKS = 16  # of k segments each, for a mean of their longest
FEWEST_SEGMENTS = 128
WARM = 200


def measure(seconds):
    """Rows for lengths in powers of two, as far as the time reaches."""
    return summary(durations(seconds))


def durations(seconds):
    """Seconds of each of many equal steps, by one thread."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    layer = bnext.BatchNorm2d(SHAPE[1])
    before = bnext.get_num_threads()
    bnext.set_num_threads(1)
    try:
        for _ in range(WARM):
            layer(x)
            layer.backward(x)
        marks = [time.perf_counter()]
        while marks[-1] - marks[0] < seconds:
            layer(x)
            layer.backward(x)
            marks.append(time.perf_counter())
    finally:
        bnext.set_num_threads(before)
    return np.diff(marks)


def summary(steps):
    """Rows of segments that are sums of neighbouring steps."""
    rows, length = [], 1
    while len(steps) // length >= FEWEST_SEGMENTS:
        whole = len(steps) // length * length
        segments = steps[:whole].reshape(-1, length).sum(axis=1)
        rows.append(
            {
                "seconds": rounded(segments.mean()),
                "segments": len(segments),
                "std": rounded(segments.std()),
                "excess": excess(segments),
            }
        )
        length *= 2
    return rows


def excess(segments):
    """[k, by how much the longest of k exceeds the mean], for all k that there are blocks for."""
    found, k = [], 2
    while len(segments) // k >= FEWEST_BLOCKS:
        # Blocks of segments that are far from each other: ranks do not share a disturbance.
        blocks = segments[: len(segments) // k * k].reshape(k, -1)
        found.append([k, rounded(blocks.max(axis=0).mean() - segments.mean())])
        k *= 2
    return found


def addition(turns=200):
    """Seconds to add a byte of float64 in a cache, as the hops of a sum over ranks do."""
    ours, theirs = np.zeros((2, 8192))
    best = []
    for _ in range(turns):
        began = time.perf_counter()
        for _ in range(10):
            np.add(ours, theirs, out=ours)
        best.append((time.perf_counter() - began) / 10)
    return rounded(float(np.median(best)) / ours.nbytes)
