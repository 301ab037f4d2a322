"""The part of docs/conventions.md that the records make; benchmarks.conventions.page has all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnext.inference.conventions.behaviour import BEHAVIOUR
from bnext.inference.conventions.libraries import CONVENTIONS
from bnext.inference.conventions.record import Convention

__all__ = ["markdown", "page"]

HEAD = """\
# Conventions of other libraries

<!-- Made by `python -m benchmarks.conventions.page`. Change the records, not this page. -->

All libraries normalize by `weight * (x - mean) / sqrt(var + eps) + bias` with their running
statistics. They differ in the names of the four arrays, in eps, in what a number called momentum
weighs, in where averages start, and in which variance they store: m2/n, or with Bessel's correction
m2/(n - 1), where n is the number of values per channel of a batch. `bnext.to_convention` and
`bnext.from_convention` know these conventions by the names in the first column;
`bnext.load_statistics` and `python -m bnext convert` read files.

```python
import bnext

bn = bnext.BatchNorm2d(64)                          # and some training
arrays = bnext.to_convention(bn, "keras")           # inference stays the same
same = bnext.from_convention("keras", arrays)       # goes on training as Keras does
```

The numbers were printed by runs of the releases in the first table, on a CPU.

## Names and numbers
"""

STATISTICS = """
## Running statistics

With d the weight of the old value and k the number of batches, an average that starts at 0 and 1
still has the weight d^k of them. `count` (n) and `steps` (k) make `to_convention` and
`from_convention` give what the other library would have stored after the same batches. The start is
kept out of Bessel's correction:

    v_unbiased = d^k + (v_biased - d^k) n/(n - 1),    v_biased = d^k + (v_unbiased - d^k) (n - 1)/n

Batches of unequal sizes have no exact conversion between m2/n and m2/(n - 1): each has a factor of
its own in the sum. Between equal variances any sizes are exact. Without `count` and `steps`,
results of inference stay.

"""

NOTES = """
## What else

"""

BEHAVE = """
## Difficult input

In training, on a CPU. The large mean is 10^4 standard deviations, in float32: by how much the
stored variance is wrong. bnext refuses one value per channel (ValueError) and leaves statistics as
they are after an empty batch; at the large mean its variance is exact to rounding.

"""

STARTS: dict[str | None, str] = {
    "blended": "0 and 1, which decay",
    "debiased": "none: divided by 1 - d^k",
    "divided": "0 and 1; divided by 1 - d^k in inference",
    "first": "the first batch, whole",
    None: "no training",
}


def page(measured: str = "") -> str:
    """Give the text of the page, with a section of what was measured before the last."""
    names = [
        [
            f"`{key}`",
            record.title + (f" ({record.releases})" if record.releases else ""),
            ", ".join(f"`{name}`" for name in record.names if name),
            _eps(record),
            _momentum(record),
            _axis(record),
        ]
        for key, record in CONVENTIONS.items()
    ]
    statistics = [
        [f"`{key}`", _variance(record), STARTS[record.start], _extra(record)]
        for key, record in CONVENTIONS.items()
        if not record.folded
    ]
    notes = [f"- `{key}`: {record.note}." for key, record in CONVENTIONS.items() if record.note]
    depends = [
        f"- `{key}`: `bessel=` depends on {record.bessel_depends}."
        for key, record in CONVENTIONS.items()
        if record.bessel_depends
    ]
    behaviour = [[f"`{key}`", *words] for key, words in BEHAVIOUR.items()]
    return "".join(
        (
            HEAD,
            "\n",
            markdown(("name", "library", "arrays", "eps", "momentum", "channels at"), names),
            STATISTICS,
            markdown(("name", "stored variance", "start", "further arrays"), statistics),
            NOTES,
            "\n".join([*depends, *notes]),
            "\n",
            measured,
            BEHAVE,
            markdown(
                ("name", "one value per channel", "empty batch", "large mean", "16 bits", "mask"),
                behaviour,
            ),
        )
    )


def _eps(record: Convention) -> str:
    return f"`{record.eps_name}`, " + ("to be given" if record.eps is None else f"{record.eps:g}")


def _momentum(record: Convention) -> str:
    if record.start is None:
        return "-"
    default = "no default" if record.momentum is None else f"{record.momentum:g}"
    return f"`{record.momentum_name}` weighs the {record.momentum_weighs}, {default}"


def _axis(record: Convention) -> str:
    return "the last axis" if record.channel_axis == -1 else f"axis {record.channel_axis}"


def _variance(record: Convention) -> str:
    if record.start is None:
        return "as it is given"
    if record.bessel is None:
        return "either: `bessel=`"
    return "m2/(n - 1)" if record.bessel else "m2/n"


def _extra(record: Convention) -> str:
    named = (*record.counters, *(record.hidden or ()), record.factor, record.first_flag)
    found = [f"`{name}`" for name in (*named, record.unit_weight_flag) if name]
    found += [f"`{name}` (dropped)" for name in record.dropped]
    if record.form == "keepdims":
        found.append("shape (1, ..., C, ..., 1)")
    if record.trailing:
        found.append(f"{' and '.join(f'`{name}`' for name in record.trailing)} (C, 1, ..., 1)")
    return ", ".join(found) or "-"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
