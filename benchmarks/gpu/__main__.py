"""The command line: ``python -m benchmarks.gpu --out FOLDER``."""

import contextlib
import re
import signal
import sys
import time
import traceback

from benchmarks.gpu import bars, cases, dry, results, tables
from benchmarks.kit.command import checked, command, folder, names, option, report_again
from benchmarks.kit.documents import write
from benchmarks.kit.promises import is_broken
from bnext.bench.libraries import import_torch
from bnext.command_line import at_least, positive

DESCRIPTION = """\
Measure bnext on a GPU beside PyTorch (as it chooses, without cuDNN, compiled), cuDNN and a copy, by
replaying CUDA graphs. The folder gets rows.jsonl, to which each row is written when it has been
measured, results.json, report.md, and the short table that is printed last. Ctrl-C ends the
measuring, and what has been measured is reported."""


@command(
    "python -m benchmarks.gpu",
    DESCRIPTION,
    folder(),
    option("--seconds", type=positive, default=240.0, help="after which no case is begun (240)"),
    option("--only", metavar="REGEX", help="groups whose whole name matches"),
    names("--dtypes", cases.PLAIN),
    option("--run", type=at_least(0), metavar="N", help="to draw data with; default: the time"),
    checked("exit with 1 as well if a promise is not kept"),
    report_again("write the report again, of results.json or of rows.jsonl"),
    dry.OPTION,
)
def main(options):
    """Measure, or report what has been measured."""
    if options.report:
        found = results.read(options.report)
        return _finish(found, options.out or options.report.parent, options.check)
    if options.out is None:
        options.parser.error("--out: expected a folder for the results")
    groups = chosen(options.only, options.dtypes)
    if not groups:
        known = ", ".join(dict.fromkeys(g.name for g in cases.GROUPS))
        options.parser.error(f"--only: expected a pattern for some of {known}")
    with dry.run() if options.dry else contextlib.nullcontext():
        reason = _why_not()
        if reason:
            print(f"python -m benchmarks.gpu: {reason}", file=sys.stderr)
            return 2
        if options.dry:
            groups = [cases.replace(g, cases=tuple(map(dry.smaller, g.cases))) for g in groups]
        found = _measured(groups, options)
    return _finish(found, options.out, options.check)


def _measured(groups, options):
    """The document of what is measured until time is over, or until Ctrl-C."""
    # Here, so that options can be read, and reports written, without PyTorch.
    from benchmarks.gpu.environment import environment
    from benchmarks.gpu.measure import accuracy_rows, measure

    # A shell that was started in the background has its programs ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    deadline = time.monotonic() + options.seconds
    run = int(time.time()) if options.run is None else options.run
    about = environment(run)
    options.out.mkdir(parents=True, exist_ok=True)
    keep = results.Lines(options.out / "rows.jsonl", about).keep
    given = {"run": run, "deadline": deadline, "log": _log, "keep": keep}
    rows, skipped = measure(groups, about["device"], **given)
    errors, left = [], not options.only and time.monotonic() < deadline
    if left and not any(item["reason"] == "interrupted" for item in skipped):
        try:
            errors = accuracy_rows(("float32", "bfloat16"))
        except (Exception, KeyboardInterrupt):  # the rows must not be lost for it
            _log(traceback.format_exc())
    return results.document(about, rows, errors, skipped)


def chosen(only, dtypes):
    """The groups whose whole names match, with those of their dtypes that are wanted."""
    found = []
    for group in cases.GROUPS:
        wanted = tuple(d for d in group.dtypes if dtypes is None or d in dtypes)
        if wanted and (only is None or re.fullmatch(only, group.name)):
            found.append(cases.replace(group, dtypes=wanted))
    return found


def _finish(found, out, check):
    """Write everything to the folder and print the short table; 1 if something is wrong."""
    rows, skipped, about = results.rows_of(found), found["skipped"], found["environment"]
    out.mkdir(parents=True, exist_ok=True)
    write(found, out / "results.json")
    (out / "report.md").write_text(tables.report(rows, about, found["accuracy"], skipped))
    failed = [item for item in skipped if item.get("failed")]
    lines = [f"FAILED: {item['group']}: {item['case']}: {item['reason']}" for item in failed]
    table = "\n".join([*lines, tables.short(rows, about, skipped)])
    (out / "table.txt").write_text(table + "\n")
    print(table)
    broken = is_broken(bars.verdicts(rows, about["device"]))
    return 1 if failed or bars.wrong(rows) or not rows or (check and broken) else 0


def _why_not():
    """Why nothing can be measured here; empty if it can."""
    torch = import_torch()
    if torch is None or not torch.cuda.is_available():
        return "needs PyTorch with CUDA, and a GPU"
    import bnext

    return "" if bnext.cuda.is_available() else f"bnext has no GPU: {bnext.cuda.reason()}"


def _log(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
