"""The command line: ``python -m benchmarks.models --out FOLDER``."""

import dataclasses
import os
import sys

from benchmarks.kit.command import (
    checked,
    command,
    flag,
    folder,
    names,
    option,
    report_again,
    seconds,
    threads,
)
from benchmarks.kit.documents import Format, write
from benchmarks.models.cases import DTYPES, FULL, LOSSES, NETWORKS, QUICK
from bnext.command_line import at_least, not_negative

DESCRIPTION = """\
Train whole networks with PyTorch's layers of batch normalization and with bnext's: how long a step
takes, how much memory, and whether the losses agree as far as rounding lets them. The folder gets
results.json and report.md; the exit status is 1 where losses differ."""

FORMAT = Format("bnext models", "whole models", ("rows", "losses"))
CHANGES = ("batch", "size", "dtype", "channels_last", "device")  # options that change all cases


@command(
    "python -m benchmarks.models",
    DESCRIPTION,
    folder(),
    flag("--quick", "small cases, in a minute"),
    names("--networks", NETWORKS, default=NETWORKS),
    option("--device", choices=("cpu", "cuda"), default="cpu"),
    option("--batch", type=at_least(1), metavar="N", help="images, in place of each case's number"),
    option("--size", type=at_least(1), metavar="N", help="their extent (the MLP's is fixed)"),
    option("--dtype", choices=DTYPES, help="in place of each case's; bfloat16 by autocast"),
    option("--channels-last", action="store_true", default=None, help="the memory format of all"),
    option(
        "--steps", type=at_least(1), default=20, metavar="N", help="of which losses are compared"
    ),
    threads(),
    seconds(30.0, "case", not_negative),
    report_again(),
    checked("only see whether what is promised holds; exit with 1 if not"),
)
def main(options):
    if options.report:
        return _finish(FORMAT.read(options.report), options.out or options.report.parent)
    if problem := _missing(options.device):
        print(f"benchmarks.models: {problem}", file=sys.stderr)
        return 2
    if options.check:
        return _check()
    if options.out is None:
        options.parser.error("--out: expected a folder for the results")
    options.out.mkdir(parents=True, exist_ok=True)  # now, and not when all has been measured
    return _finish(measure(options), options.out)


def measure(options):
    """Measure everything that is asked for; a results document."""
    import torch

    from benchmarks.environment import environment
    from benchmarks.models import losses
    from benchmarks.models.measure import case_row
    from bnext.bench.measure import threads_set_to

    load = os.getloadavg()[0]
    rows = [case_row(case, options.threads, options.seconds) for case in cases(options)]
    found = []
    with threads_set_to(options.threads):
        for case in chosen(LOSSES, options):
            for dtype in (case.dtype, *(("float64",) if case.dtype == "float32" else ())):
                print(f"losses: {case.title}, in {dtype}", file=sys.stderr, flush=True)
                found.append(losses.measure(case, dtype, options.steps))
    about = environment([options.threads])
    about["device"] = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    about["load"] = f"{load:.2f} before, {os.getloadavg()[0]:.2f} after"
    return FORMAT.document(about, rows=rows, losses=found)


def cases(options):
    """What is timed."""
    return chosen(QUICK if options.quick else FULL, options)


def chosen(cases, options):
    """Those of the networks that are wanted, with what the options change; each once."""
    changes = {
        name: getattr(options, name) for name in CHANGES if getattr(options, name) is not None
    }
    found = [
        dataclasses.replace(case, **changes) for case in cases if case.network in options.networks
    ]
    return list(dict.fromkeys(found))


def _finish(document, folder):
    """Write everything to the folder, and print the tables; 1 if losses differ."""
    from benchmarks.models.losses import agree
    from benchmarks.models.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    write(document, folder / "results.json")
    print(f"\n{write_report(document, folder)}")
    return 0 if all(map(agree, document["losses"])) else 1


def _check():
    from benchmarks.models.promises import verdicts

    kept = True
    for v in verdicts():
        kept = kept and v.word == "kept"
        print(v.line, flush=True)
    return 0 if kept else 1


def _missing(device):
    """What is needed and not there; empty if nothing is."""
    from bnext import cuda
    from bnext.bench.libraries import import_torch

    torch = import_torch()
    if torch is None:
        return "needs PyTorch"
    if device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: PyTorch finds no GPU"
    if device == "cuda" and not cuda.is_available():  # PyTorch's layers would run under our name
        return f"--device cuda: {cuda.reason()}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
