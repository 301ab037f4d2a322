"""The tables of the report, in Markdown, and all rows as comma-separated values."""

import csv
import io

from benchmarks import accuracy, causes
from benchmarks.kit.tables import NO_VALUE, markdown, milliseconds, ratio
from benchmarks.peers import TITLES
from benchmarks.promises import losses, low_shares
from benchmarks.results import Row

ERRORS = ("y", "dx", "dweight", "running_var")  # of accuracy.Results, in the report


def rows_table(rows):
    """One line for each case and operation, with warm and fresh pages beside each other."""
    peers = [p for p in TITLES if any(p in row.timings for row in rows)]
    header = (
        *("case", "layout", "dtype", "operation", "pages"),
        *(f"x {TITLES[p]}" for p in peers),
        *("bnext ms (p10-p90)", "GB/s", "of copy"),
    )
    lines = []
    for row in rows:
        ours = row.timings["bnext"]
        lines.append(
            (
                *(row.name, row.layout, row.dtype, row.operation, row.pages),
                *(ratio(row.ratio(p)) if p in row.timings else NO_VALUE for p in peers),
                f"{milliseconds(ours.median)} ({milliseconds(ours.p10)}-{milliseconds(ours.p90)})",
                f"{row.bandwidth('bnext') / 1e9:.1f}",
                f"{row.share_of_copy('bnext'):.0%}",
            )
        )
    return markdown(header, lines)


def losses_table(rows):
    return _slow_table(losses(rows), ("x PyTorch",), lambda row: (ratio(row.ratio("torch")),))


def low_share_table(rows):
    def figures(row):
        return f"{row.share_of_copy('bnext'):.0%}", f"{row.copy_bandwidth / 1e9:.0f}"

    return _slow_table(low_shares(rows), ("of copy", "copy GB/s"), figures)


def _slow_table(rows, names, figures):
    header = (
        *("case", "layout", "dtype", "operation", "pages", *names, "bnext ms", "GB/s"),
        *("hand-over ns", "cause"),
    )
    lines = [
        (
            *(f"{row.group}: {row.name}", row.layout, row.dtype, row.operation, row.pages),
            *(*figures(row), milliseconds(row.timings["bnext"].median)),
            *(f"{row.bandwidth('bnext') / 1e9:.1f}", _handover(row), causes.cause(row)),
        )
        for row in rows
    ]
    return markdown(header, lines, "None.\n")


def _handover(row):
    return NO_VALUE if row.handover_ns is None else f"{row.handover_ns:.0f}"


def accuracy_tables(rows):
    """A table for each dtype: the largest errors in y, dx and the statistics."""
    libraries = [n for n in ("bnext", "torch", "onednn") if any(n in r["errors"] for r in rows)]
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        header = ("data", "case", *(f"{f}: {_name(n)}" for f in ERRORS for n in libraries))
        lines = [
            (
                *(row["kind"], row["case"]),
                *(
                    accuracy.text(row["errors"][name][accuracy.Results._fields.index(field)])
                    + ("**!**" if name == "bnext" and field in row["worse"] else "")
                    if name in row["errors"]
                    else NO_VALUE
                    for field in ERRORS
                    for name in libraries
                ),
            )
            for row in rows
            if row["dtype"] == dtype
        ]
        parts.append(f"### {dtype}\n\n{markdown(header, lines)}")
    return "\n".join(parts)


def _name(library):
    return TITLES.get(library, library)


def skipped_table(skipped):
    """The omissions, with their reasons; cases with the same reason are counted."""
    counts = {}
    for item in skipped:
        key = (item["group"], item.get("dtype", ""), item.get("peer", ""), item["reason"])
        counts.setdefault(key, []).append(item.get("case", "all cases"))
    lines = [
        (group, dtype, TITLES.get(peer, "bnext"), str(len(set(cases))), reason)
        for (group, dtype, peer, reason), cases in counts.items()
    ]
    return markdown(("group", "dtype", "library", "cases", "reason"), lines, "None.\n")


def as_csv(rows: list[Row]):
    """All rows, with the figures that follow from the times."""
    peers = [p for p in TITLES if any(p in row.timings for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            *("group", "case", "shape", "layout", "dtype", "operation", "pages", "threads"),
            *(f"ratio_{p}" for p in peers),
            *("bnext_ms", "bnext_p10_ms", "bnext_p90_ms", "floor_bytes", "gb_per_s"),
            *("copy_gb_per_s", "share_of_copy", "handover_ns"),
            *(f"{p}_ms" for p in peers),
        )
    )
    for row in rows:
        ours = row.timings["bnext"]
        writer.writerow(
            (
                *(row.group, row.name, "x".join(map(str, row.shape)), row.layout, row.dtype),
                *(row.operation, row.pages, row.threads),
                *(f"{row.ratio(p):.3f}" if p in row.timings else "" for p in peers),
                *(f"{t * 1e3:.4g}" for t in (ours.median, ours.p10, ours.p90)),
                row.floor,
                f"{row.bandwidth('bnext') / 1e9:.2f}",
                f"{row.copy_bandwidth / 1e9:.2f}",
                f"{row.share_of_copy('bnext'):.3f}",
                "" if row.handover_ns is None else row.handover_ns,
                *(f"{row.timings[p].median * 1e3:.4g}" if p in row.timings else "" for p in peers),
            )
        )
    return text.getvalue()
