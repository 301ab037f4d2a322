"""Promises beside their measured figures, and sums over ResNet-50's layers."""

import math
from dataclasses import dataclass

from benchmarks.cases import LAYERS


@dataclass(frozen=True)
class Verdict:
    """One promise beside its measured figure; `figure` is None without a measurement."""

    text: str
    least: float
    figure: float | None
    where: str = ""  # the worst case, where there are several
    most: float = math.inf

    @property
    def line(self):
        """The promise and its figure, in a line of text."""
        bound = f"at least {self.least:g}" if self.most == math.inf else f"at most {self.most:g}"
        figure = "" if self.figure is None else f"; it is {self.figure:.3f}"
        where = f" ({self.where})" if self.where else ""
        return f"{self.word}: {self.text}: {bound}{figure}{where}"

    @property
    def word(self):
        if self.figure is None:
            return "not measured"
        return "kept" if self.least <= self.figure <= self.most else "NOT KEPT"


def is_broken(verdicts):
    return any(v.word == "NOT KEPT" for v in verdicts)


@dataclass(frozen=True)
class Sum:
    """Times of layers under one set of terms, each shape as often as the network has it."""

    layers: int
    seconds: dict  # of each library with measurements of all shapes
    copied: float  # seconds of the floor at the rate of the copy
    floor: int  # bytes
    group: str
    dtype: str
    layout: str
    operation: str
    pages: str = ""
    threads: int = 0

    def ratio(self, peer):
        """The time of `peer` over bnext's; None where it was not measured in all shapes."""
        return self.seconds[peer] / self.seconds["bnext"] if peer in self.seconds else None

    @property
    def bandwidth(self):
        return self.floor / self.seconds["bnext"]

    @property
    def share_of_copy(self):
        """The share of the rate at which arrays of the same sizes were copied."""
        return self.copied / self.seconds["bnext"]


def resnet50_sums(rows, chosen=lambda row: True, complete=True):
    """A sum for each set of terms, in the order of the rows.

    With `complete`, sums that lack one of the twelve shapes are left out; then `chosen` picks rows.
    """
    by_terms = {}
    for row in rows:
        if row.group.startswith("resnet50") and row.case.name in LAYERS:
            by_terms.setdefault(tuple(row.terms.items()), {})[row.case.name] = row
    return [
        _sum(dict(terms), picked)
        for terms, found in by_terms.items()
        if not complete or set(found) == set(LAYERS)
        if (picked := [row for row in found.values() if chosen(row)])
    ]


def _sum(terms, rows):
    weights = [LAYERS[row.case.name] for row in rows]
    times = [row.times for row in rows]

    def total(values):
        return sum(w * v for w, v in zip(weights, values, strict=True))

    return Sum(
        layers=sum(weights),
        seconds={
            name: total(of_row[name].median for of_row in times)
            for name in times[0]
            if all(name in of_row for of_row in times)
        },
        copied=total(row.copied for row in rows),
        floor=total(row.floor for row in rows),
        **terms,
    )
