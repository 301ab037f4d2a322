"""Waiting for the slowest: the longest of P pieces of work that are equal but for disturbances.

With a probability p a piece of work is disturbed, and takes longer by a time that is distributed
exponentially with mean D. The longest of P independent pieces is expected to exceed their mean by

    D (sum over j = 1 ... P of (1 - (1 - p)^j) / j  -  p)

which is p D (P - 1) while even the P have hardly a disturbance among them, and grows by D with each
factor e of P once they have many (its distribution is then Gumbel's). p and D are fitted for each
length of work that was measured.
"""

import math
from dataclasses import dataclass

import numpy as np

PROBABILITIES = np.logspace(-6, 0, 241)
# Independent disturbances add up like this; for work of lengths that were not measured.
GROWTH = 0.5


@dataclass(frozen=True)
class Work:
    """A length of work, in seconds, with the probability and the mean of its disturbances."""

    seconds: float
    probability: float
    delay: float

    def excess(self, ranks):
        """By how much the longest of so many is expected to exceed the mean."""
        return self.delay * float(shape(self.probability, ranks)[-1])


@dataclass(frozen=True)
class Skew:
    """Work of several lengths, the shortest first."""

    works: tuple

    def wait(self, ranks, seconds, barriers=1):
        """Seconds that a rank waits for the slowest, in work of this length cut by barriers."""
        if ranks == 1:
            return 0.0
        length = seconds / barriers
        shortest, longest = self.works[0].seconds, self.works[-1].seconds
        nearest = min(max(length, shortest), longest)
        logs = [(math.log(work.seconds), math.log(work.excess(ranks))) for work in self.works]
        inside = math.exp(np.interp(math.log(nearest), *zip(*logs, strict=True)))
        return barriers * inside * (length / nearest) ** GROWTH


def shape(probability, count):
    """The excess of the longest of 1 ... `count`, with a mean disturbance of 1."""
    j = np.arange(1, count + 1)
    terms = -np.expm1(j * np.log1p(-np.minimum(probability, 1 - 1e-15))) / j
    return np.cumsum(terms) - probability


def fit_work(seconds, excess):
    """The probability and the delay with the least relative errors in the measured excesses."""
    ks, measured = (np.array(column) for column in zip(*excess, strict=True))
    best = None
    for probability in PROBABILITIES:
        ratio = shape(probability, ks[-1])[ks - 1] / measured
        delay = ratio.sum() / (ratio @ ratio)
        error = np.square(delay * ratio - 1).sum()
        if best is None or error < best[0]:
            best = error, Work(seconds, float(probability), float(delay))
    return best[1]


def fit(jitter):
    """The skew of the measured work; None if there is none."""
    works = []
    for row in jitter:
        excess = [(k, value) for k, value in row["excess"] if value > 0]
        if excess:
            works.append(fit_work(row["seconds"], excess))
    return Skew(tuple(works)) if works else None


def normal_maximum(count):
    """The expected maximum of so many standard normal values, for comparison."""
    z = np.linspace(-9, 9, 20001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    step = z[1] - z[0]
    below = np.clip(np.cumsum(density) * step - density * step / 2, 0, 1)
    return float((z * count * below ** (count - 1) * density).sum() * step)
