"""The picture: loss and distance by batch size, and the distance of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bnext.demo.picture import panels, save
from bnext.demo.statistics.comparison import Comparison
from bnext.demo.statistics.methods import EXACT, Method
from bnext.demo.statistics.options import Options, detailed

# Distinct for the colour-blind too. Exponential averages are shades, darker with the decay.
COLORS = {
    "exact": "black",
    "pooled": "#0072b2",
    "average": "#56b4e9",
    "cumulative": "#009e73",
}
MARKERS = {"exact": "", "pooled": "s", "average": "D", "cumulative": "^"}
SHADES = "YlOrBr"
LIGHTEST, DARKEST = 0.35, 0.95
ROUNDING = 1e-5  # distances below this count as 0


def draw(options: Options, compared: Sequence[Comparison], path: Path) -> None:
    """Draw everything into the file at `path`, a row of three panels for each network."""
    # 1.0 for the legend, whatever the number of networks.
    figure = Figure(figsize=(13, 3.9 * len(compared) + 1.0), layout="constrained")
    rows = panels(figure, [each.kind for each in compared], 3, fontsize=13)
    for each, (_, (losses, distances, by_layer)) in zip(compared, rows, strict=True):
        sizes, size, means = each.sizes, detailed(each.sizes), each.means
        for panel in (losses, distances, by_layer):
            panel.set_yscale("log")  # while it is empty: the lines then set its limits
        for method in each.methods:
            style = _style(method, options.decays)
            ratios = [means[m, method].loss / means[m, EXACT].loss for m in sizes]
            losses.plot(sizes, ratios, label=method.name, **style)
            distances.plot(sizes, [means[m, method].farthest for m in sizes], **style)
            # For the first layer one pass is exact, except for rounding.
            total = means[size, method].layers[:, 2]
            layers = range(1, len(total) + 1)
            by_layer.plot(layers, np.where(total > ROUNDING, total, np.nan), **style)
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
        for panel in (losses, distances):
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(m) for m in sizes])
        by_layer.set_xticks(layers)
        _finish(losses, "batch size", "test loss, in units of that with exact statistics")
        _finish(distances, "batch size", "distance from exact, farthest layer")
        _finish(by_layer, "layer", f"distance from exact by layer, batch size {size}")
    lines, labels = losses.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False)
    save(figure, path, dpi=100)


def _finish(panel: Axes, across: str, title: str) -> None:
    panel.set_xlabel(across)
    panel.set_title(title)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)


def _style(method: Method, decays: Sequence[float]) -> dict[str, Any]:
    """Colour by family and decay; dashed if debiased, dotted without Bessel's correction."""
    if method.decay is None:
        color: Any = COLORS[method.family]
    else:
        place = decays.index(method.decay) / max(1, len(decays) - 1)
        color = matplotlib.colormaps[SHADES](LIGHTEST + (DARKEST - LIGHTEST) * place)
    return {
        "color": color,
        "linestyle": "--" if method.family == "debiased" else "-" if method.bessel else ":",
        "marker": MARKERS.get(method.family, "o"),
        "markersize": 4,
        "linewidth": 1.6,
    }
