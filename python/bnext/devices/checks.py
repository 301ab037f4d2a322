"""Checks of what is no array on a GPU, in the words of csrc/bindings/arrays.cpp."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

__all__ = ["axis_of", "check_count", "check_more_than_one", "check_sums", "is_count"]


def axis_of(channel_axis: Any, rank: int) -> int:
    """Count the axis from the front."""
    try:
        axis = operator.index(channel_axis)
    except TypeError:
        got = type(channel_axis).__name__
        raise TypeError(f"channel_axis: expected an integer, got {got}") from None
    if not -rank <= axis < rank:
        raise ValueError(
            f"channel_axis: expected an axis of a {rank}-dimensional array ({-rank} to "
            f"{rank - 1}), got {channel_axis}"
        )
    return axis % rank


def check_count(count: Any, name: str = "num_batches_tracked") -> None:
    """Check a layer's count of batches, which is on the CPU wherever its arrays are."""
    if count is not None and not _is_count_array(count):
        raise TypeError(f"{name}: expected a writeable int64 array of shape (), got {count!r}")
    if not is_count(count):
        raise ValueError(
            f"{name}: expected a count of batches from 0 to {np.iinfo(np.int64).max - 1}, got "
            f"{count}"
        )


def is_count(count: Any) -> bool:
    """Whether `check_count` has nothing to say."""
    if count is None:
        return True
    return _is_count_array(count) and bool(0 <= count < np.iinfo(np.int64).max)


def _is_count_array(count: Any) -> bool:
    fits = isinstance(count, np.ndarray) and count.shape == () and count.dtype == np.int64
    return fits and not isinstance(count, np.ma.MaskedArray) and bool(count.flags.behaved)


def check_more_than_one(shape: tuple[int, ...], count: int) -> None:
    """Refuse one value per channel, which has no variance."""
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape}"
        )


def check_sums(sums: Any, name: str, channels: int) -> None:
    """Check sums of a group, which are on the CPU wherever its arrays are."""
    array = np.asarray(sums)
    if array.dtype != np.float64:
        raise TypeError(f"{name}: expected dtype float64, got {array.dtype}")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape {(channels,)}, got {array.shape}")
