"""First facts about the kernels on a GPU: ``python -m benchmarks.gpu.first``.

Each fact is a line of first.jsonl as soon as it is known. Steps run in processes of their own
(`benchmarks/gpu/first` starts them), since an error of a kernel may cost a process its GPU.
"""

import collections
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import bnext
from benchmarks.cases import resnet50, rows
from benchmarks.gpu import bars, cases, dry, environment, measure, peers, timing
from benchmarks.gpu.facts import DTYPES, PASSES, line_of, summary
from benchmarks.gpu.results import append
from benchmarks.kit.command import command, flag, folder, names, option
from benchmarks.kit.documents import layout_of
from bnext.bench.cases import EPS
from bnext.bench.libraries import import_torch
from bnext.command_line import existing_file, positive
from bnext.rows import Statistics

DESCRIPTION = """\
Find first facts about the kernels on a GPU: bandwidths, ResNet-50's layers beside PyTorch and a
copy, every path's errors, phases, what calls cost. Each fact is printed, and appended to
first.jsonl in the folder, as soon as it is known."""

SECONDS = 0.02  # of kernels, for each figure
REPEATS = 3  # that must have equal bits
COPIED = 1 << 28  # float32 values, for the bandwidth: 1 GiB
# Shapes that fill a device, in both layouts.
LAYERS = {(case.name, case.channels_last): case for case in resnet50(64)}


def both(name):
    """A layer in both layouts."""
    return LAYERS[name, False], LAYERS[name, True]


CHECKED = (
    *both("64x56x56"),
    LAYERS["512x14x14", False],
    *both("2048x7x7"),
    rows((8192, 1024)),
)
COMPARED = (*both("64x56x56"), *both("512x28x28"), rows((256, 1000)))
ALONE = both("256x56x56")
PROFILED = (
    LAYERS["256x56x56", False],
    replace(LAYERS["256x56x56", False], dtype="bfloat16"),
    replace(LAYERS["256x28x28", True], dtype="bfloat16"),
    replace(LAYERS["2048x7x7", False], dtype="bfloat16"),
)
ROWS = tuple(map(rows, ((8192, 4096), (100_000, 32), (1024, 1024), (64, 20))))


@dataclass(frozen=True)
class Phase:
    """An operation that is launched by itself: arrays that it moves, vectors that it takes."""

    moved: int
    vectors: tuple


PHASES = {
    "collect_stats": Phase(1, ("statistics",)),
    "normalize": Phase(2, ("weight", "bias", "mean", "var")),
    "backward_reduce": Phase(2, ("statistics", "sums")),
    "backward_apply": Phase(3, ("weight", "statistics", "sums")),
}


class Facts:
    """What has been found: lines of a file, and of the terminal."""

    def __init__(self, path, seconds, small):
        self._path = path
        self.deadline = time.monotonic() + seconds
        self.dry = small
        self.device = None  # as environment.py has it

    def say(self, what, **found):
        fact = {"what": what, **found}
        append(self._path, fact)
        print(line_of(fact), flush=True)

    def problems(self, some, dtypes=DTYPES):
        """Cases in each dtype, until the time is over."""
        for dtype in dtypes:
            for case in some:
                if time.monotonic() > self.deadline:
                    self.say("out of time", case=case.name, dtype=dtype)
                    return
                yield self.fitted(replace(case, dtype=dtype))

    def fitted(self, case):
        """The case; in a dry run a smaller one."""
        return dry.smaller(case) if self.dry else case

    def sets(self, case):
        """As many sets of tensors as exceed the L2 cache."""
        number, _ = timing.sets_for(case, self.device["l2_bytes"])
        return peers.draw(case, number, 1)


def about(case):
    return {"case": case.name, "layout": layout_of(case), "dtype": case.dtype}


# --- steps ----------------------------------------------------------------------------------------


def bandwidth(facts):
    """What PyTorch's copy, sum and zeros reach on large arrays."""
    torch = import_torch()
    size = 1 << 10 if facts.dry else COPIED
    x, y = (torch.ones(size, device=peers.DEVICE) for _ in range(2))
    moved = {"copy": 2, "read": 1, "write": 1}
    calls = {"copy": lambda s: y.copy_(x), "read": lambda s: x.sum(), "write": lambda s: y.zero_()}
    graphs = {name: timing.capture(call, [None])[0] for name, call in calls.items()}
    for name, took in timing.replay(graphs, 1, 5 * SECONDS).items():
        facts.say("bandwidth", of=name, tb_s=rate(moved[name] * x.nbytes, took))


def layers(facts):
    """ResNet-50's layers in both layouts, beside PyTorch and cuDNN, errors included."""
    _measured(facts, "resnet50-b64", resnet50(64), DTYPES)


def half(facts):
    """The same in float16."""
    _measured(facts, "resnet50-b64", resnet50(64), ("float16",))


def of_rows(facts):
    """Some sizes of (N, C)."""
    _measured(facts, "rows", ROWS, DTYPES)


def _measured(facts, name, some, dtypes):
    some = tuple(map(facts.fitted, some[:: 6 if facts.dry else 1]))
    groups = [cases.Group(name, name, some, (dtype,), ("torch",)) for dtype in dtypes]
    _, skipped = measure.measure(
        groups,
        facts.device,
        run=1,
        deadline=facts.deadline,
        operations=PASSES,
        keep=lambda row: facts.say("row", **row.as_dict()),
    )
    left_out = collections.Counter()
    for item in skipped:
        if item.pop("failed", False):
            facts.say("FAILED", **item)
        else:
            left_out[item["group"], item.get("peer", "bnext"), item["reason"]] += 1
    for (group, library, reason), number in left_out.items():
        facts.say("left out", group=group, library=library, cases=number, reason=reason)
    if any(item["reason"] == "interrupted" for item in skipped):
        raise KeyboardInterrupt


def checks(facts):
    """Errors against float64 on every path, and whether repeated calls give equal bits."""
    kernels = bnext.cuda._load()
    for case in facts.problems(CHECKED, ("float32", "bfloat16")):
        (s,) = peers.draw(case, 1, 2)
        expected, calls = peers.exact(s), peers.bnext_calls([s])
        for operation in PASSES:
            for path in kernels.paths(operation):
                _check(facts, case, operation, path, calls[operation], s, expected)


def _check(facts, case, operation, path, call, s, expected):
    torch, where = import_torch(), {**about(case), "operation": operation, "path": path}
    print("checking", *where.values(), flush=True)  # so that a hang is located
    try:
        with bnext.cuda._forced_path(path):
            s.out.fill_(float("nan"))
            results = call(s)
            found = peers.errors(operation, results, expected)
            first = [t.clone() for t in _tensors(results)]
            again = [_tensors(call(s)) for _ in range(REPEATS)]
        same = all(torch.equal(a, b) for other in again for a, b in zip(first, other, strict=True))
        right = all(error <= bars.LARGEST_ERROR[case.dtype] for error in found.values())
        facts.say("check", **where, errors=found, same_bits=same, right=right)
    except bnext._core.PathError as error:
        facts.say("check", **where, refused=str(error))
    except Exception as error:
        facts.say("FAILED", **where, reason=f"{type(error).__name__}: {error}"[:400])
        torch.cuda.synchronize()  # raises where the process has lost its GPU


def _tensors(results):
    """Everything that a pass has computed; of forward the statistics as well."""
    y, *others = results
    if len(others) == 1:
        (saved,) = others
        others = [saved.mean, saved.m2, saved.var]
    return [y, *others]


def phases(facts):
    """Each phase launched by itself: reading, and writing without a barrier before it."""
    for case in facts.problems(ALONE):
        sets = facts.sets(case)
        graphs = {"copy": timing.capture(lambda s: s.out.copy_(s.x), sets)[0]}
        for operation in PHASES:
            graphs[operation], _ = timing.capture(phase(case, operation, sets), sets)
        took = timing.replay(graphs, len(sets), SECONDS)
        facts.say("phase", **about(case), of="copy", tb_s=rate(2 * case.nbytes, took["copy"]))
        for operation, own in PHASES.items():
            path = measure.plan_of(case, operation, sets[0]).path
            speed = rate(own.moved * case.nbytes, took[operation])
            facts.say("phase", **about(case), of=operation, tb_s=speed, path=path)
        del graphs, sets
        import_torch().cuda.empty_cache()


def phase(case, operation, sets):
    """A call that launches the operation on the memory of a set, and nothing else."""
    torch, kernels = import_torch(), bnext.cuda._load()
    count = sets[0].x.numel() // case.shape[1]
    names = (*measure.OPERANDS[operation], *PHASES[operation].vectors)
    prepared = {}
    for s in sets:
        plan = measure.plan_of(case, operation, s)
        mean, var = s.mean.double(), s.var.double()
        statistics = torch.stack(
            Statistics(mean, var * count, var, torch.rsqrt(var + EPS), torch.zeros_like(var))
        )
        known = vars(s) | {"y": s.out, "dx": s.out, "statistics": statistics}
        known["sums"] = torch.zeros_like(statistics[:2])
        arrays = {name: known[name] for name in names}
        if plan.workspace_bytes:
            arrays["workspace"] = torch.empty(
                plan.workspace_bytes, dtype=torch.uint8, device=peers.DEVICE
            )
        prepared[id(s)] = plan, arrays

    def call(s):
        plan, arrays = prepared[id(s)]
        addresses = {name: array.data_ptr() for name, array in arrays.items()}
        stream = torch.cuda.current_stream().cuda_stream
        kernels.launch(plan, 0, stream, eps=EPS, count=float(count), **addresses)

    return call


def paths(facts):
    """The same problem on every path: what waiting for each other costs."""
    kernels = bnext.cuda._load()
    for case in facts.problems(COMPARED):
        sets = facts.sets(case)
        calls = peers.bnext_calls(sets)
        for operation in PASSES:
            graphs = {}
            for path in kernels.paths(operation):
                print("capturing", *about(case).values(), operation, path, flush=True)
                try:
                    with bnext.cuda._forced_path(path):
                        graphs[path], _ = timing.capture(calls[operation], sets)
                except bnext._core.PathError:
                    pass
            took = timing.replay(graphs, len(sets), SECONDS)
            chosen = measure.plan_of(case, operation, sets[0]).path
            us = {path: microseconds(timed) for path, timed in took.items()}
            facts.say("paths", **about(case), operation=operation, us=us, chosen=chosen)
        del graphs, sets, calls
        import_torch().cuda.empty_cache()


def wall(facts):
    """Time of small calls from Python, beside PyTorch's layer."""
    torch = import_torch()
    import bnext.torch

    sets = peers.draw(facts.fitted(rows((64, 20))), 1, 1)
    (s,) = sets
    theirs = torch.nn.BatchNorm1d(s.x.shape[1], device=peers.DEVICE)
    ours = bnext.torch.convert(torch.nn.BatchNorm1d(s.x.shape[1], device=peers.DEVICE))
    leaf = s.x.clone().requires_grad_()
    functions = peers.bnext_calls(sets, out=False)
    calls = {
        "function, forward": functions["forward"],
        "function, backward": functions["backward"],
        "layer, forward": lambda s: ours(leaf),
        "PyTorch's layer, forward": lambda s: theirs(leaf),
        "layer, both": lambda s: ours(leaf).backward(s.dy),
        "PyTorch's layer, both": lambda s: theirs(leaf).backward(s.dy),
    }
    for name, took in timing.walls(calls, sets, len(calls) * 5 * SECONDS).items():
        facts.say("wall", of=name, us=microseconds(took))


STEPS = {
    "bandwidth": bandwidth,
    "layers": layers,
    "checks": checks,
    "phases": phases,
    "paths": paths,
    "wall": wall,
    "rows": of_rows,
    "half": half,
}


def profiled(facts):
    """A few launches, between the marks that a profiler looks for."""
    torch = import_torch()
    for case in map(facts.fitted, PROFILED):
        sets = peers.draw(case, 1, 1)
        calls = peers.bnext_calls(sets)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for operation in PASSES:
            calls[operation](sets[0])
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def rate(nbytes, took):
    """Terabytes a second."""
    return round(nbytes / took.median / 1e12, 3)


def microseconds(took):
    return round(took.median * 1e6, 1)


# --- the command ----------------------------------------------------------------------------------


@command(
    "python -m benchmarks.gpu.first",
    DESCRIPTION,
    folder("for first.jsonl"),
    names("--steps", STEPS, default=list(STEPS)),
    option("--seconds", type=positive, default=120.0, help="after which no case is begun (120)"),
    flag("--profile", "only launch what a profiler is to look at"),
    option(
        "--summary", type=existing_file, metavar="FILE", help="print what matters of first.jsonl"
    ),
    dry.OPTION,
)
def main(options):
    """Take the steps that are asked for; 1 if one of them failed."""
    if options.summary:
        lines = options.summary.read_text().split("\n")[:-1]  # the last may be torn
        print("\n".join(summary(map(json.loads, lines))))
        return 0
    if options.out is None and not options.profile:
        options.parser.error("--out: expected a folder for the facts")
    # A shell that was started in the background has its programs ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with dry.run() if options.dry else contextlib.nullcontext():
        if options.profile:
            profiled(Facts(Path(os.devnull), options.seconds, options.dry))
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        facts = Facts(options.out / "first.jsonl", options.seconds, options.dry)
        about = environment.environment(1)
        facts.device = about["device"]
        facts.say("environment", **about)
        return max([_step(name, facts) for name in options.steps])


def _step(name, facts):
    """Take a step; what goes wrong is a fact, and the next step may do better."""
    begin = time.monotonic()
    try:
        STEPS[name](facts)
        status = 0
    except Exception as error:
        traceback.print_exc()
        facts.say("FAILED", step=name, reason=f"{type(error).__name__}: {error}"[:400])
        status = 1
    facts.say("step", step=name, seconds=round(time.monotonic() - begin, 1))
    return status


if __name__ == "__main__":
    sys.exit(main())
