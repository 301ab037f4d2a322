"""Two builds of bnext side by side: the same bits, and which is faster.

    python -m benchmarks.builds BEFORE AFTER [--bits] [--speed] [--calls] [--threads N] [--check]

BEFORE and AFTER are folders with a package `bnext` in them: an install, or `python/` of a working
tree with its compiled module. Each build runs in a process of its own, since one process holds one
module. The processes take turns on equal data: one computes, the other sleeps.

`--bits` compares the hashes of `.ci/fingerprints.py` for 1 to 7 threads. `--speed` compares the
forward, backward and inference calls of the suite's shapes, `--calls` small calls, which show the
cost of the way to the kernels. A line below the limit is measured again, each time in two new
processes: where arrays lie in memory stays the same within a process, and decides on a line's speed
by up to a factor of two (one build beside itself: 0.68 to 1.15). A line that was below the limit
three times in a row gets twelve more, and is slower if the median of the fifteen is. With `--check`
the exit status is 1 where bits differ or a line is slower. With two builds of two threads each on
two processors, a scheduler that puts both threads of one on one processor costs milliseconds:
`--threads 1` compares kernels. Then both processes are bound to one processor, the last: two
processors are seldom alike (1024x1024 rows, one build beside itself on two of them: 0.72 to 1.36,
for as long as the processes stayed where they were).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
FINGERPRINTS = ROOT / ".ci" / "fingerprints.py"
THREADS = range(1, 8)
DTYPES = ("float32", "float64", "bfloat16")

SECONDS = 0.6  # for each line, both builds together
FEWEST_TURNS = 6
TRIES, TRIES_OF_SUSPECTS = 3, 15
SLOWEST = 0.97  # of a single line
SLOWEST_MEAN = 1.0  # of the geometric mean


# --- in the process of one build ------------------------------------------------------------------


def calls_of_shape(spec):
    """The three operations of one shape of the suite, outputs in place."""
    from bnext.bench.cases import Case, draw
    from bnext.bench.libraries import bnext_calls

    calls = bnext_calls(draw(Case(**spec)))
    return {name: call for (name, pages), call in calls.items() if pages == "warm"}


def small_calls(_):
    """Calls of (64, 20) float32, by every door there is."""
    from benchmarks.call_path import calls_of_bnext, drawn

    arrays = drawn()
    return calls_of_bnext(*arrays) | small_torch_calls(*arrays[:2])


def small_torch_calls(x, dy):
    """The same by PyTorch's layer, where there is a PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    import bnext.torch

    x, dy = torch.from_numpy(x), torch.from_numpy(dy)
    layer, evaluated = bnext.torch.BatchNorm1d(20), bnext.torch.BatchNorm1d(20).eval()

    def unrecorded(module):
        with torch.no_grad():
            module(x)

    return {
        "torch function": lambda: bnext.batch_norm_forward(x),
        "torch layer": lambda: layer(x),
        "torch layer, both": lambda: layer(x).backward(dy),
        "torch layer, no_grad": lambda: unrecorded(layer),
        "torch layer, evaluation": lambda: unrecorded(evaluated),
    }


def serve():
    """Answer the parent's requests: names of the calls of a spec, or the seconds of one turn."""
    if os.environ.get("OMP_NUM_THREADS") == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from bnext.bench.timing import _repeats, _turn

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    makers = {"shape": calls_of_shape, "small": small_calls}
    calls, repeats = {}, {}
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        if "spec" in request:
            calls.clear()
            gc.collect()
            calls = makers[request["kind"]](request["spec"])
            repeats = {name: _repeats(call) for name, call in calls.items()}
            answer = list(calls)
        else:
            name = request["turn"]
            answer = _turn(calls[name], repeats[name]) / repeats[name]
        print(json.dumps(answer), file=answers, flush=True)


# --- in the parent --------------------------------------------------------------------------------


def environment_of(folder, threads=None):
    """The build in that folder, with teams that do not adapt to the other process."""
    path = f"{Path(folder).resolve()}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": path, "BNEXT_TEAM": "fixed"}
    return environment if threads is None else {**environment, "OMP_NUM_THREADS": str(threads)}


class Build:
    """A process that has one of the builds."""

    def __init__(self, folder, threads):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.builds", "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
            env=environment_of(folder, threads),
        )  # fmt: skip

    def ask(self, **request):
        """One answer to one request."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a build ended before it answered")
        return json.loads(answer)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def processes_of(folders, threads):
    """A process for each of the builds."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(Build(folder, threads))) for folder in folders
        ]


def turns(builds, name, seconds):
    """Seconds of each build's turns, forwards and then backwards."""
    from benchmarks.kit.turns import orders

    taken = [[] for _ in builds]

    def is_over():
        return sum(map(sum, taken)) > seconds and len(taken[0]) % 2 == 0

    for order in orders(range(len(builds)), FEWEST_TURNS, 60, is_over):
        for i in order:
            taken[i].append(builds[i].ask(turn=name))
    return taken


def ratios(builds, kind, spec, seconds):
    """How many times as fast the second build is, by name of the call; and its median seconds."""
    names = [build.ask(kind=kind, spec=spec) for build in builds]
    for name in names[0]:
        if name in names[1]:
            before, after = map(median, turns(builds, name, seconds))
            yield name, before / after, after


def specs_of(wanted, only):
    """The lines of a table: its kind, and what the process of a build makes the calls of."""
    if wanted == "small":
        return [("small calls", "small", {})]
    from benchmarks.cases import select
    from benchmarks.kit.documents import label_of

    cases = [
        replace(case, dtype=dtype)
        for group in select("resnet50-b32|rows|others|misaligned")
        for dtype in DTYPES
        for case in group.cases
    ]
    lines = [(label_of(case), "shape", asdict(case)) for case in cases]
    return [line for line in lines if re.search(only, line[0])]


def table(folders, wanted, only, seconds, threads):
    """Measure and print: the lines that are slower, and the mean."""
    slow, every = [], []
    with processes_of(folders, threads) as builds:
        for text, kind, spec in specs_of(wanted, only):
            tries = [{n: (r, after) for n, r, after in ratios(builds, kind, spec, seconds)}]
            while len(tries) < TRIES_OF_SUSPECTS and any(
                all(each[name][0] < SLOWEST for each in tries[:TRIES]) for name in tries[0]
            ):
                with processes_of(folders, threads) as others:
                    found = ratios(others, kind, spec, 2 * seconds)
                    tries.append({n: (r, after) for n, r, after in found})
            for name in tries[0]:
                every.append(tries[0][name][0])  # since only slow lines have others
                of_name = sorted(each[name] for each in tries)
                ratio, after = of_name[len(of_name) // 2]
                print(
                    f"{ratio:6.3f}  {after * 1e6:11.2f} us  {text}: {name}"
                    + ("" if len(tries) == 1 else f"  (of {len(tries)} tries)"),
                    flush=True,
                )
                if len(tries) == TRIES_OF_SUSPECTS and ratio < SLOWEST:
                    slow.append(f"{text}: {name}, {ratio:.3f}")
    mean = math.exp(sum(map(math.log, every)) / len(every))
    print(f"{mean:6.3f}  geometric mean of {len(every)} lines")
    return slow, mean


def differing_bits(folders):
    """Cases whose hashes differ between the builds, or between numbers of threads."""
    outputs = []
    for folder in folders:
        command = [sys.executable, FINGERPRINTS, "--threads", *map(str, THREADS)]
        done = subprocess.run(
            command, env=environment_of(folder), check=True, capture_output=True, text=True
        )
        outputs.append(dict(line.rsplit(": ", 1) for line in done.stdout.splitlines()))
    before, after = outputs
    differing = [case for case in before if before[case] != after.get(case)]
    differing += [case for case, hashes in after.items() if " " in hashes]
    print(
        f"{len(before)} cases with {THREADS[0]} to {THREADS[-1]} threads, {len(differing)} differ"
    )
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("builds", nargs="*", metavar="FOLDER", help="BEFORE and AFTER")
    for option in ("bits", "speed", "calls", "check", "serve"):
        parser.add_argument(f"--{option}", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each line")
    parser.add_argument("--threads", type=int, help="of each build (default: as without it)")
    parser.add_argument(
        "--only", default="", help="a pattern that shapes of the suite have in them"
    )
    options = parser.parse_args()
    if options.serve:
        return serve()
    if len(options.builds) != 2:
        parser.error("expected two folders, BEFORE and AFTER")
    sys.path.insert(0, options.builds[1])  # for the shapes of the suite
    failed = False
    if options.bits:
        differing = differing_bits(options.builds)
        print(*differing, sep="\n")
        failed = bool(differing)
    for wanted, asked in (("small", options.calls), ("suite", options.speed)):
        if asked:
            slow, mean = table(
                options.builds, wanted, options.only, options.seconds, options.threads
            )
            failed = failed or bool(slow) or mean < SLOWEST_MEAN
            print(*(f"slower: {line}" for line in slow), sep="\n")
    return int(options.check and failed)


if __name__ == "__main__":
    sys.exit(main())
