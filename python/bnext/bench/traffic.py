"""The bytes that each operation must move: the GB of every printed GB/s."""

from __future__ import annotations

from typing import Literal

Operation = Literal["forward", "backward", "inference"]

# Arrays of the problem's size that memory has to deliver or take, once each. This is the floor: a
# library that reads x again from memory, or reads an output before overwriting it, moves more, and
# has fewer GB/s.
ARRAYS_MOVED: dict[str, int] = {
    "forward": 2,  # read x, write y
    "backward": 3,  # read dy and x, write dx
    "inference": 2,  # read x, write y
    "layer": 2,  # forward of a layer in training
    "layer inference": 2,
    "copy": 2,  # read one, write the other
}


def floor_bytes(operation: str, nbytes: int) -> int:
    """Bytes that `operation` must move, on arrays of `nbytes` each.

    Parameters and statistics, of one value a channel, are not counted.
    """
    return ARRAYS_MOVED[operation] * nbytes
