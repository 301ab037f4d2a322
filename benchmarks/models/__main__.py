"""The command line: ``python -m benchmarks.models --out FOLDER``."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from benchmarks.models.cases import DTYPES, FULL, LOSSES, NETWORKS, QUICK
from benchmarks.results import write
from bnext.command_line import (
    MOST_THREADS,
    Parser,
    at_least,
    ends_well,
    existing_file,
    not_negative,
)

DESCRIPTION = """\
Train whole networks with PyTorch's layers of batch normalization and with bnext's: how long a step
takes, how much memory, and whether the losses agree as far as rounding lets them. The folder gets
results.json and report.md; the exit status is 1 where losses differ."""

FORMAT, VERSION = "bnext models", 1
CHANGES = ("batch", "size", "dtype", "channels_last", "device")  # options that change all cases


@ends_well("python -m benchmarks.models")
def main(arguments=None):
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.report:
        return _finish(read(options.report), options.out or options.report.parent)
    if problem := _missing(options.device):
        print(f"benchmarks.models: {problem}", file=sys.stderr)
        return 2
    if options.check:
        return _check()
    if options.out is None:
        parser.error("--out: expected a folder for the results")
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
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": about,
        "rows": rows,
        "losses": found,
    }


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


def read(path):
    """Read a document, or say what is wrong with it."""
    found = json.loads(path.read_text())
    if found.get("format") != FORMAT or found.get("version") != VERSION:
        raise ValueError(f"{path}: expected results of whole models, version {VERSION}")
    return found


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


def _parser():
    parser = Parser(prog="python -m benchmarks.models", description=DESCRIPTION)
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="for the results")
    add("--quick", action="store_true", help="small cases, in a minute")
    add("--networks", type=_networks, default=NETWORKS, metavar="NAME[,NAME]",
        help=", ".join(NETWORKS))  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--batch", type=at_least(1), metavar="N", help="images, in place of each case's own number")
    add("--size", type=at_least(1), metavar="N", help="their extent (the MLP's is fixed)")
    add("--dtype", choices=DTYPES, help="likewise; bfloat16 by autocast")
    add("--channels-last", action="store_true", default=None, help="the memory format of all")
    add("--steps", type=at_least(1), default=20, metavar="N", help="of which losses are compared")
    add("--threads", type=at_least(1, MOST_THREADS), default=2, metavar="N", help="(default: 2)")
    add(
        "--seconds",
        type=not_negative,
        default=30.0,
        metavar="S",
        help="for each case (default: 30)",
    )
    add("--report", type=existing_file, metavar="FILE", help="write the report of results again")
    add("--check", action="store_true",
        help="only see whether what is promised holds; exit with 1 if not")  # fmt: skip
    return parser


def _networks(text):
    found = tuple(text.split(","))
    if unknown := set(found) - set(NETWORKS):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(NETWORKS)}, got {', '.join(sorted(unknown))}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
