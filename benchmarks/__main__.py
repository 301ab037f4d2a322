"""The command line: ``python -m benchmarks [report | check] [options]``."""

import argparse
import datetime
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import cases, exactness, promises, results
from benchmarks.environment import build, environment
from benchmarks.peers import TITLES
from benchmarks.report import write_report
from benchmarks.running import Choice, run_group
from bnext.bench.environment import environment as basic_environment
from bnext.command_line import (
    INTERRUPTED,
    MOST_THREADS,
    CommandError,
    Parser,
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
    parser = _parser()
    options = parser.parse_args(words)
    names = [group.name for group in (cases.QUICK if options.quick else cases.GROUPS)]
    if not options.quick:
        names.append(ACCURACY)
    wanted = [n for n in names if options.only is None or re.fullmatch(options.only, n)]
    if not wanted:
        parser.error(f"--only: expected a pattern for some of {', '.join(names)}")
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
    there = [parts / f"{name}.json" for name in names if _is_done(parts / f"{name}.json", options)]
    return _finish([results.read(path) for path in there], out, options.check)


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
        found = results.document(environment([]), accuracy=rows, skipped=skipped, groups=[group])
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
    results.write(found, Path(path))
    return 0


def report(words):
    """Write the report of stored results."""
    parser = Parser(prog="python -m benchmarks report")
    parser.add_argument("files", nargs="+", type=existing_file)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="that of the first file")
    options = parser.parse_args(words)
    out = options.out or options.files[0].parent
    return _finish(_documents(options.files), out, check=False)


def check(words):
    """Print which promises hold."""
    parser = Parser(prog="python -m benchmarks check")
    parser.add_argument("files", nargs="+", type=existing_file)
    options = parser.parse_args(words)
    return _verdict(results.merge(_documents(options.files)))


def _documents(paths):
    """Read results; a wrong file is the user's error."""
    try:
        return [results.read(path) for path in paths]
    except ValueError as error:
        raise CommandError(str(error)) from None


def _finish(documents, out, check):
    """Merge, write everything to the folder, and print the verdicts on the promises."""
    merged = results.merge(documents)
    out.mkdir(parents=True, exist_ok=True)
    results.write(merged, out / "results.json")
    print(f"\n{write_report(merged, out)}\n")
    status = _verdict(merged)
    return status if check else 0


def _verdict(merged):
    """Print each promise and the rows that PyTorch wins; 1 if a promise does not hold."""
    rows = results.rows_of(merged)
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
    return 1 if any(v.word == "NOT KEPT" for v in found) else 0


def _is_done(path, options):
    """Whether the file has this group, under the same terms."""
    if not path.is_file():
        return False
    try:
        return results.read(path)["groups"][0].get("options") == _terms(options)
    except ValueError:
        return False


def _terms(options):
    """The terms of a group's results: the kernels and the options."""
    names = ("quick", "threads", "dtypes", "operations", "peers", "pages", "seconds")
    terms = {"build": build(), **{name: getattr(options, name) for name in names}}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in terms.items() if v}


def _choice(options):
    names = ("threads", "dtypes", "operations", "peers", "pages", "seconds")
    return Choice(**{name: getattr(options, name) for name in names})


def _parser():
    parser = Parser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="most of what is promised, in two minutes")
    add("--only", metavar="REGEX", help="groups whose whole name matches; --list shows the names")
    add("--list", action="store_true", help="list the groups and stop")
    add("--threads", type=_integers, metavar="N[,N]", help="in place of each group's own numbers")
    add("--dtypes", type=_names(cases.ALL_DTYPES), metavar="NAME[,NAME]")
    add("--operations", type=_names(("forward", "backward", "inference")), metavar="NAME[,NAME]")
    add("--peers", type=_names(TITLES), metavar="NAME[,NAME]", help=", ".join(TITLES))
    add("--pages", type=_names(("fresh", "warm")), metavar="NAME[,NAME]")
    add("--seconds", type=not_negative, metavar="S", help="for each operation of each case")
    add("--out", type=Path, metavar="FOLDER", help="benchmarks/results/DATE-PROCESSOR by default")
    add("--again", action="store_true", help="also groups that have been measured")
    add(
        "--check",
        action="store_true",
        help="say which promises are kept; exit with 1 if one is not",
    )
    return parser


def _names(known):
    def parse(text):
        found = tuple(text.split(","))
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}"
            )
        return found

    return parse


def _integers(text):
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected integers >= 1, got {text}")
    if max(found) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected integers from 1 to {MOST_THREADS}, got {text}")
    return found


def _default_folder(quick):
    if quick:
        return ROOT / "build" / "suite" / "quick"
    processor = re.sub(r"[^a-z0-9.]+", "-", basic_environment(1)["processor"].lower()).strip("-")
    return ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-{processor}"


if __name__ == "__main__":
    sys.exit(main())
