"""One process of a group that is measured: python -m benchmarks.barrier.worker ENGINE SCALE FOLDER
[STORE RANK SIZE]

Rank 0 writes what it measured to FOLDER. MPI knows the rank; gloo is told, and where to meet.
"""

import functools
import json
import pathlib
import sys

import numpy as np

import bnext
from benchmarks.barrier import cases, in_numpy, work
from benchmarks.barrier.engines import ENGINES
from benchmarks.barrier.results import row
from benchmarks.barrier.timing import in_turns


def measure(name, engine, scale):
    """Everything that this number of processes is measured in: rows, and bytes of messages."""
    rows = []
    for channels in scale.channels:
        for kind in cases.KINDS:
            rows.append(exchange(name, engine, kind, channels, scale.seconds))
    if engine.size > 1:  # in one process both would be the call without a group
        for nbytes in scale.nbytes:
            rows.append(allreduce(name, engine, nbytes, scale.seconds))
        for shape in (*scale.shards, *scale.larger_shards):
            rows.append(step(name, engine, shape, scale.seconds))
    messages = [
        {"engine": name, "ranks": engine.size, "channels": channels, **bytes_sent(engine, channels)}
        for channels in sorted({*scale.channels, *cases.LAYERS})
    ]
    return rows, messages


def exchange(name, engine, kind, channels, seconds):
    """One exchange, beside what one would write, and the sum of as many bytes alone."""
    shard = work.brought(engine.size, channels)[engine.rank]
    buffers = [np.zeros(n // 8) for n in bytes_sent(engine, channels)[kind]]
    alone = sums_alone(engine, buffers)
    others = others_of(engine)
    timings = work.exchange(engine.group, kind, shard, others, engine.share, seconds, alone)
    return row("exchange", name, engine.size, timings, kind=kind, channels=channels)


def sums_alone(engine, buffers):
    """The engine's own sums over ranks."""

    def all_by(collective):
        return lambda: [collective(buffer) for buffer in buffers]

    return {"blocking": all_by(engine.blocking), "polled": all_by(engine.polled)}


def others_of(engine):
    """The exchanges that one would write with an engine."""

    def pickled(merge, *shard):
        return merge(engine.pickled(shard))

    return {"pickled": pickled, "packed": functools.partial(over_packed, engine)}


def over_packed(engine, merge, count, first, second):
    """The rows of all ranks by one collective of arrays, and merged by NumPy."""
    channels = first.size
    rows = engine.packed(np.concatenate([[count], first, second]))
    return merge([(r[0], r[1 : channels + 1], r[channels + 1 :]) for r in rows])


def allreduce(name, engine, nbytes, seconds):
    """The engine's sum of so many bytes."""
    calls = sums_alone(engine, [np.zeros(nbytes // 8)])
    timings = in_turns(calls, engine.share, seconds)
    return row("allreduce", name, engine.size, timings, bytes=nbytes)


def step(name, engine, shape, seconds):
    """A training step with shards of `shape`, beside NumPy's, and one call with the whole batch."""
    batch = work.drawn(engine.size, shape)
    timings = {}
    engine.rest()  # until nobody computes
    if engine.rank == 0:
        layer = bnext.BatchNorm(shape[1], eps=in_numpy.EPS)
        timings = work.alone(layer, batch, seconds)
    engine.rest()
    shard = work.shards_of(batch, engine.size)[engine.rank]
    layer = bnext.BatchNorm(shape[1], eps=in_numpy.EPS, group=engine.group)
    with work.threads_in_a_call(1):
        more = work.step(layer, shard, others_of(engine), engine.share, seconds)
    return row("step", name, engine.size, {**more, **timings}, shard=list(shape))


def bytes_sent(engine, channels):
    """Bytes of each sum that bnext does for an exchange, once the means are about known."""
    group, sent = engine.group, []
    shard = work.brought(engine.size, channels)[engine.rank]
    start = group._start_sum

    def recording(buffer):
        sent.append(buffer.nbytes)
        return start(buffer)

    found = {}
    group._start_sum = recording  # of this object alone
    try:
        for kind in cases.KINDS:
            for _ in range(2):  # the first exchange of Moments may add up twice
                sent.clear()
                work.exchanged(group, kind, *shard)
            found[kind] = list(sent)
    finally:
        del group._start_sum
    return found


def main():
    name, scale, folder = sys.argv[1:4]
    engine = ENGINES[name]()
    with engine.group:
        rows, messages = measure(name, engine, getattr(cases, scale))
    if engine.rank == 0:
        found = {"version": engine.version, "rows": rows, "messages": messages}
        (pathlib.Path(folder) / "found.json").write_text(json.dumps(found))
    engine.rest()
    engine.close()


if __name__ == "__main__":
    main()
