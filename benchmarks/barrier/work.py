"""What members do, in threads and in processes: the calls of bnext, their data, the comparison."""

import contextlib
import functools

import numpy as np

import bnext
from benchmarks.barrier import in_numpy
from benchmarks.barrier.results import usable_processors
from benchmarks.barrier.timing import in_turns
from bnext.bench.timing import alternate
from bnext.sync import Header


def exchanged(group, kind, count, first, second):
    """One exchange of bnext: count, first and second of the whole batch."""
    if kind == "moments":
        header = Header(-1, 0, "forward", first.size, "float32")
        return group.merge_moments(header, count, first, second)[:3]
    header = Header(-1, 0, "backward", first.size, "float32")
    return group.merge_sums(header, count, first, second)[:3]


def brought(size, channels):
    """What each member brings to an exchange: count, first, second. Counts differ."""
    rng = np.random.default_rng(size * channels)
    return [(1 + rank % 3, *rng.uniform(1, 2, (2, channels))) for rank in range(size)]


def drawn(size, shape):
    """`x` and `dy` of the whole batch; each member has a shard of `shape`."""
    rng = np.random.default_rng(size * shape[1])
    return rng.normal(size=(2, size * shape[0], *shape[1:])).astype(np.float32)


def shards_of(batch, size):
    """Views of `x` and `dy`, for each member."""
    return list(zip(*(np.split(array, size) for array in batch), strict=True))


def alone(layer, batch, seconds):
    """Time a training step of the whole batch in one call of each pass, by all processors."""
    x, dy = batch

    def whole():
        layer(x)
        layer.backward(dy)

    with threads_in_a_call(usable_processors()):
        return alternate({"one call": whole}, seconds / 2)


def exchange(group, kind, shard, others, share, seconds, alone=None):
    """Time an exchange of bnext in turns with others, which are functions of a merge and a shard.

    `alone` are calls beside them that compute nothing of the kind.
    """
    merge = in_numpy.MERGES[kind]
    bodies = {"bnext": functools.partial(exchanged, group, kind, *shard)}
    for name, other in others.items():
        bodies[name] = functools.partial(other, merge, *shard)
    return compared(bodies, alone or {}, share, seconds, rtol=1e-10)


def step(layer, shard, others, share, seconds):
    """Time a training step of a layer in turns with NumPy's, which exchange by the others."""
    x, dy = shard
    bodies = {"bnext": lambda: (layer(x), layer.backward(dy))}
    for name, other in others.items():
        bodies[name] = functools.partial(in_numpy.training_step, x, dy, other)
    return compared(bodies, {}, share, seconds, rtol=1e-3, atol=2e-3)


def compared(bodies, alone, share, seconds, **tolerance):
    """Time bodies and calls alone in turns; every body has to compute what bnext's does."""
    found = {}

    def keeping(name):
        def body():
            found[name] = bodies[name]()

        return body

    timings = in_turns({**{name: keeping(name) for name in bodies}, **alone}, share, seconds)
    check_equal(found, **tolerance)
    return timings


def check_equal(found, **tolerance):
    """AssertionError where one way computes something else than bnext does."""
    for name, values in found.items():
        for ours, theirs in zip(found["bnext"], values, strict=True):
            np.testing.assert_allclose(ours, theirs, **tolerance, err_msg=name)


@contextlib.contextmanager
def threads_in_a_call(number):
    """How many threads a call of bnext has. Members share the processors: each has one."""
    before = bnext.get_num_threads()
    bnext.set_num_threads(number)
    try:
        yield
    finally:
        bnext.set_num_threads(before)
