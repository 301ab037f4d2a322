"""The picture: loss and distance by batch size, and the distance of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bnext.demo.networks import DESCRIPTIONS
from bnext.demo.picture import save
from bnext.demo.statistics.experiment import Outcome
from bnext.demo.statistics.methods import EXACT, Method
from bnext.demo.statistics.options import Options
from bnext.demo.statistics.report import at_layer, farthest, loss, mean_of, methods_of

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


def draw(options: Options, outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw everything into the file at `path`, a row of three panels for each network."""
    # 1.0 for the legend, whatever the number of networks.
    figure = Figure(figsize=(13, 3.9 * len(options.kinds) + 1.0), layout="constrained")
    rows = figure.subfigures(len(options.kinds), 1, squeeze=False)[:, 0]
    panels: Any = ()
    for row, kind in zip(rows, options.kinds, strict=True):
        row.suptitle(DESCRIPTIONS[kind], fontsize=13, fontweight="bold")
        panels = row.subplots(1, 3)
        for panel in panels:
            panel.set_yscale("log")  # while it is empty: the lines then set its limits
        of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
        _draw_losses(panels[0], options, of_kind)
        _draw_distances(panels[1], options, of_kind)
        _draw_layers(panels[2], options, of_kind)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False)
    save(figure, path, dpi=100)


def _draw_losses(panel: Axes, options: Options, outcomes: Sequence[Outcome]) -> None:
    def ratio(method: Method, size: int) -> float:
        return mean_of(outcomes, size, method, loss) / mean_of(outcomes, size, EXACT, loss)

    _draw_lines(panel, options, outcomes, ratio)
    panel.set_title("test loss, in units of that with exact statistics")
    _by_batch_size(panel, options)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw_distances(panel: Axes, options: Options, outcomes: Sequence[Outcome]) -> None:
    _draw_lines(panel, options, outcomes, lambda m, size: mean_of(outcomes, size, m, farthest))
    panel.set_title("distance from exact, farthest layer")
    _by_batch_size(panel, options)


def _draw_lines(
    panel: Axes,
    options: Options,
    outcomes: Sequence[Outcome],
    value: Callable[[Method, int], float],
) -> None:
    for method in methods_of(outcomes):
        values = [value(method, size) for size in options.batch_sizes]
        panel.plot(options.batch_sizes, values, label=method.name, **_style(method, options))


def _by_batch_size(panel: Axes, options: Options) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(options.batch_sizes, [str(size) for size in options.batch_sizes])
    panel.set_xlabel("batch size")
    _finish(panel)


def _draw_layers(panel: Axes, options: Options, outcomes: Sequence[Outcome]) -> None:
    layers = range(len(outcomes[0].distances))
    size = options.detailed
    for method in methods_of(outcomes):
        distances = [mean_of(outcomes, size, method, at_layer(n, "total")) for n in layers]
        # For the first layer one pass is exact, except for rounding.
        visible = [value if value > ROUNDING else np.nan for value in distances]
        panel.plot([layer + 1 for layer in layers], visible, **_style(method, options))
    panel.set_xticks([layer + 1 for layer in layers])
    panel.set_xlabel("layer")
    panel.set_title(f"distance from exact by layer, batch size {size}")
    _finish(panel)


def _finish(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)


def _style(method: Method, options: Options) -> dict[str, Any]:
    """Colour by family and decay; dashed if debiased, dotted without Bessel's correction."""
    if method.decay is None:
        color: Any = COLORS[method.family]
    else:
        place = options.decays.index(method.decay) / max(1, len(options.decays) - 1)
        color = matplotlib.colormaps[SHADES](LIGHTEST + (DARKEST - LIGHTEST) * place)
    line = "--" if method.family == "debiased" else "-" if method.bessel else ":"
    marker = MARKERS.get(method.family, "o")
    return {
        "color": color,
        "linestyle": line,
        "marker": marker,
        "markersize": 4,
        "linewidth": 1.6,
    }
