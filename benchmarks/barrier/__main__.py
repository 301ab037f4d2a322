"""The command line: ``python -m benchmarks.barrier --out FOLDER``."""

import os
import sys
import time
from dataclasses import fields

from benchmarks.barrier import cases, jitter, processes, results, threads
from benchmarks.barrier.prediction import Assumptions
from benchmarks.barrier.report import write_report
from benchmarks.environment import environment
from benchmarks.kit.command import checked, command, flag, folder, option, report_again
from benchmarks.kit.documents import write
from bnext.command_line import at_least, positive

DESCRIPTION = """\
Measure what the barrier costs: exchanges and training steps in threads, and in processes over MPI
and gloo, beside what one would write with NumPy and beside one call with the whole batch. A model
fitted to that predicts its share of a ResNet-50 step for 8 to 16,384 ranks. The folder gets
results.json, report.md and model.png; the prediction is printed last."""

PARTS = ("threads", *cases.ENGINES, "model")
KINDS = {int: at_least(1), float: positive}


def assumed(field):
    """The option of an assumption of the prediction."""
    text = f"assumption: {field.metadata['help']} ({field.default:g})"
    kind = KINDS[type(field.default)]
    return option(f"--{field.name.replace('_', '-')}", type=kind, metavar="N", help=text)


@command(
    "python -m benchmarks.barrier",
    DESCRIPTION,
    folder(),
    flag("--quick", "fewer of everything, in half a minute"),
    option("--only", choices=PARTS, help="one part; model: the jitter that it needs"),
    report_again(),
    checked(
        "only see whether 4 threads exchange 256 channels in half the time of "
        "threading.Barrier with NumPy; exit with 1 if not"
    ),
    *map(assumed, fields(Assumptions)),
)
def main(options):
    given = {field.name: getattr(options, field.name) for field in fields(Assumptions)}
    if options.check:
        return 0 if threads.check() else 1
    if options.report:
        found = results.FORMAT.read(options.report)
        found["assumptions"] = Assumptions.of(found["assumptions"], **given).as_dict()
        return _finish(found, options.out or options.report.parent)
    if options.out is None:
        options.parser.error("--out: expected a folder for the results")
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [options.only] if options.only else PARTS
    scale_name = "QUICK" if options.quick else "FULL"
    return _finish(measure(parts, scale_name, Assumptions.of({}, **given)), options.out)


def measure(parts, scale_name, assumptions):
    """Measure the parts; a results document."""
    scale = getattr(cases, scale_name)
    found = {name: [] for name in results.FORMAT.lists}
    engines, load = {}, _load()
    begun = time.perf_counter()

    def log(text):
        print(f"{time.perf_counter() - begun:5.0f} s  {text}", file=sys.stderr, flush=True)

    # Alone first: later nobody knows what else is still running.
    addition = None
    if "model" in parts:
        log("equal work, over and over")
        found["jitter"] = jitter.measure(scale.jitter_seconds)
        addition = jitter.addition()
    if "threads" in parts:
        found["rows"] += threads.measure(scale, log)
    for name in cases.ENGINES:
        if name in parts:
            _measure_engine(name, scale_name, scale, log, found, engines)
    about = environment([])  # when everybody has been loaded
    about |= {
        "usable_processors": results.usable_processors(),
        "engines": engines,
        "load": f"{load}, {_load()}",
        "quick": scale_name == "QUICK",
    }
    log("done")
    document = results.FORMAT.document(about, assumptions=assumptions.as_dict(), **found)
    return {**document, "addition_seconds_per_byte": addition}


def _measure_engine(name, scale_name, scale, log, found, engines):
    item = {"part": name}
    if reason := processes.reason_against(name):
        found["skipped"].append({**item, "reason": reason})
        return
    try:
        rows, messages, version = processes.measure(name, scale_name, scale, log)
    except RuntimeError as error:
        found["skipped"].append({**item, "reason": str(error), "failed": True})
        return
    found["rows"] += rows
    found["messages"] += messages
    engines[name] = version


def _finish(found, out):
    """Write everything to the folder and print the prediction; 1 if something failed."""
    out.mkdir(parents=True, exist_ok=True)
    write(found, out / "results.json")
    print(f"\n{write_report(found, out)}")
    failed = [item for item in found["skipped"] if item.get("failed")]
    for item in failed:
        print(f"FAILED: {item['part']}: {item['reason']}")
    return 1 if failed else 0


def _load():
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


if __name__ == "__main__":
    sys.exit(main())
