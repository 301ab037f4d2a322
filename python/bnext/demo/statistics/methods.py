"""The methods that give statistics for inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import bnext

FromData = Literal["exact", "pooled", "average"]
FROM_DATA: tuple[FromData, ...] = get_args(FromData)
RUNNING = {
    bnext.Cumulative: "cumulative",
    bnext.Exponential: "exponential",
    bnext.DebiasedExponential: "debiased",
}


@dataclass(frozen=True)
class Method:
    """One method: `bnext.update_statistics` on the data, or an estimator during training."""

    estimator: bnext.Estimator  # `update_statistics` takes only Bessel's correction from it
    from_data: FromData | None = None  # method of `update_statistics`; None: a running average

    @property
    def bessel(self) -> bool:
        """Whether the variance has Bessel's correction."""
        return self.estimator.bessel

    @property
    def family(self) -> str:
        """Name, without the decay and the correction."""
        return self.from_data or RUNNING[type(self.estimator)]

    @property
    def decay(self) -> float | None:
        """Decay of an exponential average, None of others."""
        return None if self.from_data else self.estimator.decay

    @property
    def name(self) -> str:
        """Name in tables and pictures."""
        decay = "" if self.decay is None else f" {self.decay:g}"
        return f"{self.family}{decay}{'' if self.bessel else ', biased'}"


EXACT = Method(bnext.Exponential(), "exact")


def methods(decays: Sequence[float]) -> list[Method]:
    """List every method, with Bessel's correction and without."""
    both = (True, False)
    return [
        *(Method(bnext.Exponential(bessel=b), from_data) for from_data in FROM_DATA for b in both),
        *(Method(bnext.Cumulative(bessel=b)) for b in both),
        *(Method(bnext.Exponential(decay=d, bessel=b)) for d in decays for b in both),
        *(Method(bnext.DebiasedExponential(decay=d, bessel=b)) for d in decays for b in both),
    ]


def shown(all_methods: Iterable[Method]) -> list[Method]:
    """Choose methods for tables: among those without the correction, the average alone."""
    return [m for m in all_methods if m.bessel or m.from_data == "average"]
