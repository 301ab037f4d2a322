"""The barrier of threads beside `threading.Barrier` with NumPy, and beside one call."""

import functools

import bnext
from benchmarks.barrier import in_numpy, work
from benchmarks.barrier.cases import KINDS
from benchmarks.barrier.results import row

GOAL = 0.5  # of the time of threading.Barrier with NumPy, for 4 threads and 256 channels


def exchange(kind, size, channels, seconds):
    """Time one exchange of Moments or of sums among `size` threads; a row."""
    group, others, shares = members(size)

    def member(rank, shard):
        return work.exchange(group, kind, shard, others[rank], shares[rank], seconds)

    timings = group.run(member, work.brought(size, channels))[0]
    return row("exchange", "threads", size, timings, kind=kind, channels=channels)


def step(size, shape, seconds):
    """Time a training step, each thread with a shard of `shape`; a row."""
    batch, layer = work.drawn(size, shape), bnext.BatchNorm(shape[1], eps=in_numpy.EPS)
    timings = work.alone(layer, batch, seconds)
    group, others, shares = members(size)
    layer = bnext.BatchNorm(shape[1], eps=in_numpy.EPS, group=group)

    def member(rank, shard):
        return work.step(layer, shard, others[rank], shares[rank], seconds)

    with work.threads_in_a_call(1):
        more = group.run(member, work.shards_of(batch, size))[0]
    return row("step", "threads", size, {**more, **timings}, shard=list(shape))


def measure(scale, log):
    """Every exchange and every step; rows."""
    rows = []
    for size in scale.threads:
        log(f"{size} threads")
        for channels in scale.channels:
            for kind in KINDS:
                rows.append(exchange(kind, size, channels, scale.seconds))
        for shape in scale.shards:
            rows.append(step(size, shape, scale.seconds))
    return rows


def check():
    """Whether 4 threads exchange 256 channels in the share of time that is promised; prints it."""
    found = exchange("moments", 4, 256, seconds=2.0)["seconds"]
    ours, theirs = found["bnext"][0], found["barrier"][0]
    print(
        f"4 threads, 256 channels: {1e6 * ours:.1f} us, {ours / theirs:.2f} of "
        f"threading.Barrier + NumPy ({1e6 * theirs:.1f} us); goal {GOAL}"
    )
    return ours / theirs <= GOAL


def members(size):
    """A group; and by rank the exchanges that one would write, and the values of rank 0."""
    barrier, sharing = in_numpy.Barrier(size), in_numpy.Sharing(size)
    others = [{"barrier": functools.partial(barrier.exchange, rank)} for rank in range(size)]
    shares = [functools.partial(sharing.share, rank) for rank in range(size)]
    return bnext.sync.ThreadGroup(size), others, shares
