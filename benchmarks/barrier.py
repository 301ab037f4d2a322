"""What the barrier of threads costs: one exchange of Moments, by threads and channels.

    python benchmarks/barrier.py [--quick] [--check]

Beside it, in the same run, what one would write in Python: `threading.Barrier` whose action merges
with NumPy (so that one thread merges while the others wait). Both are timed in turn, in the same
number of threads; a time is the median over rounds of the wall time per exchange. The second table
has whole training steps of shards of one example, against one call with the whole batch.

--check fails unless, for 4 threads and 256 channels, the exchange takes at most half the time.
"""

import argparse
import statistics
import sys
import threading
import time

import numpy as np

import bnext
from bnext.sync import Header

THREADS = (2, 4, 8, 16, 32, 64)
CHANNELS = (16, 64, 256, 1024, 4096)
GOAL = 0.5


class InPython:
    """The barrier of the standard library, merging with NumPy."""

    def __init__(self, size):
        self.slots = [None] * size
        self.merged = None
        self.barrier = threading.Barrier(size, action=self.merge)

    def merge(self):
        counts, means, m2s = zip(*self.slots, strict=True)
        counts, means, m2s = np.array(counts), np.array(means), np.array(m2s)
        total = counts.sum()
        mean = counts @ means / total
        m2 = m2s.sum(axis=0) + counts @ (means - mean) ** 2
        self.merged = total, mean, m2

    def exchange(self, rank, count, mean, m2):
        self.slots[rank] = count, mean, m2
        self.barrier.wait()
        return self.merged


def moments_of(size, channels):
    rng = np.random.default_rng(size * channels)
    return [(1 + rank % 3, *rng.uniform(1, 2, (2, channels))) for rank in range(size)]


def seconds_per_exchange(group, bodies, rounds, calls):
    """Medians of wall times per exchange of the bodies, timed in turn by rank 0."""
    times = [[] for _ in bodies]

    def member(rank, shard):
        for _ in range(rounds + 1):
            for body, seconds in zip(bodies, times, strict=True):
                body(rank, *shard)
                began = time.perf_counter()
                for _ in range(calls):
                    body(rank, *shard)
                if rank == 0:
                    seconds.append((time.perf_counter() - began) / calls)

    return member, lambda: [statistics.median(seconds[1:]) for seconds in times]


def compare(size, channels, rounds, calls):
    group = bnext.sync.ThreadGroup(size)
    python = InPython(size)
    header = Header(-1, 0, "forward", channels, "float32")
    results = {}

    def ours(rank, count, mean, m2):
        results["bnext"] = group.merge_moments(header, count, mean, m2)[:3]

    def theirs(rank, count, mean, m2):
        results["python"] = python.exchange(rank, count, mean, m2)

    member, medians = seconds_per_exchange(group, (ours, theirs), rounds, calls)
    group.run(member, moments_of(size, channels))
    for a, b in zip(results["bnext"], results["python"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    return medians()


def table_of_exchanges(threads, channels, rounds, calls):
    print("microseconds per exchange of Moments: bnext / threading.Barrier + NumPy = share")
    print("threads " + "".join(f"{f'{c} channels':>26}" for c in channels))
    for size in threads:
        row = [compare(size, c, rounds, max(10, calls // size)) for c in channels]
        cells = [f"{1e6 * a:9.1f} /{1e6 * b:8.1f} ={a / b:5.2f}" for a, b in row]
        print(f"{size:7} " + "".join(f"{cell:>26}" for cell in cells))


def table_of_steps(threads, rounds, calls):
    print("\nmicroseconds per training step, 20 neurons, one example a thread / one call")
    rng = np.random.default_rng(0)
    for size in threads:
        x, dy = rng.normal(size=(2, size, 20)).astype(np.float32)
        group = bnext.sync.ThreadGroup(size)
        layer = bnext.BatchNorm1d(20, group=group)

        def step(rank, example, layer=layer, dy=dy):
            layer(example)
            layer.backward(dy[rank : rank + 1])

        member, medians = seconds_per_exchange(group, (step,), rounds, max(5, calls // size))
        group.run(member, [(example,) for example in np.split(x, size)])
        alone = bnext.BatchNorm1d(20)
        began = time.perf_counter()
        for _ in range(calls):
            alone(x)
            alone.backward(dy)
        one_call = (time.perf_counter() - began) / calls
        print(f"{size:7} threads {1e6 * medians()[0]:10.1f} /{1e6 * one_call:7.1f}")


def check(rounds, calls):
    ours, theirs = compare(4, 256, rounds, calls)
    print(
        f"\n4 threads, 256 channels: {1e6 * ours:.1f} us, {ours / theirs:.2f} of "
        f"threading.Barrier + NumPy ({1e6 * theirs:.1f} us); goal {GOAL}"
    )
    return ours / theirs <= GOAL


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer threads, channels and rounds")
    parser.add_argument("--check", action="store_true", help="the promise alone")
    options = parser.parse_args()
    rounds, calls = (5, 500) if options.quick else (11, 2000)
    if options.check:
        sys.exit(0 if check(11, 500) else 1)
    quick = options.quick
    table_of_exchanges(THREADS[:3] if quick else THREADS, CHANNELS[::2], rounds, calls)
    table_of_steps(THREADS[:3] if quick else THREADS, rounds, calls)
    check(rounds, calls)


if __name__ == "__main__":
    main()
