"""The picture: loss curves, and the distribution of a hidden layer during training."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnext.command_line import write_output
from bnext.demo.networks import DESCRIPTIONS, Kind
from bnext.demo.training import CHANCE_LOSS, QUANTILES, Record

Float64Array = npt.NDArray[np.float64]

COLORS = {True: "#0072b2", False: "#d55e00"}  # distinct for the colour-blind too
LABELS = {True: "with batch normalization", False: "without"}
HIGHEST_LOSS = 1e3


def draw(records: Sequence[Record], kinds: Sequence[Kind], path: Path) -> None:
    """Draw all runs into the file at `path`, a row of four panels for each network.

    On the left the losses, at the gentle and at the large learning rate; on the right the quantiles
    of a hidden layer at the gentle rate, with and without normalization.
    """
    figure = Figure(figsize=(16, 4.6 * len(kinds)), layout="constrained")
    for kind, (left, middle, with_bn, without_bn) in panels(figure, kinds, 4, fontsize=14):
        # The order of the runs: gentle with, gentle without, large with, large without.
        runs = [record for record in records if record.case.kind == kind]
        lowest = min(_smooth(record).min() for record in runs)
        for panel, pair in ((left, runs[:2]), (middle, runs[2:])):
            _draw_losses(panel, pair)
            panel.set_ylim(lowest / 3, HIGHEST_LOSS)
        limits = _quantile_limits(runs[0], runs[1])
        for panel, record in ((with_bn, runs[0]), (without_bn, runs[1])):
            _draw_quantiles(panel, record)
            panel.set_ylim(*limits)
    save(figure, path, dpi=110)


def panels(
    figure: Figure, kinds: Sequence[Kind], columns: int, fontsize: int
) -> Iterator[tuple[Kind, Sequence[Axes]]]:
    """Add a row of panels for each network, under its description."""
    rows = figure.subfigures(len(kinds), 1, squeeze=False)[:, 0]
    for row, kind in zip(rows, kinds, strict=True):
        row.suptitle(DESCRIPTIONS[kind], fontsize=fontsize, fontweight="bold")
        yield kind, row.subplots(1, columns)


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write the picture, in the format of the file's suffix."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format=path.suffix.removeprefix("."))
    write_output(path, content.getvalue())


def _draw_losses(panel: Axes, pair: Sequence[Record]) -> None:
    """Draw the losses of two runs: each mini-batch's faintly, their moving average on top."""
    across, up = panel.get_yaxis_transform(), panel.get_xaxis_transform()
    for record in pair:
        color = COLORS[record.case.normalized]
        losses = _finite_losses(record)
        steps = np.arange(1, len(losses) + 1)
        panel.plot(steps, losses, color=color, linewidth=0.5, alpha=0.4)
        panel.plot(steps, _smooth(record), color=color, label=LABELS[record.case.normalized])
        if record.diverged:  # a cross at the step, at a fixed height
            note = f"✕ {record.outcome}"
            panel.annotate(note, (len(record.losses), 0.75), xycoords=up, color=color, va="center")
    panel.axhline(CHANCE_LOSS, color="gray", linewidth=0.8, linestyle=":")
    chance: dict[str, Any] = {"color": "gray", "ha": "right", "va": "bottom"}
    panel.annotate("chance", (1, CHANCE_LOSS), xycoords=across, **chance)
    panel.set_yscale("log")
    panel.legend(loc="upper right", frameon=False)
    longest = max(len(record.losses) for record in pair)
    _finish(panel, longest, f"training loss, learning rate {pair[0].case.rate:g}")


def _draw_quantiles(panel: Axes, record: Record) -> None:
    """Draw the quantiles over the steps of one run: two bands and the median."""
    color = COLORS[record.case.normalized]
    quantiles = _finite_quantiles(record).T
    lowest, low, median, high, highest = quantiles
    steps = np.arange(1, len(median) + 1)
    panel.fill_between(steps, lowest, highest, color=color, alpha=0.2, linewidth=0)
    panel.fill_between(steps, low, high, color=color, alpha=0.4, linewidth=0)
    panel.plot(steps, median, color=color)
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    for share, value in zip(QUANTILES, quantiles, strict=True):
        end = (steps[-1], value[-1])
        panel.annotate(f"{share:.0%}", end, color=color, annotation_clip=True, **beside)
    normalization = LABELS[record.case.normalized]
    title = f"quantiles of the last ReLU's input,\nrate {record.case.rate:g}, {normalization}"
    _finish(panel, len(record.losses), title)


def _finish(panel: Axes, steps: int, title: str) -> None:
    panel.set_title(title)
    panel.set_xlabel("step")
    panel.set_xlim(0, steps)
    panel.spines[["top", "right"]].set_visible(False)


def _finite_losses(record: Record) -> Float64Array:
    """List the losses, without the last one where it overflowed."""
    return np.asarray(record.losses[:-1] if record.diverged else record.losses)


def _smooth(record: Record) -> Float64Array:
    """Centred moving geometric mean of the losses over a twentieth of them."""
    logs = np.log(np.maximum(_finite_losses(record), 1e-12))
    half = len(logs) // 40
    padded = np.pad(logs, half, mode="edge")
    return np.exp(np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid"))


def _finite_quantiles(record: Record) -> Float64Array:
    """Shape (steps, 5), up to where a quantile overflowed."""
    quantiles = np.asarray(record.quantiles)
    return quantiles[np.isfinite(quantiles).all(axis=1)]


def _quantile_limits(normalized: Record, plain: Record) -> tuple[float, float]:
    """Limits of both runs, but at most five times the largest quantile of the normalized one."""
    reference = _finite_quantiles(normalized)
    both = np.concatenate([reference, _finite_quantiles(plain)])
    widest = 5 * np.abs(reference).max()
    return max(both.min(), -widest) * 1.05, min(both.max(), widest) * 1.05
