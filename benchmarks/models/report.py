"""The report: steps, memory and losses, with what they were measured on."""

import math

from benchmarks.kit.tables import NOT_MEASURED, facts, facts_of, markdown
from benchmarks.kit.turns import FEWEST_CALLS as STEPS
from benchmarks.models.cases import TITLES
from benchmarks.models.losses import CONTROLS, FACTOR, PARTED, agree, differences, limits

HOW = f"""\
- Networks are built once for each kind of layers, from the same random numbers: PyTorch's layers;
  the same converted by `bnext.torch.convert`; and with nothing in their place. Definitions are in
  `networks.py` (the stride of a bottleneck is in its 3x3 convolution), data is synthetic.
- A step is forward, loss, backward and SGD with momentum and weight decay. The three take turns,
  forwards and backwards, in one process: a step that is not timed, since training does not go from
  network to network, and then {STEPS} that are. A figure is the median of its turns, with the 10th
  and 90th percentile. Ratios are medians over pairs of neighbouring turns. Steps are timed at a
  learning rate of 0, so that all are alike.
- *Of the step*: by how much a step is shorter without the layers, in turns next to each other. That
  has all that they cause, also in the caches and the memory of their neighbours.
- Memory: at most, less before the first step, in a process for each; on the CPU what of it is
  resident (with the blocks that bnext's pool keeps), on a GPU what PyTorch has allocated. So it
  has activations, gradients and momentum.
- Losses: from step to step rounding is amplified. The controls, {CONTROLS} of them, have PyTorch's
  layers, of which every output is moved at random, by up to a unit in the last place of the layer's
  largest one. What bnext's
  differ by from PyTorch's may be {FACTOR} times what the farthest control has differed by so far.
  Once a control has left by more than {PARTED:.0%}, nothing is compared.
"""


def write_report(document, folder):
    """Write report.md; returns what a terminal should show."""
    steps, losses = steps_table(document["rows"]), losses_table(document["losses"])
    text = [
        _introduction(document["environment"]),
        f"## Steps\n\n{steps}",
        f"## Memory\n\n{memory_table(document['rows'])}",
        f"## Losses\n\n{losses}",
        *(_path(found) for found in document["losses"]),
        f"## How it was measured\n\n{HOW}",
    ]
    (folder / "report.md").write_text("\n".join(text))
    return f"{steps}\n{losses}"


def _introduction(about):
    usual = facts_of(about)
    lines = [
        ("Date", usual["Date"]),
        ("Processor", f"{about['processor']}, {about['processors']} processors"),
        ("Device", about["device"]),
        *((name, usual[name]) for name in ("Versions", "Commit", "OpenMP")),
        ("Load", about["load"]),
        ("System", usual["System"]),
    ]
    return f"# Whole models with bnext's layers and with PyTorch's\n\n{facts(lines)}"


def steps_table(rows):
    header = (
        *("case", "threads", "layers", "x PyTorch (p10-p90)", "bnext ms (p10-p90)"),
        *("PyTorch ms (p10-p90)", "without ms", "of the step: bnext", "PyTorch"),
    )
    lines = []
    for row in rows:
        ratio, p10, p90 = row["ratio"]
        seconds, shares = row["seconds"], row["shares"]
        lines.append(
            (
                *(row["title"], str(row["threads"]), str(row["normalizations"])),
                f"{ratio:.3f} ({p10:.2f}-{p90:.2f})",
                *(_milliseconds(seconds[name]) for name in ("bnext", "torch")),
                _milliseconds(seconds["none"]).split()[0],
                *(f"{shares[name]:.1%}" for name in ("bnext", "torch")),
            )
        )
    return markdown(header, lines, NOT_MEASURED)


def memory_table(rows):
    lines = []
    for row in rows:
        taken = {name: _taken(found) for name, found in row["memory"].items()}
        if None in taken.values():
            continue
        lines.append(
            (
                row["title"],
                *(f"{taken[name] / 1e6:.0f}" for name in ("bnext", "torch")),
                f"{taken['bnext'] / taken['torch']:.2f}" if taken["torch"] else "-",
            )
        )
    header = ("case", "bnext MB", "PyTorch MB", "bnext / PyTorch")
    return markdown(header, lines, NOT_MEASURED)


def losses_table(losses):
    """By how much losses differ: in the first step, and at the end beside what is allowed."""
    lines = []
    for found in losses:
        ours, allowed = differences(found, found["bnext"]), limits(found)
        controls = [differences(found, control)[-1] for control in found["controls"]]
        nearest = max(range(len(ours)), key=lambda k: ours[k] / allowed[k])
        lines.append(
            (
                *(
                    TITLES[found["network"]],
                    found["dtype"],
                    f"{sum(map(math.isfinite, allowed))} of {len(ours)}",
                ),
                f"{found['torch'][0]:.4g} to {found['torch'][-1]:.4g}",
                *(f"{value:.1e}" for value in (ours[0], ours[-1], max(controls))),
                f"{ours[nearest] / allowed[nearest]:.2f} in step {nearest + 1}",
                "agree" if agree(found) else "**DIFFER**",
            )
        )
    header = (
        *(
            "network",
            "dtype",
            "steps compared",
            "loss",
            "first difference",
            "last",
            "last of controls",
        ),
        *("most of what is allowed", ""),
    )
    return markdown(header, lines, NOT_MEASURED)


def _path(found):
    """The differences of every step, folded away."""
    ours, allowed = differences(found, found["bnext"]), limits(found)
    controls = [differences(found, control) for control in found["controls"]]
    lines = [
        (
            *(str(k + 1), f"{found['torch'][k]:.6g}", f"{ours[k]:.1e}", f"{allowed[k]:.1e}"),
            *(f"{control[k]:.1e}" for control in controls),
        )
        for k in range(len(ours))
    ]
    names = (f"control {k + 1}" for k in range(len(controls)))
    table = markdown(("step", "loss of PyTorch's", "bnext", "allowed", *names), lines)
    title = f"{TITLES[found['network']]}, {found['dtype']}: relative differences, step by step"
    return f"<details><summary>{title}</summary>\n\n{table}\n</details>\n"


def _milliseconds(seconds):
    median, p10, p90, _ = (1e3 * value for value in seconds)
    return f"{median:.4g} ({p10:.4g}-{p90:.4g})"


def _taken(found):
    return None if found is None else found["most"] - found["before"]
