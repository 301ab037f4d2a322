"""What a library would store without rounding: its rule, written out in float64.

Nothing here comes from bnext, whose arithmetic is compared with it.
"""

from __future__ import annotations

import numpy as np

from benchmarks.conventions.batches import CHANNELS


class Rule:
    """Running statistics from a start, by a decay, with or without Bessel's correction."""

    def __init__(self, start: str, decay: float | None, bessel: bool) -> None:
        self.start, self.decay, self.bessel = start, decay, bessel
        self.steps, self.mean = 0, np.zeros(CHANNELS)
        self.var = np.zeros(CHANNELS) if start == "debiased" else np.ones(CHANNELS)

    def train(self, x: np.ndarray) -> None:
        """Move them by a batch with channels at axis 1."""
        self.steps += 1
        values = np.moveaxis(x, 1, -1).reshape(-1, CHANNELS).astype(np.float64)
        mean = values.mean(0)
        m2 = ((values - mean) ** 2).sum(0)
        decay = 1 - 1 / self.steps if self.decay is None else self.decay
        if self.start == "first" and self.steps == 1:
            decay = 0.0
        self.mean = decay * self.mean + (1 - decay) * mean
        self.var = decay * self.var + (1 - decay) * m2 / (len(values) - self.bessel)

    def stored(
        self, names: tuple[str, str], hidden: tuple[str, str] | None
    ) -> dict[str, np.ndarray]:
        """Give the arrays under the library's names."""
        pair = (self.mean, self.var)
        if self.start != "debiased":
            return dict(zip(names, pair, strict=True))
        share = 1 - self.decay**self.steps
        averages = dict(zip(names, (a / share for a in pair), strict=True))
        return averages | dict(zip(hidden or (), pair, strict=bool(hidden)))
