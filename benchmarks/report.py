"""The report: promises, sums, plots, every row, losses, accuracy, methods of measurement."""

from benchmarks import plots, tables
from benchmarks.kit.promises import resnet50_sums
from benchmarks.kit.tables import NOT_MEASURED, facts, facts_of, promises, sums
from benchmarks.peers import TITLES
from benchmarks.promises import THREADS, verdicts
from benchmarks.results import rows_of

HOW = """\
- A ratio is the peer's median time over bnext's, both taken in turns on the same arrays in one
  process; below 1, in bold, is a loss. Times have the 10th and the 90th percentile.
- GB/s counts floor bytes: the input read once and the output written once, two arrays forward and
  three backward, whatever a library really moves.
- *Of copy* is that as a share of the rate at which the same array is copied, in the same turns and
  with as many threads: the faster of `memcpy` by pieces and a copy with streaming stores.
- *Warm*: the output goes to memory that is mapped. PyTorch's backward and torch.compile always
  allocate, so they are given recycled memory with huge pages. *Fresh*: the library allocates, as it
  does out of the box; for oneDNN its own `memory` object does.
- oneDNN works on the arrays as they are; under *best layout* on data that has been reordered to
  what was fastest for each case and operation by trial (planar, channels last, blocks of 16 or 8
  channels). The reordering is not in the time. It stands beside the planar case.
- torch.compile is compiled for each shape, outside the time.
- NumPy has the expression that one writes, and one thread. 16-bit data it converts to float32 and
  back.
"""


def write_report(document, folder):
    """Write report.md, rows.csv and the plots; returns the path of the report."""
    rows, environment = rows_of(document), document["environment"]
    caches = environment["caches"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text(tables.as_csv(rows))
    pictures = plots.draw_all(rows, caches, folder)
    accuracy = document["accuracy"]
    text = [
        f"# bnext on {environment['processor']}, {environment['date'].split()[0]}\n",
        _introduction(environment, rows),
        f"## Promises\n\nTwo threads, medians of one run.\n\n"
        f"{promises(verdicts(rows, caches, accuracy))}",
        "## The 53 layers of ResNet-50\n\nSums of times, each shape as often as the network has "
        f"it; ratios of sums.\n\n{_sums(resnet50_sums(rows))}",
        "## Plots\n",
        *(f"![{title}]({name})\n" for name, title in pictures),
        "## Slower than PyTorch by more than 5 %\n\n"
        f"With {THREADS} threads, all dtypes and pages.\n\n{tables.losses_table(rows)}",
        "## Below half of the copy bandwidth\n\n"
        f"With {THREADS} threads and warm pages.\n\n{tables.low_share_table(rows)}",
        _accuracy(accuracy),
        *_groups(document["groups"], rows),
        f"## What was not measured\n\n{tables.skipped_table(document['skipped'])}",
        f"## How it was measured\n\n{HOW}",
    ]
    path = folder / "report.md"
    path.write_text("\n".join(part for part in text if part))
    return path


def _introduction(environment, rows):
    caches = ", ".join(f"{level.upper()} {_size(n)}" for level, n in environment["caches"].items())
    usual = facts_of(environment)
    lines = [
        ("Date", f"{environment['date']} to {environment.get('finished', environment['date'])}"),
        ("Processor", f"{environment['processor']}, {environment['processors']} processors"),
        ("Caches", caches),
        *((name, usual[name]) for name in ("Versions", "Commit")),
        ("Instruction set", environment["isa"]),
        ("Compilers", f"{environment['compiler']}; {environment['compiler_of_the_suite']}"),
        ("OpenMP", usual["OpenMP"]),
        ("Huge pages", environment["huge_pages"] or "unknown"),
        ("System", usual["System"]),
        ("Copy bandwidth", _copy_range(rows, max(environment["caches"].values(), default=0))),
        ("Hand-over", _handovers(rows)),
    ]
    return (
        f"{facts(lines)}\n"
        "How it was measured is said at the end; `rows.csv` has every row with all that follows "
        "from it, `results.json` what was measured.\n"
    )


def _copy_range(rows, last_cache):
    """The range of the copy bandwidth itself, which varies on virtual machines."""
    found = sorted(
        row.copy_bandwidth / 1e9
        for row in rows
        if row.nbytes > last_cache and row.threads == THREADS
    )
    if not found:
        return "not measured on tensors beyond the last cache"
    return (
        f"{found[len(found) // 2]:.0f} GB/s in the median of the rows with {THREADS} threads and "
        f"tensors beyond the last cache, from {found[0]:.0f} to {found[-1]:.0f}"
    )


def _handovers(rows):
    """The distance of the two processors, which may change at any time on a virtual machine."""
    found = sorted(row.handover_ns for row in rows if row.handover_ns)
    if not found:
        return "not measured"
    tenth = len(found) // 10
    return (
        f"a word from one thread to another takes {found[len(found) // 2]:.0f} ns in the median of "
        f"the rows, {found[tenth]:.0f} in the 10th percentile and {found[-1 - tenth]:.0f} in the "
        "90th; where it jumps, the system has moved the processors, and all times are others"
    )


def _size(nbytes):
    return f"{nbytes // 2**20} MB" if nbytes >= 2**20 else f"{nbytes // 2**10} KB"


def _sums(found):
    terms = ("dtype", "layout", "operation", "pages", "threads")
    parts = [
        f"### Batch {group.removeprefix('resnet50-b')}\n\n"
        + sums([s for s in found if s.group == group], TITLES, terms)
        for group in dict.fromkeys(s.group for s in found)
    ]
    return "\n".join(parts) or NOT_MEASURED


def _groups(groups, rows):
    parts = []
    for group in groups:
        found = [row for row in rows if row.group == group["name"]]
        if not found or group["name"] == "accuracy":
            continue
        for threads in sorted({row.threads for row in found}, reverse=True):
            of_threads = [row for row in found if row.threads == threads]
            number = "1 thread" if threads == 1 else f"{threads} threads"
            parts.append(
                f"## {group['title']}, {number}\n\n"
                "<details><summary>All rows</summary>\n\n"
                f"{tables.rows_table(of_threads)}\n</details>\n"
            )
    return parts


def _accuracy(accuracy):
    if not accuracy:
        return ""
    return (
        "## Accuracy\n\n"
        "The largest error of all channels of one training step against the exact result, in units "
        "in the last place of the result's dtype (parameters' gradients and statistics of 16-bit "
        "data are float32), as a mean over a few draws. **!**: above PyTorch's by more than half a "
        "unit. `benchmarks/accuracy.py` says what the unit is taken of, and has more cases.\n\n"
        f"{tables.accuracy_tables(accuracy)}"
    )
