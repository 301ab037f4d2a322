"""Moving a layer's running statistics by those of a batch, where no kernel does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnext.devices.libraries import library_of, to_numpy

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = ["move_running", "set_running"]


def move_running(layer: BatchNorm, count: int, mean: Any, m2: Any) -> None:
    """Move the running statistics as a kernel does, in float64 and rounded once; count the batch.

    Fewer than two values per channel say nothing of a variance: the batch is counted alone.
    """
    if not layer.track_running_stats:
        return
    if count >= 2:
        weight = layer._weight_of_batch()
        batch = (to_numpy(mean), to_numpy(m2) / (count - layer.estimator.bessel))
        with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
            for name, value in zip(("running_mean", "running_var"), batch, strict=True):
                if (old := getattr(layer, name)) is not None:
                    moved = (1.0 - weight) * to_numpy(old).astype(np.float64) + weight * value
                    set_running(layer, name, moved)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked[...] += 1


def set_running(layer: BatchNorm, name: str, values: Any) -> None:
    """Write `values` to the layer's array of that name, in place, rounded to its dtype."""
    array = getattr(layer, name)
    library = library_of(array)
    if library is None:
        array[...] = values
    else:
        library.copy_into(array, library.from_numpy(values.astype(layer.dtype), array))
