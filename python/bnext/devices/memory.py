"""Where views lie in memory, by their addresses alone: nothing here reads what is there."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnext.devices.libraries import View

__all__ = ["SIZES", "is_contiguous", "overlap", "overlaps_itself"]

# The exact answer can be slow to find in theory; past this much work it counts as an overlap.
MAX_WORK: Any = 10000

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def is_contiguous(view: View) -> bool:
    """Whether the elements follow each other in C order."""
    if view.strides == (1,):  # what nearly every parameter has
        return True
    expected = 1
    for extent, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def overlaps_itself(view: View) -> bool:
    """Whether two indices may be one element; as `may_overlap_itself` of core/problem.hpp."""
    if 0 in view.shape:
        return False
    steps = sorted(
        (abs(stride), extent)
        for stride, extent in zip(view.strides, view.shape, strict=True)
        if extent > 1
    )
    reach = 0  # distance from the first to the last element of the axes so far
    for stride, extent in steps:
        if stride <= reach:
            return True
        reach += stride * (extent - 1)
    return False


def overlap(a: View, b: View) -> bool:
    """Whether two views share an element; if that is slow to find out, yes."""
    (a_begin, a_end), (b_begin, b_end) = _bounds(a), _bounds(b)
    if a_begin == a_end or b_begin == b_end or a_end <= b_begin or b_end <= a_begin:
        return False
    try:
        return np.shares_memory(_shadow(a), _shadow(b), max_work=MAX_WORK)
    except np.exceptions.TooHardError:
        return True


def _bounds(view: View) -> tuple[int, int]:
    begin, item = view.address, SIZES[view.dtype]
    end = begin + item
    for extent, stride in zip(view.shape, view.strides, strict=True):
        if extent == 0:
            return view.address, view.address
        reach = stride * item * (extent - 1)
        begin, end = (begin + reach, end) if reach < 0 else (begin, end + reach)
    return begin, end


class _Shadow:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _shadow(view: View) -> Any:
    """Make a NumPy array of the same addresses: to ask for shared memory takes nothing else."""
    item = SIZES[view.dtype]
    interface = {
        "version": 3,
        "typestr": f"|V{item}",
        "shape": view.shape,
        "data": (view.address, True),
        "strides": tuple(stride * item for stride in view.strides),
    }
    return np.asarray(_Shadow(interface))
