"""The plots of the report: ratios by shape, shares of the copy bandwidth, growth with size."""

import math

from benchmarks.peers import TITLES
from benchmarks.promises import THREADS

# Colours that stay apart for the colour-blind (Okabe and Ito), and marks that do without colour.
STYLE = {
    "bnext": ("#000000", "o"),
    "torch": ("#d55e00", "o"),
    "compile": ("#e69f00", "s"),
    "onednn": ("#0072b2", "^"),
    "onednn_best": ("#56b4e9", "v"),
    "numpy": ("#999999", "D"),
    "copy": ("#009e73", "x"),
}
OPERATIONS = ("forward", "backward", "inference")
DPI = 90


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure, path):
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    _pyplot().close(figure)


def ratios(rows, title, path):
    """A dot for each shape and peer, on a logarithmic axis; left of the line are losses."""
    plt = _pyplot()
    operations = [op for op in OPERATIONS if any(row.operation == op for row in rows)]
    labels = list(dict.fromkeys(_label(row) for row in rows))
    peers = [p for p in TITLES if any(p in row.timings for row in rows)]
    figure, axes = plt.subplots(
        1,
        len(operations),
        figsize=(3.3 * len(operations) + 1.6, 0.27 * len(labels) + 1.5),
        sharey=True,
        squeeze=False,
    )
    for axis, operation in zip(axes[0], operations, strict=True):
        axis.axvspan(1e-3, 1, color="#d55e00", alpha=0.08, lw=0)
        axis.axvline(1, color="black", lw=1)
        values = []
        for i, peer in enumerate(peers):
            color, mark = STYLE[peer]
            of_peer = [r for r in rows if r.operation == operation and peer in r.timings]
            x = [row.ratio(peer) for row in of_peer]
            offset = (i - (len(peers) - 1) / 2) * 0.6 / max(len(peers) - 1, 1)
            y = [labels.index(_label(row)) + offset for row in of_peer]
            axis.plot(x, y, mark, color=color, ms=5, label=TITLES[peer], alpha=0.9)
            values += x
        low, high = min([0.8, *values]), max([2, *values])
        axis.set(xscale="log", title=operation, xlim=(low / 1.15, high * 1.15))
        _plain_ticks(axis, low, high)
        axis.grid(axis="x", which="major", alpha=0.3)
        for y in range(len(labels)):
            axis.axhline(y, color="black", lw=0.4, alpha=0.15)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel("peer's time / bnext's (log scale; shaded: bnext is slower)", fontsize=10, y=0)
    handles = {h.get_label(): h for a in axes[0] for h in a.get_lines() if h.get_label()[0] != "_"}
    figure.legend(
        handles.values(), handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles)
    )
    figure.suptitle(title, y=1.0, va="top", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    _save(figure, path)


def _label(row):
    return row.name if row.layout == "rows" else f"{row.name}"


def _plain_ticks(axis, low, high):
    """1, 2, 5, 10 ... as they are read, not as powers."""
    ticks = [m * 10.0**e for e in range(-2, 4) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low / 1.15 <= t <= high * 1.15]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()


def shares(rows, title, path):
    """The share of the copy bandwidth that bnext and others reach on floor bytes."""
    plt = _pyplot()
    operations = [op for op in OPERATIONS if any(row.operation == op for row in rows)]
    labels = list(dict.fromkeys(_label(row) for row in rows))
    libraries = [n for n in ("bnext", "torch", "onednn_best") if any(n in r.timings for r in rows)]
    figure, axes = plt.subplots(
        1,
        len(operations),
        figsize=(3.3 * len(operations) + 1.6, 0.27 * len(labels) + 1.5),
        sharey=True,
        squeeze=False,
    )
    for axis, operation in zip(axes[0], operations, strict=True):
        for limit, style in ((0.5, ":"), (0.75, "--"), (1.0, "-")):
            axis.axvline(limit, color="black", lw=0.8, ls=style)
        highest = 1.0
        for name in libraries:
            color, mark = STYLE[name]
            found = [r for r in rows if r.operation == operation and name in r.timings]
            x = [row.share_of_copy(name) for row in found]
            y = [labels.index(_label(row)) for row in found]
            label = TITLES.get(name, name)
            size = 7 if name == "bnext" else 5
            axis.plot(x, y, mark, color=color, ms=size, label=label, alpha=0.85)
            highest = max([highest, *x])
        axis.set(title=operation, xlim=(0, highest * 1.05))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.grid(axis="x", alpha=0.2)
        for y in range(len(labels)):
            axis.axhline(y, color="black", lw=0.4, alpha=0.15)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel(
        "share of the copy bandwidth on floor bytes (lines: 50 %, 75 %, 100 %)", fontsize=10, y=0
    )
    handles = {h.get_label(): h for a in axes[0] for h in a.get_lines() if h.get_label()[0] != "_"}
    figure.legend(
        handles.values(), handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles)
    )
    figure.suptitle(title, y=1.0, va="top", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    _save(figure, path)


def growth(rows, caches, path):
    """GB/s on floor bytes against the number of elements, over five orders of magnitude."""
    plt = _pyplot()
    kinds = [k for k in ("planar", "rows") if any(row.layout == k for row in rows)]
    operations = [op for op in OPERATIONS if any(row.operation == op for row in rows)]
    figure, axes = plt.subplots(
        len(operations),
        len(kinds),
        figsize=(4.6 * len(kinds), 2.9 * len(operations)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for i, operation in enumerate(operations):
        for j, kind in enumerate(kinds):
            axis = axes[i][j]
            found = [r for r in rows if (r.operation, r.layout) == (operation, kind)]
            found.sort(key=lambda row: row.nbytes)
            _growth_lines(axis, found)
            for level, size in caches.items():
                axis.axvline(size / 4, color="black", lw=0.6, ls=":")
                if i == 0:
                    place = (size / 4, 1.0)
                    axis.annotate(
                        f"x = {level.upper()}",
                        place,
                        xycoords=("data", "axes fraction"),
                        fontsize=7,
                        ha="center",
                        va="bottom",
                    )
            title = f"{'planes of 4x4, 64 channels' if kind == 'planar' else 'rows of 128'}"
            axis.set_title(f"{operation}, {title}", fontsize=10, pad=14 if i == 0 else 6)
            axis.grid(which="major", alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("elements")
    for line in axes:
        line[0].set_ylabel("GB/s on floor bytes")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(names))
    figure.tight_layout()
    _save(figure, path)


def _growth_lines(axis, rows):
    for name, (color, mark) in STYLE.items():
        if name == "copy":
            points = [(r.nbytes, r.copy_bandwidth) for r in rows]
        else:
            points = [(r.nbytes, r.bandwidth(name)) for r in rows if name in r.timings]
        if points:
            x = [math.prod((nbytes,)) / 4 for nbytes, _ in points]
            y = [value / 1e9 for _, value in points]
            style = {"lw": 2.2} if name == "bnext" else {"lw": 1, "alpha": 0.9}
            label = TITLES.get(name, name)
            axis.plot(x, y, marker=mark, ms=3.5, color=color, label=label, **style)
    axis.set(xscale="log", yscale="log")


def draw_all(rows, caches, folder):
    """Every plot that the rows allow; returns pairs of a file's name and what it shows."""
    warm = [row for row in rows if row.pages == "warm" and row.threads == THREADS]
    drawn = []

    def keep(function, name, title, *arguments):
        function(*arguments, folder / name)
        drawn.append((name, title))

    for dtype in dict.fromkeys(row.dtype for row in warm):
        for layout in ("planar", "channels last"):
            found = [r for r in warm if r.group == "resnet50-b32" and r.dtype == dtype]
            found = [row for row in found if row.layout == layout]
            if found:
                title = f"ResNet-50's layers, batch 32, {dtype}, {layout}, warm pages"
                name = f"resnet50-{dtype}-{layout.replace(' ', '-')}.png"
                keep(ratios, name, title, found, title)
                title = f"Share of the copy: ResNet-50's layers, batch 32, {dtype}, {layout}"
                keep(shares, f"share-{name}", title, found, title)
    for groups, name, words in (
        (("rows",), "rows", "Rows"),
        (("others", "misaligned"), "others", "Other shapes"),
    ):
        found = [r for r in warm if r.group in groups and r.dtype == "float32"]
        for layout in ("rows", "planar", "channels last"):
            of_layout = [row for row in found if row.layout == layout]
            if of_layout and not (name == "others" and layout == "rows"):
                title = f"{words}, float32, {layout}, warm pages"
                file = f"{name}-{layout.replace(' ', '-')}.png"
                keep(ratios, file, title, of_layout, title)
    if found := [row for row in rows if row.group == "growth" and row.threads == THREADS]:
        for pages in ("warm", "fresh"):
            of_pages = [row for row in found if row.pages == pages]
            if of_pages:
                keep(
                    growth,
                    f"growth-{pages}.png",
                    f"Growth with size, {pages} pages",
                    of_pages,
                    caches,
                )
    return drawn
