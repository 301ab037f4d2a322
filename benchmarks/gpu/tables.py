"""The short table that is printed last, and the report."""

from benchmarks.gpu.bars import verdicts, wrong
from benchmarks.gpu.cases import GROUPS, OPERATIONS, TITLES
from benchmarks.kit.documents import label_of
from benchmarks.kit.promises import resnet50_sums
from benchmarks.kit.tables import NO_VALUE, facts, facts_of, markdown, promises, ratio, sums
from benchmarks.tables import accuracy_tables

HOW = """\
- **Kernel time**: a CUDA graph of one call for each set of data is replayed, between two events,
  and the time divided by the calls. All libraries and the copy take turns, forwards and backwards;
  figures are medians, with the 10th and 90th percentile in `results.json`.
- **Data** is random and new in each run. A case has as many sets of it as exceed the L2 cache four
  times over (64 at most), and no two calls of a graph work on the same one: so inputs come from
  memory, without a flush in between. Rows marked *cached* have all their sets in L2.
- **Of copy**: the floor bytes (two arrays for a forward pass, three for a backward pass) at the
  rate of `copy_` on the same arrays in the same turns, over bnext's time.
- **Wall time** is that of calls from Python one after the other, results allocated, up to the
  synchronization after the last; the host's clock.
- **PyTorch** is its eager operator, which calls cuDNN where it sees fit; *without cuDNN* has its
  own kernels. **cuDNN** is called by itself where PyTorch does not, and refuses some cases. Whose
  kernels ran is in `results.json`. No running statistics on either side.
- **Errors** are norms of the difference from float64 over the norm.
"""


def short(rows, environment, skipped):
    """What a terminal should show in the end."""
    device = environment["device"]
    lines = [
        f"{device['name']}, {environment['versions']['torch']} (PyTorch), "
        f"{len(rows)} rows, {len(skipped)} left out",
        "",
        *layers(rows, OPERATIONS),
        "",
        *(v.line for v in verdicts(rows, device)),
        *errors(rows),
    ]
    return "\n".join(lines)


def layers(rows, operations):
    """Lines with the sums over ResNet-50's layers."""
    lines = [
        "ResNet-50's 53 layers, kernel time: ms of bnext, x PyTorch, x cuDNN, share of the copy",
        f"{'batch dtype    layout':30}" + "".join(f"{name:>28}" for name in operations),
    ]
    by_place = {}
    for s in resnet50_sums(rows):
        batch = s.group.removeprefix("resnet50-b")
        place = f"{batch:5} {s.dtype:8} {s.layout}"
        by_place.setdefault(place, {})[s.operation] = s
    for place, found in by_place.items():
        cells = "".join(f"{_cell(found.get(name)):>28}" for name in operations)
        lines.append(f"{place:30}{cells}")
    return lines


def errors(rows):
    """A line for each result that is wrong."""
    return [
        f"WRONG: {row.group}: {label_of(row.case)}, {row.operation}: {name} is off by {error:.2g}"
        for row, name, error in wrong(rows)
    ]


def _cell(s):
    if s is None:
        return NO_VALUE
    peers = (ratio(s.ratio(p)).strip("*") for p in ("torch", "cudnn"))
    return f"{s.seconds['bnext'] * 1e3:.3f} {' '.join(peers)} {s.share_of_copy:.0%}"


def report(rows, environment, accuracy, skipped):
    """Everything, in Markdown."""
    device, usual = environment["device"], facts_of(environment)
    about = [
        ("Date", usual["Date"]),
        ("Device", f"{device['name']}, {device['multiprocessors']} multiprocessors"),
        ("Caches", f"L2 {device['l2_bytes'] // 2**20} MB"),
        ("Driver", device["driver"]),
        *((name, usual[name]) for name in ("Versions", "Commit")),
    ]
    of_layers = sums(resnet50_sums(rows), TITLES, ("group", "dtype", "layout", "operation"), 0)
    parts = [
        f"# bnext on {device['name']}, {environment['date'].split()[0]}\n",
        facts(about),
        f"## What was asked\n\n{promises(verdicts(rows, device))}",
        f"## The 53 layers of ResNet-50\n\n{of_layers}",
    ]
    titles = {group.name: group.title for group in GROUPS}
    for name in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == name]
        parts.append(f"## {titles.get(name, name)}\n\n{_rows_table(of_group)}")
    if accuracy:
        parts.append(f"## Accuracy\n\n{accuracy_tables(accuracy)}")
    if skipped:
        lines = [(s["group"], s.get("case", ""), s.get("peer", ""), s["reason"]) for s in skipped]
        parts.append(
            f"## What was not measured\n\n{markdown(('group', 'case', 'library', 'reason'), lines)}"
        )
    parts.append(f"## How it was measured\n\n{HOW}")
    return "\n".join(parts)


def _rows_table(rows):
    peers = [p for p in TITLES if any(p in row.kernel for row in rows)]
    header = (
        *("case", "layout", "dtype", "operation", "path"),
        *(f"x {TITLES[p]}" for p in peers),
        *("bnext us", "GB/s", "of copy", "wall us", "PyTorch wall us", "error", "PyTorch error"),
    )
    lines = []
    for row in rows:
        ours = row.kernel["bnext"].median
        lines.append(
            (
                *(row.case.name, row.layout, row.case.dtype, row.operation),
                row.path + ("" if row.cold else ", cached"),
                *(ratio(row.ratio(p)) if p in row.kernel else NO_VALUE for p in peers),
                *(f"{ours * 1e6:.1f}", f"{row.floor / ours / 1e9:.0f}", f"{row.share_of_copy:.0%}"),
                *(_wall(row, name) for name in ("bnext", "torch")),
                *(_error(row, name) for name in ("bnext", "torch")),
            )
        )
    return markdown(header, lines)


def _wall(row, name):
    return f"{row.wall[name].median * 1e6:.1f}" if name in row.wall else NO_VALUE


def _error(row, name):
    found = row.errors.get(name)
    return f"{max(found.values()):.1e}" if found else NO_VALUE
