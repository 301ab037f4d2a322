"""The tables of the report, in Markdown, and all rows as comma-separated values."""

import csv
import io

from benchmarks import accuracy, causes
from benchmarks.peers import TITLES
from benchmarks.promises import losses, low_shares, verdicts
from benchmarks.results import Row
from bnext.bench.traffic import floor_bytes

NO_VALUE = "-"
TEXTS = (
    *("promise", "where", "case", "dtype", "layout", "operation", "pages", "cause", "data", ""),
    *("group", "library", "reason"),
)
ERRORS = ("y", "dx", "dweight", "running_var")  # of accuracy.Results, in the report


def markdown(header, rows):
    """A table, with columns of numbers aligned to the right."""
    text = [" | ".join(header), " | ".join(":--" if _is_text(h) else "--:" for h in header)]
    text += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in text) + "\n"


def _is_text(name):
    return name in TEXTS


def ratio(value):
    """Bold where it is a loss."""
    return f"{value:.2f}" if value >= 1 else f"**{value:.2f}**"


def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:.4f}" if value < 0.1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def promises_table(rows, caches, accuracy):
    lines = []
    for v in verdicts(rows, caches, accuracy):
        figure = NO_VALUE if v.figure is None else f"{v.figure:.2f}"
        word = v.word if v.word == "kept" else f"**{v.word}**"
        lines.append((v.text, f"{v.least:g}", figure, word, v.where))
    return markdown(("promise", "at least", "measured", "", "where"), lines)


def sums_table(sums):
    peers = [p for p in TITLES if any(p in s.seconds for s in sums)]
    header = (
        *("dtype", "layout", "operation", "pages", "threads"),
        *(f"x {TITLES[p]}" for p in peers),
        *("bnext ms", "GB/s", "of copy"),
    )
    lines = [
        (
            *(s.dtype, s.layout, s.operation, s.pages, str(s.threads)),
            *(ratio(s.ratio(p)) if p in s.seconds else NO_VALUE for p in peers),
            *(
                milliseconds(s.seconds["bnext"]),
                f"{s.bandwidth / 1e9:.1f}",
                f"{s.share_of_copy:.0%}",
            ),
        )
        for s in sums
    ]
    return markdown(header, lines)


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
    if not rows:
        return "None.\n"
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
    return markdown(header, lines)


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
    return markdown(("group", "dtype", "library", "cases", "reason"), lines) if lines else "None.\n"


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
                floor_bytes(row.operation, row.nbytes),
                f"{row.bandwidth('bnext') / 1e9:.2f}",
                f"{row.copy_bandwidth / 1e9:.2f}",
                f"{row.share_of_copy('bnext'):.3f}",
                "" if row.handover_ns is None else row.handover_ns,
                *(f"{row.timings[p].median * 1e3:.4g}" if p in row.timings else "" for p in peers),
            )
        )
    return text.getvalue()
