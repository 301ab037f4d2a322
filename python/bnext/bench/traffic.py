"""The bytes that each operation must move: what GB/s means wherever it is printed."""

from __future__ import annotations

from typing import Literal

Operation = Literal["forward", "backward", "inference"]

# Arrays of the problem's size that memory has to deliver or take, once each. This is the floor: who
# reads x a second time from memory, or reads an output before overwriting it, moves more than is
# counted here, and gets fewer GB/s for it.
ARRAYS_MOVED: dict[str, int] = {
    "forward": 2,  # read x, write y
    "backward": 3,  # read dy and x, write dx
    "inference": 2,  # read x, write y
    "layer": 2,  # forward, as a layer in training does it
    "layer inference": 2,
    "copy": 2,  # read one, write the other
}


def floor_bytes(operation: str, nbytes: int) -> int:
    """Bytes that `operation` cannot avoid moving, on arrays of `nbytes` each.

    Parameters
    ----------
    operation : str
        A key of `ARRAYS_MOVED`. Parameters and statistics, of one value a channel, are not counted.
    nbytes : int
        Size of `x`.

    Returns
    -------
    int
        A multiple of `nbytes`.
    """
    return ARRAYS_MOVED[operation] * nbytes
