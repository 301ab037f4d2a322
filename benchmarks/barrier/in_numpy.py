"""What one would write without bnext: statistics, merging and gradients in NumPy.

`exchange(merge, count, first, second)` is whatever gets the rows of all members to `merge`.
"""

import threading

import numpy as np

EPS = 1e-5
PATIENCE = 60.0  # seconds, so that a thread that fails does not leave the others waiting


def merge_moments(rows):
    """Moments of the whole batch from (count, mean, m2) of each member."""
    counts, means, m2s = (np.array(column) for column in zip(*rows, strict=True))
    total = counts.sum()
    mean = counts @ means / total
    return total, mean, m2s.sum(axis=0) + counts @ (means - mean) ** 2


def merge_sums(rows):
    """Sums over the whole batch from (count, sum, sum) of each member."""
    counts, first, second = (np.array(column) for column in zip(*rows, strict=True))
    return counts.sum(), first.sum(axis=0), second.sum(axis=0)


MERGES = {"moments": merge_moments, "sums": merge_sums}


def training_step(x, dy, exchange):
    """Forward and backward pass of a shard by the statistics of the whole batch: y and dx."""
    axes = (0, *range(2, x.ndim))
    column = (1, -1) + (1,) * (x.ndim - 2)

    def over_channels(row):
        return row.reshape(column).astype(x.dtype)

    count = x.size // x.shape[1]
    mean = x.mean(axes, dtype=np.float64)
    m2 = ((x - mean.reshape(column)) ** 2).sum(axes)
    total, mean, m2 = exchange(merge_moments, count, mean, m2)
    rstd = over_channels(1 / np.sqrt(m2 / total + EPS))
    y = (x - over_channels(mean)) * rstd
    sums = dy.sum(axes, dtype=np.float64), (dy * y).sum(axes, dtype=np.float64)
    total, sum_dy, sum_dy_y = exchange(merge_sums, count, *sums)
    return y, rstd * (dy - over_channels(sum_dy / total) - y * over_channels(sum_dy_y / total))


class Barrier:
    """`threading.Barrier`: the last thread to come merges while the others wait."""

    def __init__(self, size):
        self.rows = [None] * size
        self.barrier = threading.Barrier(size, action=self._merge, timeout=PATIENCE)

    def _merge(self):
        self.merged = self.merge(self.rows)

    def exchange(self, rank, merge, count, first, second):
        self.rows[rank] = count, first, second
        self.merge = merge
        self.barrier.wait()
        return self.merged


class Sharing:
    """What rank 0 says, for all threads: the `share` of `timing.in_turns`."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=PATIENCE)

    def share(self, rank, value):
        if rank == 0:
            self.value = value
        self.barrier.wait()
        found = self.value
        self.barrier.wait()
        return found
