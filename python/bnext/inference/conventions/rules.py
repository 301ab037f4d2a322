"""Rules: how a library averages the statistics of batches, and what another rule would have given.

After k batches, every average that is known here is

    stored = a * initial + c * sum_i (1 - d) d^(k - i) batch_i,

where d is the decay, the initial values are 0 (mean) and 1 (variance), and a and c follow from k
and d. The sum is the same for every rule, but for Bessel's correction of the variance. So the value
that another rule would have given after the same batches, of n values per channel each, is

    sum = (stored - a * initial) / c,    a' * initial + c' * f * sum,

with f = n / (n - 1), its inverse, or 1. The initial value is kept out of the correction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.estimators import (
    Cumulative,
    DebiasedExponential,
    Estimator,
    Exponential,
    FirstBatchExponential,
)

__all__ = ["Rule", "Start", "Steps", "Values", "convert", "power", "rule_of"]

Start = Literal["blended", "debiased", "divided", "first", "cumulative"]
"""Where an average starts.

- blended: at 0 and 1, whose weight is d^k after k batches. (PyTorch, Keras, Flax, most others.)
- debiased: the same from 0 and 0, divided by 1 - d^k: an average of batches alone. (haiku, sonnet.)
- divided: blended, and divided by 1 - d^k where it is used. (Equinox with mode="batch".)
- first: the first batch is taken whole. (Equinox with mode="ema".)
- cumulative: the plain mean of all batches. (PyTorch with momentum=None.)
"""

Float64Array = npt.NDArray[np.float64]
Steps = int | float
"""A number of batches; infinity where the initial values have decayed."""

INITIAL = {
    "blended": (0.0, 1.0), "debiased": (0.0, 0.0), "divided": (0.0, 1.0), "first": (0.0, 0.0),
    "cumulative": (0.0, 1.0),
}  # fmt: skip
LEAST = 1e-3  # a sum that is more negative than this share of the start is no rounding error


class Values(NamedTuple):
    """Statistics as inference uses them, float64, shape (C,)."""

    mean: Float64Array
    var: Float64Array


@dataclass(frozen=True)
class Rule:
    """How statistics are averaged, and which variance is stored."""

    start: Start
    bessel: bool
    momentum: float | None  # the weight of a new batch; None: cumulative

    @property
    def decay(self) -> float | None:
        """The weight of the old average."""
        return None if self.momentum is None else 1.0 - self.momentum

    def estimator(self) -> Estimator:
        """Make the estimator of a layer that moves its statistics by this rule."""
        if self.momentum is None:
            return Cumulative(bessel=self.bessel)
        if self.start == "blended":
            return Exponential(self.momentum, bessel=self.bessel)
        if self.start == "first":
            return FirstBatchExponential(self.momentum, bessel=self.bessel)
        # By the weight (1 - d) / (1 - d^t), (stored / (1 - d^t)) moves as `divided` does, too.
        return DebiasedExponential(self.momentum, bessel=self.bessel)


def rule_of(estimator: Estimator) -> Rule:
    """Give the rule of a layer's estimator; ValueError for an estimator of the user's own."""
    starts: dict[type, Start] = {
        Exponential: "blended", DebiasedExponential: "debiased", FirstBatchExponential: "first",
        Cumulative: "cumulative",
    }  # fmt: skip
    if type(estimator) not in starts:
        expected = ", ".join(kind.__name__ for kind in starts)
        raise ValueError(
            f"bn: expected an estimator among {expected}, got {type(estimator).__name__}"
        )
    return Rule(starts[type(estimator)], estimator.bessel, estimator.momentum)


def power(decay: float, steps: Steps) -> float:
    """``decay ** steps``, the weight of the initial values; also for infinitely many steps."""
    try:
        weight = decay**steps
    except OverflowError:
        weight = math.inf
    if not math.isfinite(weight):
        raise ValueError(f"decay: expected initial values that decay, got decay={decay}")
    return weight


def complement(decay: float, steps: Steps) -> float:
    """``1 - decay ** steps``, without cancellation."""
    if 0.0 < decay < 1.0:
        return -math.expm1(steps * math.log(decay))
    return 1.0 - power(decay, steps)


def convert(
    values: Values, source: Rule, target: Rule, steps: Steps | None, count: int | None
) -> Values:
    """Give the values that the target rule would have given after the same batches.

    `steps` is their number k, None where it is not known, and `count` is n. Raises ValueError where
    one of them is needed and missing, or where no such value exists.
    """
    if (source.start, source.bessel) == (target.start, target.bessel):
        return values
    if source.bessel != target.bessel and count is None:
        raise ValueError(
            "count: expected the number of values per channel of the batches, since one side "
            "stores m2 / n and the other m2 / (n - 1), got None"
        )
    factor = 1.0
    if count is not None and source.bessel != target.bessel:
        factor = count / (count - 1) if target.bessel else (count - 1) / count
    if {source.start, target.start} & {"first", "cumulative"}:
        return _of_one_kind(values, source, target, steps, factor)
    if source.decay is None:
        raise ValueError("decay: expected a number, got None")
    if steps is None:
        raise ValueError(
            "steps: expected the number of batches that the statistics were averaged over "
            "(math.inf where the initial values have decayed), got None"
        )
    if steps == 0:
        return _initial(values, target)
    a, c = _shares(source, source.decay, steps)
    b, e = _shares(target, source.decay, steps)
    mean, var = values
    if source.start != target.start:
        mean = mean * (e / c)
    total = var - a
    if (wrong := np.flatnonzero(total < -LEAST * abs(a))).size:
        channel = int(wrong[0])
        raise ValueError(
            f"steps: expected as many batches as the variance was averaged over; after {steps}, "
            f"the initial 1 contributes {a:.6g}, but channel {channel} has {var[channel]:.6g} "
            "(pass the right steps and decay)"
        )
    return Values(mean, np.maximum(b + (e / c) * factor * total, 0.0))


def _of_one_kind(
    values: Values, source: Rule, target: Rule, steps: Steps | None, factor: float
) -> Values:
    """Averages that can become no other kind: the batches in them have other weights."""
    if source.start != target.start:
        hint = {
            "first": "an average whose first batch was taken whole (bnext.FirstBatchExponential)",
            "cumulative": "a cumulative average (momentum=None)",
        }
        kind = "first" if "first" in (source.start, target.start) else "cumulative"
        got, wanted = hint[kind], "an average of another kind"
        if target.start == kind:
            got, wanted = wanted, got
        raise ValueError(
            f"count, steps: expected {wanted}, got {got}: it gives its batches other weights, and "
            "has no exact equivalent (leave count and steps out to keep the results of inference)"
        )
    if steps == 0:
        return _initial(values, target)
    return Values(values.mean, values.var * factor)


def _initial(values: Values, target: Rule) -> Values:
    mean, var = INITIAL[target.start]
    return Values(np.full_like(values.mean, mean), np.full_like(values.var, var))


def _shares(rule: Rule, decay: float, steps: Steps) -> tuple[float, float]:
    """Give a and c of the formula at the head of this module."""
    if rule.start == "blended":
        return power(decay, steps), 1.0
    rest = complement(decay, steps)
    if rest <= 0.0:
        raise ValueError(f"decay: expected a decay below 1, got {decay}")
    return (power(decay, steps) / rest if rule.start == "divided" else 0.0), 1.0 / rest


def check_finite(name: str, values: npt.NDArray[Any], *, variance: bool = False) -> None:
    """ValueError that names the channel of a value that is NaN or infinite, or a variance < 0."""
    with np.errstate(invalid="ignore"):
        good = np.isfinite(values) & (values >= 0 if variance else True)
    if not good.all():
        channel = int(np.flatnonzero(~good)[0])
        kind = "a finite variance >= 0" if variance else "a finite mean"
        raise ValueError(f"{name}: expected {kind}, got {values[channel]} in channel {channel}")
