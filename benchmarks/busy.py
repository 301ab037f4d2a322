"""The cost of other programs on the cores: adaptive teams beside fixed numbers of threads.

    python benchmarks/busy.py [--seconds S] [--only SITUATION ...] [--check]

Three situations: ``idle``; ``busy``, with an endless loop pinned to each processor that this
process may use; ``quota``, in a control group that grants half a core (Linux, and the right to make
one).
In each, calls take turns of some hundredths of a second, or of some periods of the quota: adaptive
teams, the default, and fixed teams of one thread and of all, in every order, since the scheduler
favours threads that have just slept. Times are medians in milliseconds, followed by the mean.
With --check it exits with 1 if a promise is broken:

- idle, 0.3 MB forward: at most 1.02 of one thread's time
- busy and quota, 0.3 MB forward: at most 2 of one thread's
- busy and quota, 25 MB, forward and backward: at most 1.3 of the better fixed number's; under a
  quota the mean counts, since calls stand still for most of each tenth of a second
"""

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time

import numpy as np

import bnext
from bnext import _core
from bnext.bench import report
from bnext.bench.environment import environment
from bnext.command_line import Parser, ends_well, positive

SHAPES = {"0.3 MB": (64, 16, 8, 8), "0.5 MB": (64, 32, 8, 8), "25 MB": (64, 64, 39, 39)}
PERIOD, HALF = 100_000, 50_000  # microseconds
TURNS = {"idle": 0.04, "busy": 0.04, "quota": 3.3 * PERIOD / 1e6}  # seconds
GROUPS = {
    "/sys/fs/cgroup/cpu": {"cpu.cfs_period_us": str(PERIOD), "cpu.cfs_quota_us": str(HALF)},
    "/sys/fs/cgroup": {"cpu.max": f"{HALF} {PERIOD}"},
}


@contextlib.contextmanager
def idle():
    yield


@contextlib.contextmanager
def busy():
    """An endless loop on each processor, until this process ends."""
    loop = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
    words = [sys.executable, "-c", loop, str(os.getpid())]
    neighbours = []
    try:
        for processor in sorted(os.sched_getaffinity(0)):
            neighbours.append(subprocess.Popen(words))
            os.sched_setaffinity(neighbours[-1].pid, [processor])
        time.sleep(0.5)
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@contextlib.contextmanager
def quota():
    """Half a core, by a control group of either version."""
    for root, files in GROUPS.items():
        group = f"{root}/bnext-busy-{os.getpid()}"
        try:
            os.mkdir(group)
            for name, text in {**files, "cgroup.procs": str(os.getpid())}.items():
                with open(f"{group}/{name}", "w") as file:
                    file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(group)
            continue
        try:
            yield
        finally:
            with open(f"{root}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
            os.rmdir(group)
        return
    raise OSError("no control group for processor time may be made here")


SITUATIONS = {"idle": idle, "busy": busy, "quota": quota}


def calls_of(shape):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    _, saved = bnext.batch_norm_forward(x)
    return {
        "forward": lambda: bnext.batch_norm_forward(x, out=y),
        "backward": lambda: bnext.batch_norm_backward(dy, x, saved, out=dx),
        "inference": lambda: bnext.normalize(x, saved.mean, saved.var, out=y),
    }


def measured(call, teams, seconds, turn):
    """Seconds of all calls of each team, taken in turns."""
    times = {team: [] for team in teams}
    end = time.perf_counter() + seconds * len(teams)
    orders = itertools.cycle(itertools.permutations(teams))
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for team in next(orders):
            threads, fixed = teams[team]
            bnext.set_num_threads(threads)
            _core.fix_team(fixed)
            end_of_turn = time.perf_counter() + turn
            while True:
                begin = time.perf_counter()
                call()
                now = time.perf_counter()
                times[team].append(now - begin)
                if now > end_of_turn:
                    break
    return times


def promise_of(situation, size, operation, times):
    """The promised ratio, and its bound; None without a promise."""
    average = statistics.fmean if situation == "quota" else statistics.median
    if size == "0.3 MB" and operation == "forward":
        middle = {team: statistics.median(values) for team, values in times.items()}
        return middle["adaptive"] / middle["one"], 1.02 if situation == "idle" else 2.0
    if size == "25 MB" and operation != "inference" and situation != "idle":
        middle = {team: average(values) for team, values in times.items()}
        return middle["adaptive"] / min(middle["one"], middle["all"]), 1.3
    return None


def measure(situation, seconds):
    """Print the rows of a situation; return the broken promises."""
    limit = bnext.get_num_threads()
    teams = {"adaptive": (limit, False), "one": (1, True), "all": (limit, True)}
    broken = []
    for size, shape in SHAPES.items():
        for operation, call in calls_of(shape).items():
            times = measured(call, teams, seconds, TURNS[situation])
            figures = {
                team: (statistics.median(values) * 1e3, statistics.fmean(values) * 1e3)
                for team, values in times.items()
            }
            row = "   ".join(
                f"{team} {median:8.4f} ({mean:.3f})" for team, (median, mean) in figures.items()
            )
            promise = promise_of(situation, size, operation, times)
            note = f"   {promise[0]:.2f} of {promise[1]} allowed" if promise else ""
            print(f"{situation:6}{size:>7} {operation:10}{row}{note}", flush=True)
            if promise and promise[0] > promise[1]:
                broken.append(f"{situation}, {size}, {operation}: {promise[0]:.2f}")
    _core.fix_team(False)
    bnext.set_num_threads(limit)
    return broken


@ends_well("busy.py")
def main(arguments=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=1.0, help="of each team (1)")
    parser.add_argument("--only", nargs="+", choices=SITUATIONS, default=list(SITUATIONS))
    parser.add_argument("--check", action="store_true", help="exit with 1 if a promise is broken")
    options = parser.parse_args(arguments)
    print(report.introduction(environment(bnext.get_num_threads())))
    broken = []
    for name in options.only:
        try:
            with SITUATIONS[name]():
                broken += measure(name, options.seconds)
        except OSError as error:
            print(f"{name}: {error}")
    for line in broken:
        print(f"broken: {line}")
    return 1 if options.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
