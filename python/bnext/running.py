"""Moving a layer's running statistics by those of a batch, where no kernel does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnext.devices.checks import check_count
from bnext.devices.libraries import to_numpy
from bnext.writes import Writes, check_writeable

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = ["check_movable", "move_running", "prepare_move"]

NAMES = ("running_mean", "running_var")


def move_running(layer: BatchNorm, count: int, mean: Any, m2: Any) -> None:
    """Move the running statistics as a kernel does, in float64 and rounded once; count the batch.

    Fewer than two values per channel say nothing of a variance: the batch is counted alone. An
    error changes nothing.
    """
    writes = Writes()
    prepare_move(writes, layer, count, mean, m2)
    writes.commit()


def prepare_move(
    writes: Writes, layer: BatchNorm, count: int, mean: Any, m2: Any, prefix: str = ""
) -> None:
    """Add that move to `writes`, after those of the same layer that are there.

    Errors name the layer's arrays with `prefix` before.
    """
    if not layer.track_running_stats:
        return
    check_movable(layer, prefix)
    counter = layer.num_batches_tracked
    tracked = None if counter is None else int(writes.pending(counter))
    if count >= 2:
        weight = layer._weight_of_batch(tracked)
        with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
            batch = (to_numpy(mean), to_numpy(m2) / (count - layer.estimator.bessel))
            for name, value in zip(NAMES, batch, strict=True):
                if (array := getattr(layer, name)) is not None:
                    old = writes.pending(array).astype(np.float64)
                    moved = (1.0 - weight) * old + weight * value
                    writes.add(prefix + name, array, moved, layer.dtype)
    if tracked is not None:
        writes.add(f"{prefix}num_batches_tracked", counter, tracked + 1, np.int64)


def check_movable(layer: BatchNorm, prefix: str = "") -> None:
    """Refuse a layer whose running statistics or counter cannot be written.

    Raises
    ------
    TypeError, ValueError
        As `Writes.add`, and for a counter that is not one, or cannot count on.
    """
    for name in NAMES:
        if (array := getattr(layer, name)) is not None:
            check_writeable(prefix + name, array)
    check_count(layer.num_batches_tracked, f"{prefix}num_batches_tracked")
