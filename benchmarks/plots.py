"""The plots of the report: ratios by shape, shares of the copy bandwidth, growth with size."""

from benchmarks.peers import TITLES
from benchmarks.promises import THREADS

# Colours that are distinct for the colour-blind (Okabe and Ito), and marks that need no colour.
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


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure, path):
    """Save with a palette: a plot has few colours, and repositories keep every version."""
    from PIL import Image

    figure.savefig(path, dpi=DPI)
    pyplot().close(figure)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def ratios(rows, title, path):
    """A dot for each shape and peer, on a logarithmic axis; left of the line are losses."""
    peers = [p for p in TITLES if any(p in row.timings for row in rows)]
    values = [row.ratio(peer) for row in rows for peer in row.peers]
    low, high = min([0.8, *values]) / 1.15, max([2, *values]) * 1.15
    ticks = [m * 10.0**e for e in range(-2, 4) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]

    def prepare(axis):
        axis.axvspan(low, 1, color="#d55e00", alpha=0.08, lw=0)
        axis.axvline(1, color="black", lw=1)
        axis.set(xscale="log", xlim=(low, high))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()

    label = "peer's time / bnext's; left of 1 bnext is slower"
    _dots(rows, peers, lambda row, peer: row.ratio(peer), prepare, title, label, path)


def shares(rows, title, path):
    """The share of the copy bandwidth that bnext and others reach on floor bytes."""
    libraries = [n for n in ("bnext", "torch", "onednn_best") if any(n in r.timings for r in rows)]
    highest = max(
        [1, *(row.share_of_copy(n) for row in rows for n in libraries if n in row.timings)]
    )

    def prepare(axis):
        for limit, style in ((0.5, ":"), (0.75, "--"), (1.0, "-")):
            axis.axvline(limit, color="black", lw=0.8, ls=style)
        axis.set_xlim(0, highest * 1.05)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    label = "share of the copy bandwidth on floor bytes (lines: 50 %, 75 %, 100 %)"
    _dots(rows, libraries, lambda row, name: row.share_of_copy(name), prepare, title, label, path)


def _dots(rows, libraries, figure_of, prepare, title, x_label, path):
    """A line for each case, an axis for each operation, a mark for each library."""
    plt = pyplot()
    operations = [op for op in OPERATIONS if any(row.operation == op for row in rows)]
    names = list(dict.fromkeys(row.name for row in rows))
    size = 3.2 * len(operations) + 1.4, 0.29 * len(names) + 1.6
    figure, axes = plt.subplots(
        1, len(operations), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, operation in zip(axes[0], operations, strict=True):
        prepare(axis)
        axis.set_title(operation, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        for line in range(0, len(names), 2):
            axis.axhspan(line - 0.5, line + 0.5, color="black", alpha=0.05, lw=0)
        for i, library in enumerate(libraries):
            color, mark = STYLE[library]
            found = [r for r in rows if r.operation == operation and library in r.timings]
            beside = (i - (len(libraries) - 1) / 2) * 0.5 / max(len(libraries) - 1, 1)
            axis.plot(
                [figure_of(row, library) for row in found],
                [names.index(row.name) + beside for row in found],
                mark,
                color=color,
                ms=6 if library == "bnext" else 5,
                label=TITLES.get(library, library),
            )
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel(x_label, fontsize=10)
    _legend(figure, axes, title)
    save(figure, path)


def _legend(figure, axes, title):
    """The title and the libraries of all axes, above them."""
    handles = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    place = {"loc": "outside upper center", "ncols": len(handles), "fontsize": 9, "frameon": False}
    figure.legend(handles.values(), handles.keys(), title=title, title_fontsize=11, **place)


def growth(rows, caches, title, path):
    """GB/s on floor bytes against the number of elements, over five orders of magnitude."""
    plt = pyplot()
    kinds = [k for k in ("planar", "rows") if any(row.layout == k for row in rows)]
    operations = [op for op in OPERATIONS if any(row.operation == op for row in rows)]
    figure, axes = plt.subplots(
        len(operations),
        len(kinds),
        figsize=(4.6 * len(kinds), 2.9 * len(operations)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
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
            shape = "(16, 64, S, S)" if kind == "planar" else "(N, 128)"
            axis.set_title(f"{operation}, {shape}", fontsize=10, pad=14 if i == 0 else 6)
            axis.grid(which="major", alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("elements")
    for line in axes:
        line[0].set_ylabel("GB/s on floor bytes")
    _legend(figure, axes, title)
    save(figure, path)


def _growth_lines(axis, rows):
    for name, (color, mark) in STYLE.items():
        if name == "copy":
            points = [(r.nbytes, r.copy_bandwidth) for r in rows]
        else:
            points = [(r.nbytes, r.bandwidth(name)) for r in rows if name in r.timings]
        if points:
            x = [nbytes / 4 for nbytes, _ in points]
            y = [value / 1e9 for _, value in points]
            style = {"lw": 2.2} if name == "bnext" else {"lw": 1, "alpha": 0.9}
            label = TITLES.get(name, name)
            axis.plot(x, y, marker=mark, ms=3.5, color=color, label=label, **style)
    axis.set(xscale="log", yscale="log")


def _pictures(rows):
    """The plots: name, title, function, and the rows, of which there may be none."""
    rows = [row for row in rows if row.threads == THREADS]

    def chosen(groups, dtype, layout, pages="warm"):
        terms = dtype, layout, pages
        return [r for r in rows if r.group in groups and (r.dtype, r.layout, r.pages) == terms]

    resnet = ("resnet50-b32",)
    for dtype in dict.fromkeys(row.dtype for row in rows):
        for layout in ("planar", "channels last"):
            name = f"resnet50-{dtype}-{layout.replace(' ', '-')}"
            title = f"ResNet-50's layers, batch 32, {dtype}, {layout}"
            warm, fresh = (chosen(resnet, dtype, layout, pages) for pages in ("warm", "fresh"))
            yield name, f"{title}, warm pages", ratios, warm
            yield f"{name}-fresh", f"{title}, fresh pages", ratios, fresh
            yield f"{name}-share", f"{title}: share of the copy", shares, warm
        tables = ("rows", "others", "misaligned")
        for layout in ("rows", "planar", "channels last"):
            name = f"others-{dtype}-{layout.replace(' ', '-')}"
            words = "Rows" if layout == "rows" else f"Other shapes, {layout}"
            found = chosen(tables, dtype, layout)
            yield name, f"{words}, {dtype}, warm pages", ratios, found
            yield f"{name}-share", f"{words}, {dtype}: share of the copy", shares, found
    for pages in ("warm", "fresh"):
        found = [row for row in rows if row.group == "growth" and row.pages == pages]
        yield f"growth-{pages}", f"Growth with size, float32, {pages} pages", growth, found


def draw_all(rows, caches, folder):
    """Draw every plot that has rows; returns pairs of a file's name and its title."""
    drawn = []
    for name, title, function, found in _pictures(rows):
        if found:
            more = (caches,) if function is growth else ()
            function(found, *more, title, folder / f"{name}.png")
            drawn.append((f"{name}.png", title))
    return drawn
