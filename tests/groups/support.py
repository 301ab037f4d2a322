"""Batches cut into shards, and members that run in threads."""

import threading
import time

import numpy as np

import bnext

from ..limits import NEVER, WIDE

# How a batch of n examples is cut, as shares: equal, unequal, with one example, empty ones.
CUTS = {
    "equal": lambda n: [n * r // 3 for r in (1, 2)],
    "unequal": lambda n: [min(1, n), min(1 + n // 4, n)],
    "empty-first": lambda n: [0, n // 2],
    "empty-in-between": lambda n: [n // 2, n // 2],
    "all-in-the-last": lambda n: [0, 0],
}


def batch_axis(case):
    return 1 if case.channel_axis % len(case.shape) == 0 else 0


def shards_of(array, cut, axis=0):
    """Views of `array`: three shards along `axis`."""
    return np.split(array, CUTS[cut](array.shape[axis]), axis)


def whole(parts, axis=0):
    return np.concatenate(list(parts), axis)


def members(group, body, patience=WIDE):
    """What `body(rank)` returned or raised in threads of the caller's own, in order of ranks.

    A thread that has not ended after `patience` seconds fails the test: it hangs.
    """

    def member(rank):
        with group.member(rank):
            return body(rank)

    return in_threads(member, group.size, patience)


def in_threads(body, size, patience=WIDE):
    """As `members`, of ranks without a group of threads."""
    results = {}

    def work(rank):
        try:
            results[rank] = body(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    hanging = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    assert not hanging, f"ranks {hanging} hang"
    return [results[rank] for rank in range(size)]


def layer_step(layer, x, dy):
    """One training step; y and dx."""
    y = layer(x)
    return y, layer.backward(dy)


def new_group(size, timeout=NEVER):
    return bnext.sync.ThreadGroup(size, timeout=timeout)
