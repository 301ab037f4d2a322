"""Pinned releases of other libraries beside bnext's conversions.

    python -m benchmarks.conventions [LIBRARY...] [--out FILE]
        [--environments FOLDER] [--keep FOLDER]

For each library: makes a virtual environment in a temporary folder, installs the pinned release
from PyPI, trains its layers on the same batches, and compares what it stored with
`bnext.to_convention`, `bnext.from_convention` and bnext's layers. Libraries of one environment run
one after the other, and it is removed after the last. A library that cannot be installed or run is
named with the reason, and the others go on. It needs the network, 10 GB of disk and an hour, and
here the packages torch, h5py, flax and onnx, which read files of the libraries.

It exits with 1 if a conversion is wrong, and with 2 if nothing could be compared.
"""

import itertools
import sys
import tempfile
from pathlib import Path

from benchmarks.conventions import environments, report
from benchmarks.conventions.batches import Batches, write
from benchmarks.conventions.checks import check
from benchmarks.conventions.releases import RELEASES
from benchmarks.conventions.stored import Stored
from benchmarks.environment import commit
from benchmarks.kit.command import command, option
from bnext.command_line import USAGE, check_output, write_output


@command(
    "python -m benchmarks.conventions",
    __doc__,
    option("libraries", nargs="*", metavar="LIBRARY", help=", ".join(RELEASES)),
    option("--out", type=Path, metavar="FILE", help="where the table goes as well"),
    option("--environments", type=Path, metavar="FOLDER", help="where environments are, and stay"),
    option(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="where the arrays go; those that are there already are compared, and not made again",
    ),
)
def main(options):
    if wrong := [name for name in options.libraries if name not in RELEASES]:
        options.parser.error(f"expected libraries among {', '.join(RELEASES)}, got {wrong[0]}")
    if options.out:
        check_output(options.parser, "--out", options.out)
    with tempfile.TemporaryDirectory() as temporary:
        kept = options.keep or Path(temporary) / "arrays"
        kept.mkdir(parents=True, exist_ok=True)
        batches = kept / "batches.npz"
        if not batches.exists():
            write(batches)
        folder = options.environments or Path(temporary)
        found = list(recorded(options, folder, kept, batches))
        rows, versions, failed = compared(found, Batches(batches))
    parts = [report.introduction(commit() or "unknown"), report.table(rows), ""]
    parts += [report.far(rows), "", report.formats(rows), ""]
    if failed:
        parts += ["Not compared:", *(f"{name}: {reason}" for name, reason in failed.items()), ""]
    parts += ["Versions:", report.versions(versions)]
    text = "\n".join(parts)
    print(text)
    if options.out:
        write_output(options.out, f"{text}\n".encode())
    if not rows:
        return USAGE
    return 1 if any(row.failures for row in rows) else 0


def recorded(options, folder, kept, batches):
    """Run the libraries; give the file of each, or the reason why there is none."""
    names = [name for name in RELEASES if not options.libraries or name in options.libraries]
    names.sort(key=lambda name: RELEASES[name].environment)
    for environment, group in itertools.groupby(names, lambda name: RELEASES[name].environment):
        for name in group:
            print(name, file=sys.stderr, flush=True)
            output = kept / f"{name}.npz"
            try:
                if not output.exists():
                    environments.record(RELEASES[name], batches, output, folder / environment)
            except environments.ReleaseError as failure:
                yield name, str(failure)
            else:
                yield name, output
        if not options.environments:
            environments.removed(folder / environment)


def compared(found, batches):
    """Compare all that was stored: rows, versions, and the reasons for what has none."""
    rows, versions, failed = [], {}, {}
    order = list(RELEASES)
    for name, output in sorted(found, key=lambda each: order.index(each[0])):
        if isinstance(output, str):
            failed[name] = output
            continue
        stored = Stored(output)
        versions[name] = stored.versions
        rows += compared_release(name, stored, batches, failed)
    return rows, versions, failed


def compared_release(name, stored, batches, failed):
    """Compare the variants of one release; variants that failed there are noted."""
    release = RELEASES[name]
    facts = stored.facts["variants"]
    for variant in {**release.variants, **facts}:
        if variant not in facts or variant not in release.variants:
            failed[f"{name}, {variant}"] = "declared by the runner or by releases.py, not by both"
        elif "error" in facts[variant]:
            failed[f"{name}, {variant}"] = facts[variant]["error"]
    keys = dict.fromkeys((case.variant, case.rank) for case in stored.cases())
    for variant, rank in keys:
        if "error" in facts[variant] or variant not in release.variants:
            continue
        declared = release.variants[variant]
        errors, failures = [], []
        for case in stored.cases():
            if (case.variant, case.rank) == (variant, rank):
                errors += check(declared, stored, case, batches)
        for error in errors:
            failures += error.failures(declared.differs, declared.rounding)
        note = declared.differs or declared.note
        yield report.Row(release.title, variant, rank, errors, failures, note)


if __name__ == "__main__":
    sys.exit(main())
