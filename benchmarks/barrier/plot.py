"""The plot: allreduce as measured and as modelled, and the share of a step at scale."""

import textwrap

from benchmarks.barrier import model, prediction
from benchmarks.barrier.results import fits_processors, select
from benchmarks.plots import pyplot, save

COLORS = {"mpi": "#0072b2", "gloo": "#d55e00"}
SETUP_COLORS = ("#0072b2", "#56b4e9", "#d55e00")
MARKS = {2: "o", 3: "^", 4: "s"}
STYLES = {"GPU-like": "-", "CPU-like": "--"}


def draw(document, engines, setups, found, assumptions, caption, path):
    """Both panels, with the assumptions below them."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 5.9))
    _allreduces(left, document, engines)
    _shares(right, setups, found, assumptions)
    figure.tight_layout(rect=(0, 0.18, 1, 1))
    text = textwrap.fill(caption, 178)
    figure.text(0.01, 0.01, text, fontsize=7.5, va="bottom", ha="left")
    save(figure, path)


def _allreduces(axis, document, engines):
    for engine in engines:
        rows = select(document, what="allreduce", engine=engine.name)
        name, color = prediction.NAMES[engine.name], COLORS[engine.name]
        for ranks in sorted({r["ranks"] for r in rows}):
            of_ranks = [r for r in rows if r["ranks"] == ranks]
            alone = fits_processors(document, of_ranks[0])
            sizes = [r["bytes"] for r in of_ranks]
            label = f"{name}, {ranks} processes{'' if alone else ', more than processors'}"
            style = {"color": color, "ms": 5, "mfc": color if alone else "none", "lw": 0}
            points = [1e6 * model.measured(r) for r in of_ranks]
            axis.plot(sizes, points, marker=MARKS.get(ranks, "D"), label=label, **style)
            if alone:
                curve = [1e6 * model.modelled(document, engine, r) for r in of_ranks]
                axis.plot(sizes, curve, color=color, lw=1.2, label=f"{label}: model")
    axis.set(xscale="log", yscale="log", xlabel="bytes in each process", ylabel="us")
    axis.set_title("Allreduce over processes of one machine", fontsize=10)
    axis.grid(which="major", alpha=0.25)
    if engines:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * 200)  # room for the legend
        axis.legend(fontsize=7.5, frameon=False, loc="upper left")


def _shares(axis, setups, found, assumptions):
    """A colour for each setup and for waiting, a style of line for each kind of rank."""
    from matplotlib.lines import Line2D

    ranks = prediction.RANKS
    handles = []
    for setup, color in zip(setups, SETUP_COLORS, strict=False):
        handles.append(Line2D([], [], color=color, marker="o", ms=3, label=setup.title))
    if found:
        handles.append(Line2D([], [], color="black", lw=1, label="waiting for the slowest"))
    for kind, compute in assumptions.compute_seconds.items():
        style = STYLES[kind]
        text = f"{kind} ranks, {1e3 * compute:.3g} ms of computing"
        handles.append(Line2D([], [], color="#666666", ls=style, label=text))
        for setup, color in zip(setups, SETUP_COLORS, strict=False):
            shares = [prediction.share(setup.step_seconds(n), compute) for n in ranks]
            axis.plot(ranks, shares, style, color=color, marker="o", ms=3)
        if found:
            waits = [prediction.waiting(found, n, compute).every for n in ranks]
            shares = [prediction.share(wait, compute) for wait in waits]
            axis.plot(ranks, shares, style, color="black", lw=1)
    axis.set(xscale="log", yscale="log", xlabel="ranks", ylabel="share of a step")
    axis.set_ylim(axis.get_ylim()[0] / 12, 1.4)  # room for the legend
    axis.set_xticks(ranks[::2], [f"{n:,}" for n in ranks[::2]])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axis.set_title("The barrier's share of a ResNet-50 step: prediction", fontsize=10)
    axis.grid(which="major", alpha=0.25)
    axis.legend(handles=handles, fontsize=7.5, frameon=False, loc="lower right")
