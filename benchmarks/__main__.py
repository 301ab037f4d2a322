"""The command line: ``python -m benchmarks [report | check] [options]``."""

import argparse
import datetime
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

from benchmarks import cases, exactness, promises
from benchmarks.environment import build, environment
from benchmarks.kit.command import checked, flag, folder, names, option, parser_of
from benchmarks.kit.documents import write
from benchmarks.kit.promises import is_broken
from benchmarks.peers import TITLES
from benchmarks.report import write_report
from benchmarks.results import FORMAT, merge, rows_of
from benchmarks.running import Choice, run_group
from bnext.bench.environment import environment as basic_environment
from bnext.command_line import (
    INTERRUPTED,
    MOST_THREADS,
    CommandError,
    at_least,
    ends_well,
    existing_file,
    not_negative,
)

ROOT = Path(__file__).resolve().parent.parent
ACCURACY = "accuracy"  # the group that measures errors, not time

DESCRIPTION = """\
Measure bnext beside NumPy, PyTorch, torch.compile, oneDNN and a copy. Each group of cases runs in a
process of its own and leaves a file; groups that have theirs are not run again, so that a run that
was interrupted goes on. In the end the files are merged, and the report is written."""

FILES = option("files", nargs="+", type=existing_file)

COMMANDS = """\
commands:
  report FILE... [--out FOLDER]   write the report of results again, merging several files
  check FILE...                   say which promises the results keep
"""


@ends_well("python -m benchmarks")
def main(arguments=None):
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"report": report, "check": check, "part": part}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    return run(words)


def run(words):
    """Measure the groups that are missing, merge, and report."""
    options = _parser().parse_args(words)
    known = [group.name for group in (cases.QUICK if options.quick else cases.GROUPS)]
    if not options.quick:
        known.append(ACCURACY)
    wanted = [n for n in known if options.only is None or re.fullmatch(options.only, n)]
    if not wanted:
        options.parser.error(f"--only: expected a pattern for some of {', '.join(known)}")
    if options.list:
        print("\n".join(wanted))
        return 0
    out = (options.out or _default_folder(options.quick)).resolve()
    parts = ROOT / "build" / "suite" / "parts" / out.name
    parts.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)  # now, and not after the measurements
    try:
        for name in wanted:
            path = parts / f"{name}.json"
            if options.again or not _is_done(path, options):
                _start(name, path, words)
    except BaseException:
        done = [n for n in wanted if _is_done(parts / f"{n}.json", options)]
        print(f"measured: {', '.join(done) or 'nothing'}; the same command goes on from there")
        raise
    there = [parts / f"{name}.json" for name in known if _is_done(parts / f"{name}.json", options)]
    return _finish([FORMAT.read(path) for path in there], out, options.check)


def _start(name, path, words):
    """Measure a group in a process of its own, free of the state of the groups before."""
    command = [sys.executable, "-m", "benchmarks", "part", name, str(path), *words]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        raise CommandError(f"the group {name} could not be measured: status {status}")


def part(words):
    """Measure one group in this process: `part NAME FILE` and the options of the run."""
    name, path, *words = words
    options = _parser().parse_args(words)
    begin = time.perf_counter()
    print(f"{name} ...", file=sys.stderr, flush=True)
    if name == ACCURACY:
        rows, skipped = exactness.measure(options.dtypes)
        skipped = [{"group": name, **item} for item in skipped]
        group = {"name": name, "title": "Accuracy"}
        found = FORMAT.document(environment([]), accuracy=rows, skipped=skipped, groups=[group])
    else:
        (group,) = cases.select(re.escape(name), options.quick)
        found = run_group(group, _choice(options))
    seconds = time.perf_counter() - begin
    found["groups"][0].update(seconds=round(seconds, 1), options=_terms(options))
    for item in found["skipped"]:
        if "peer" not in item:
            print(f"  skipped: {item.get('case', '')} {item['dtype']}: {item['reason']}")
    rows = len(found["rows"]) + len(found["accuracy"])
    print(f"  {rows} rows in {seconds:.0f} s", file=sys.stderr, flush=True)
    write(found, Path(path))
    return 0


def report(words):
    """Write the report of stored results."""
    given = FILES, folder("the folder of the first file")
    options = parser_of("python -m benchmarks report", None, given).parse_args(words)
    out = options.out or options.files[0].parent
    return _finish(_documents(options.files), out, check=False)


def check(words):
    """Print which promises hold."""
    options = parser_of("python -m benchmarks check", None, [FILES]).parse_args(words)
    return _verdict(merge(_documents(options.files)))


def _documents(paths):
    """Read results; a wrong file is the user's error."""
    try:
        return [FORMAT.read(path) for path in paths]
    except ValueError as error:
        raise CommandError(str(error)) from None


def _finish(documents, out, check):
    """Merge, write everything to the folder, and print the verdicts on the promises."""
    merged = merge(documents)
    out.mkdir(parents=True, exist_ok=True)
    write(merged, out / "results.json")
    print(f"\n{write_report(merged, out)}\n")
    status = _verdict(merged)
    return status if check else 0


def _verdict(merged):
    """Print each promise and the rows that PyTorch wins; 1 if a promise does not hold."""
    rows = rows_of(merged)
    found = promises.verdicts(rows, merged["environment"]["caches"], merged["accuracy"])
    for v in found:
        print(v.line)
    slow = promises.losses(rows)
    print(f"\nSlower than PyTorch by more than 5 %: {len(slow)} of {len(rows)} rows")
    for row in slow:
        about = f"{row.group}: {row.label}, {row.dtype}, {row.operation}, {row.pages}"
        print(f"  {row.ratio('torch'):.2f}  {about}")
    low = promises.low_shares(rows)
    print(f"Below half of the copy bandwidth, warm pages: {len(low)} rows, in the report")
    return int(is_broken(found))


def _is_done(path, options):
    """Whether the file has this group, under the same terms."""
    if not path.is_file():
        return False
    try:
        return FORMAT.read(path)["groups"][0].get("options") == _terms(options)
    except ValueError:
        return False


def _terms(options):
    """The terms of a group's results: the kernels and the options."""
    terms = {"build": build(), "quick": options.quick, **vars(_choice(options))}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in terms.items() if v}


def _choice(options):
    return Choice(**{field.name: getattr(options, field.name) for field in fields(Choice)})


def _parser():
    number = at_least(1, MOST_THREADS)
    options = (
        flag("--quick", "most of what is promised, in two minutes"),
        option("--only", metavar="REGEX", help="groups whose whole name matches (see --list)"),
        flag("--list", "list the groups and stop"),
        option("--threads", type=lambda text: tuple(map(number, text.split(","))),
               metavar="N[,N]", help="in place of each group's own numbers"),
        names("--dtypes", cases.ALL_DTYPES),
        names("--operations", ("forward", "backward", "inference")),
        names("--peers", TITLES),
        names("--pages", ("fresh", "warm")),
        option("--seconds", type=not_negative, metavar="S", help="for each operation of each case"),
        folder("benchmarks/results/DATE-PROCESSOR by default"),
        flag("--again", "also groups that have been measured"),
        checked("say which promises are kept; exit with 1 if one is not"),
    )  # fmt: skip
    raw = argparse.RawDescriptionHelpFormatter
    program = "python -m benchmarks"
    return parser_of(program, DESCRIPTION, options, epilog=COMMANDS, formatter_class=raw)


def _default_folder(quick):
    if quick:
        return ROOT / "build" / "suite" / "quick"
    processor = re.sub(r"[^a-z0-9.]+", "-", basic_environment(1)["processor"].lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-{processor}"


if __name__ == "__main__":
    sys.exit(main())
