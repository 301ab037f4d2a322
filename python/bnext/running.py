"""Running statistics of a layer, and the formula by which a batch moves them.

A batch of n values per channel moves them by the weight w that the estimator gives it,

    running = (1 - w) * running + w * batch,   batch = mean,  m2 / (n - 1)  or biased  m2 / n,

in float64, rounded once; of a batch with weights, n is their sum. A batch of fewer than two values,
or of weights up to 1, has no variance: it is only counted. Where there is a counter for skipped
batches, a batch whose mean or variance is not finite, in any channel, adds one to it and changes
nothing else.
`_core.move_running` has the formula for memory of the host, `Library.blend` its twin in the array
API, for arrays that stay on a GPU. (Fused kernels move running statistics by the same formula.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.array_types import Parameter
from bnext.arrays.libraries import to_numpy
from bnext.estimators import Estimator, Exponential
from bnext.writes import Writes, check_writeable

__all__ = ["Running", "check_tracked"]


@dataclass(eq=False)
class Running:
    """The running statistics of a layer; arrays are None where nothing is tracked."""

    mean: Parameter  # shape (C,), as the variance
    var: Parameter
    counter: npt.NDArray[np.int64] | None  # batches seen, shape ()
    estimator: Estimator  # gives weights of batches; knows whether there is Bessel's correction
    dtype: np.dtype[Any]  # of mean and var, where their library does not say it in NumPy's words
    skipped: npt.NDArray[np.int64] | None = None  # batches that were not finite; None: they move

    @classmethod
    def new(
        cls, channels: int, estimator: Estimator, dtype: np.dtype[Any], *, tracked: bool
    ) -> Running:
        """Make the statistics before the first batch: mean 0, variance 1; None if not `tracked`."""
        if not tracked:
            return cls(None, None, None, estimator, dtype)
        mean, var = np.zeros(channels, dtype), np.ones(channels, dtype)
        return cls(mean, var, np.zeros((), np.int64), estimator, dtype)

    def weight(self, tracked: int | None = None) -> float:
        """Weight of the next batch, by the estimator.

        `tracked` is the number of batches before it, `counter` if not given.
        """
        estimator = self.estimator
        if type(estimator) is Exponential:
            return estimator.momentum  # whatever the counter is, which the kernels check
        if self.counter is None:
            return 0.0  # as PyTorch: an average that cannot count stays
        if tracked is None:
            _core.check_count(self.counter)
            tracked = int(self.counter)
        return estimator.weight(tracked + 1)

    def operands(self) -> dict[str, Any]:
        """Give the operands of an engine's call that moves them."""
        return {**self._arrays(), "momentum": self.weight()}

    def _arrays(self) -> dict[str, Any]:
        return {
            "running_mean": self.mean, "running_var": self.var,
            "num_batches_tracked": self.counter, "num_batches_skipped": self.skipped,
        }  # fmt: skip

    @property
    def skips(self) -> bool:
        """Whether a batch that is not finite is skipped; to set it starts the count anew."""
        return self.skipped is not None

    @skips.setter
    def skips(self, value: bool) -> None:
        if value and self.mean is None and self.var is None:
            raise ValueError(
                "skip_nonfinite: expected False for a layer without running statistics, got True"
            )
        if bool(value) is not self.skips:
            self.skipped = np.zeros((), np.int64) if value else None

    def check_movable(self, prefix: str = "") -> None:
        """Refuse arrays that cannot be written. Errors have `prefix` before names.

        Raises
        ------
        TypeError, ValueError
            As `Writes.add`, and for a counter that is not one, or cannot count on.
        """
        for name, array in (("running_mean", self.mean), ("running_var", self.var)):
            if array is not None:
                check_writeable(prefix + name, array)
        _core.check_count(self.counter, f"{prefix}num_batches_tracked")
        _core.check_count(self.skipped, f"{prefix}num_batches_skipped")

    def move(self, count: float, mean: Any, m2: Any) -> None:
        """Move them by the Moments of a batch, and count the batch. An error changes nothing."""
        writes = Writes()
        self.prepare(writes, count, mean, m2)
        writes.commit()

    def prepare(self, writes: Writes, count: float, mean: Any, m2: Any, prefix: str = "") -> None:
        """Add that move to `writes`, on top of earlier ones. Errors have `prefix` before names."""
        self.check_movable(prefix)
        arrays = self._arrays()
        moved = {name: None if a is None else writes.pending(a) for name, a in arrays.items()}
        tracked = moved["num_batches_tracked"]
        weight = 0.0
        if count > 1:
            weight = self.weight(None if tracked is None else int(tracked))
        _core.move_running(
            saved=_saved_of(count, to_numpy(mean), to_numpy(m2), self.dtype),
            momentum=weight, bessel=self.estimator.bessel, **moved,
        )  # fmt: skip
        for name, array in arrays.items():
            if array is not None:
                writes.add(prefix + name, array, moved[name], self.dtype)


def check_tracked(layer: Any, name: str) -> None:
    """ValueError for a layer without running statistics."""
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(
            f"{name}: expected a layer with running statistics, got one with "
            f"track_running_stats={layer.track_running_stats}"
        )


def _saved_of(count: float, mean: Any, m2: Any, dtype: np.dtype[Any]) -> _core.Saved:
    """Make the `Saved` of a forward call by these Moments."""
    nothing = np.empty((0, len(mean)), dtype)
    return _core.apply_norm(
        x=nothing, count=count, mean=mean, mean_low=None, m2=m2, weight=None, bias=None, eps=0.0,
        channel_axis=1, out=None,
    )[1]  # fmt: skip
