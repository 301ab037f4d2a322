"""Batch renormalization: both passes and the running statistics (Ioffe 2017, arXiv 1702.03275).

With sigma = sqrt(var + eps), of the batch (B) and of the running statistics before it,

    r = clip(sigma_B / sigma, 1 / r_max, r_max)
    d = clip((mean_B - mean) / sigma, -d_max, d_max)
    y = ((x - mean_B) / sigma_B * r + d) * weight + bias

which is batch normalization by the weight ``weight * r`` and the bias ``bias + weight * d``. In the
backward pass r and d are constants. So dx is the gradient of that batch normalization, and with its
gradients dw, db by these parameters ``dweight = r * dw + d * db`` and ``dbias = db``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnext import spine
from bnext.arguments import count_of
from bnext.arrays.libraries import library_of, to_numpy
from bnext.running import Running
from bnext.writes import Writes

__all__ = [
    "Limit", "Ramp", "RenormRunning", "RenormSaved", "Renormalization", "check_limit", "limit_at",
]  # fmt: skip

Limit = float | Callable[[int], float]

LEAST = {"r_max": 1.0, "d_max": 0.0}


@dataclass(frozen=True)
class Ramp:
    """A number that goes from one value to another while a network trains.

    Parameters
    ----------
    start, stop : float
        The values at and before step `first`, and from step `last` on; in between it is linear.
    first, last : int
        Numbers of batches that were tracked before: 0 is the first training batch.

    Raises
    ------
    ValueError
        `start` or `stop` is not finite, `first` is negative, or `last` is not after it.
    TypeError
        An argument is not a number.

    Notes
    -----
    Ioffe (2017, section 4) trains with ``r_max=Ramp(1, 3, 5_000, 40_000)`` and
    ``d_max=Ramp(0, 5, 5_000, 25_000)``: plain batch normalization at first.
    """

    start: float
    stop: float
    first: int
    last: int

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            value = _number(name, getattr(self, name))
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        count_of(self.first, "first")
        if count_of(self.last, "last") <= self.first:
            raise ValueError(f"last: expected a step after first={self.first}, got {self.last}")

    def __call__(self, step: int) -> float:
        """Give the value at a step.

        Parameters
        ----------
        step : int
            Batches before this one.

        Returns
        -------
        float
            Between `start` and `stop`.
        """
        share = min(max((step - self.first) / (self.last - self.first), 0.0), 1.0)
        return self.start + share * (self.stop - self.start)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def _checked(name: str, value: Any, where: str = "") -> float:
    number = _number(name, value)
    if not number >= LEAST[name]:
        raise ValueError(f"{name}: expected a number >= {LEAST[name]:g}, got {number:g}{where}")
    return number


def check_limit(name: str, limit: Any) -> Any:
    """Give `r_max` or `d_max`, if it is a number that is large enough or a schedule."""
    if not callable(limit):
        _checked(name, limit)
    return limit


def limit_at(name: str, limit: Any, step: int) -> float:
    """Give the number that a limit is at a step."""
    if not callable(limit):
        return _checked(name, limit)
    return _checked(name, limit(step), f" at step {step}")


class RenormRunning(Running):
    """Running statistics whose standard deviations move, in place of variances.

    ``sigma = (1 - w) * sigma + w * sigma_B``, kept as ``var = sigma**2 - eps``, so that inference
    divides by sigma. The formula of `Running` moves var to that, if the batch's variance is taken
    as ``var_B - (1 - w) * (sigma - sigma_B)**2``.
    """

    eps = 1e-5  # the layer's, which sets it before a call

    def prepare(self, writes: Writes, count: float, mean: Any, m2: Any, prefix: str = "") -> None:
        """Add the move by a batch to `writes`, as `Running.prepare` does."""
        self.check_movable(prefix)
        if count > 1 and self.var is not None:
            n = count - 1 if self.estimator.bessel else count
            with np.errstate(all="ignore"):
                var = to_numpy(m2) / n
                sigma = np.sqrt(to_numpy(self.var).astype(np.float64) + self.eps)
                apart = sigma - np.sqrt(var + self.eps)
                m2 = n * (var - (1.0 - self.weight()) * apart * apart)
        super().prepare(writes, count, mean, m2, prefix)


class Renormalization:
    """What one training call of a layer makes of its parameters.

    Made before members of a group meet: they may share the running statistics, which the first one
    moves behind the exchange.
    """

    def __init__(self, layer: Any) -> None:
        running = layer.running
        running.check_movable()
        step = int(running.counter)
        self.r_max: float = limit_at("r_max", layer.r_max, step)
        self.d_max: float = limit_at("d_max", layer.d_max, step)
        self.mean, var = (to_numpy(row).astype(np.float64) for row in (running.mean, running.var))
        with np.errstate(all="ignore"):
            self.sigma: Any = np.sqrt(var + layer.eps)
        running.eps = layer.eps
        self.weight: Any = layer.weight
        self.bias: Any = layer.bias
        self.eps: float = layer.eps
        self.dtype: Any = layer.dtype
        self.r: Any = np.ones_like(self.mean)
        self.d: Any = np.zeros_like(self.mean)

    def __call__(self, count: float, mean: Any, m2: Any) -> tuple[Any, Any]:
        """Give the weight and the bias for a batch of these Moments."""
        if count > 0:
            with np.errstate(all="ignore"):
                ratio = np.sqrt(to_numpy(m2) / count + self.eps) / self.sigma
                self.r = np.clip(ratio, 1.0 / self.r_max, self.r_max)
                self.d = np.clip((to_numpy(mean) - self.mean) / self.sigma, -self.d_max, self.d_max)
        with np.errstate(all="ignore"):
            weight = 1.0 if self.weight is None else to_numpy(self.weight).astype(np.float64)
            shift = weight * self.d
            if self.bias is not None:
                shift = to_numpy(self.bias) + shift
            self.scaled = (weight * self.r).astype(self.dtype)
            return self.scaled, shift.astype(self.dtype)

    def saved(self, inner: Any) -> RenormSaved:
        """Give what the backward call needs, of what it needs of batch normalization."""
        return RenormSaved(inner, self.scaled, self.r, self.d)


class RenormSaved:
    """What a forward call leaves for its backward call."""

    def __init__(self, inner: Any, weight: Any, r: Any, d: Any) -> None:
        self.inner: Any = inner
        self.weight: Any = weight
        self.r: Any = r
        self.d: Any = d

    @property
    def reads_residual(self) -> bool:
        """Whether the backward pass needs the residual again."""
        value: bool = self.inner.reads_residual
        return value

    @property
    def residual(self) -> bool:
        """Whether a residual was added."""
        return bool(getattr(self.inner, "residual", False))

    def backward(
        self, dy: Any, x: Any, weight: Any, out: Any, sums: str, residual: Any
    ) -> tuple[Any, ...]:
        """Do `spine.backward`, with the gradients by the layer's own parameters.

        The layer's `weight` is not asked, since dx goes by the one of the forward call.
        """
        dx, dw, db, *rest = spine.backward(dy, x, self.inner, self.weight, out, sums, residual)
        with np.errstate(all="ignore"):
            dweight = self.r * to_numpy(dw).astype(np.float64) + self.d * to_numpy(db)
        dweight = dweight.astype(self.weight.dtype)
        library = library_of(dw)
        return dx, dweight if library is None else library.from_numpy(dweight, dw), db, *rest
