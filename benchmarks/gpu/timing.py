"""Timing on a GPU: graphs that are replayed in turns, and calls from Python."""

import time

from benchmarks.kit.turns import Turns, orders
from bnext.bench.libraries import import_torch
from bnext.bench.timing import FEWEST_TURNS, MOST_TURNS, Timing, alternate

TIMES_L2 = 4  # the sets of a case together, where that is no more than MOST_SETS
MOST_SETS = 64
CALLS = 20  # from Python, between two synchronizations
HEAD_START = 300_000  # clock cycles in which the host enqueues a turn
WARM_UP = 0.05  # seconds of replays, which also wake the clocks up


def sets_for(case, l2_bytes):
    """How many sets of a case calls take turns on, and whether they exceed the L2 cache."""
    one = 2 * case.nbytes  # what a forward pass reads and writes
    wanted = -(-TIMES_L2 * l2_bytes // one)
    return max(1, min(wanted, MOST_SETS)), wanted <= MOST_SETS


def turns(names, turn, seconds):
    """Let `turn` time all the names, in the order that it is given, until `seconds` are spent.

    `turn` takes a sequence of names and returns the seconds of each. Every other turn goes
    backwards, so that a drift, and what a call leaves in the caches, meets everybody.
    """
    samples = {name: [] for name in names}

    def is_over():
        return sum(map(sum, samples.values())) >= seconds

    for order in orders(names, FEWEST_TURNS, MOST_TURNS, is_over):
        for name, took in turn(order).items():
            samples[name].append(took)
    return Turns(samples).timings()


def capture(call, sets):
    """A graph of one call for each set; what they return is kept, so that no two share memory."""
    torch = import_torch()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(2):  # what happens once must not happen while capturing
            call(sets[0])
        torch.cuda.synchronize()
        # Not torch.cuda.graph, which empties PyTorch's cache of memory before every capture.
        graph.capture_begin()
        try:
            kept = [call(s) for s in sets]
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, kept


def replay(graphs, calls, seconds):
    """Time graphs of `calls` calls each in turns: seconds for one call, by name."""
    torch = import_torch()
    events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in graphs}

    def turn(order):
        torch.cuda._sleep(HEAD_START)  # the device must not wait for the host in between
        for name in order:
            begin, end = events[name]
            begin.record()
            graphs[name].replay()
            end.record()
        torch.cuda.synchronize()
        return {name: events[name][0].elapsed_time(events[name][1]) * 1e-3 for name in order}

    begin = time.perf_counter()
    while True:
        turn(list(graphs))
        if time.perf_counter() - begin > WARM_UP:
            break
    found = turns(list(graphs), turn, seconds)
    return {name: per_call(timing, calls) for name, timing in found.items()}


def walls(calls, sets, seconds):
    """Time calls from Python in turns, results dropped: seconds for one call, by name."""
    torch = import_torch()

    def burst(call):
        def run():
            for i in range(CALLS):
                call(sets[i % len(sets)])
            torch.cuda.synchronize()

        return run

    found = alternate({name: burst(call) for name, call in calls.items()}, seconds)
    return {name: per_call(timing, CALLS) for name, timing in found.items()}


def per_call(timing, calls):
    times = (t / calls for t in (timing.median, timing.p10, timing.p90))
    return Timing(*times, timing.turns)
