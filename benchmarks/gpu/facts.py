"""What `first.py` finds, as lines of a file and of a terminal, and in short."""

import collections

from benchmarks.gpu import tables
from benchmarks.gpu.results import Row

PASSES = ("forward", "backward")
DTYPES = ("bfloat16", "float32")


def line_of(fact):
    """One fact as a line of a terminal."""
    if fact["what"] == "row":
        return _line_of_row(row_of(fact))
    return " ".join([fact["what"], *(_text(v) for k, v in fact.items() if k != "what")])


def row_of(fact):
    return Row.of({name: value for name, value in fact.items() if name != "what"})


def _line_of_row(row):
    errors = row.errors.get("bnext", {})
    return (
        f"row {row.case.name} {row.layout} {row.case.dtype} {row.operation}: {_figures(row)} "
        f"error {max(errors.values(), default=0):.1e}"
    )


def _figures(row):
    peers = "".join(f" {n} x{row.ratio(n):.2f}" for n in ("torch", "cudnn") if n in row.kernel)
    us = row.kernel["bnext"].median * 1e6
    speed = row.floor / us / 1e6
    return f"{us:.1f} us {speed:.2f} TB/s {row.share_of_copy:.0%}{peers} {row.path}"


def _text(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(v)}" for name, v in value.items())
    return f"{value:.2g}" if isinstance(value, float) and value < 1e-2 else str(value)


def summary(found):
    """What matters of all facts, in lines."""
    by_kind = collections.defaultdict(list)
    for fact in found:
        by_kind[fact["what"]].append(fact)
    lines = []
    for fact in by_kind["environment"][-1:]:
        device, versions = fact["device"], fact["versions"]
        lines.append(
            f"{device['name']}, driver {device['driver']}, PyTorch {versions['torch']}, cuDNN "
            f"{versions['cudnn']}, commit {fact['commit']}, build {fact['build']}"
        )
    for kind in ("wall", "paths", "phase"):
        lines += map(line_of, by_kind[kind])
    measured = [row_of(fact) for fact in by_kind["row"]]
    pairs = collections.defaultdict(dict)
    if measured:
        lines.append("rows: time, rate of the floor bytes, share of the copy, x peers, path")
    for row in measured:
        if row.case.dtype in DTYPES:  # of float16 the sums are enough
            pairs[row.case.dtype, row.layout, row.case.name][row.operation] = row
    for place, both in pairs.items():
        figures = (f"{name}: {_figures(row)}" for name, row in both.items())
        lines.append(f"{' '.join(place)}: {'; '.join(figures)}")
    lines += [*map(line_of, by_kind["bandwidth"]), *tables.layers(measured, PASSES)]
    bad = [f for f in by_kind["check"] if not (f.get("right", True) and f.get("same_bits", True))]
    done = sum("errors" in fact for fact in by_kind["check"])
    lines.append(f"{done} checks, of which {len(bad)} are wrong; {len(measured)} rows")
    lines += [f"WRONG: {line_of(fact)}" for fact in bad]
    lines += tables.errors(measured)
    others = (by_kind["left out"], by_kind["out of time"], by_kind["FAILED"])
    return lines + [line_of(fact) for facts in others for fact in facts]
