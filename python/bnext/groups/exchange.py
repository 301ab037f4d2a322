"""What members exchange: headers that must agree, merged results, and the error of a group."""

from __future__ import annotations

import weakref
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "CLOSED",
    "DIRECTIONS",
    "Calls",
    "Float64Array",
    "GroupError",
    "Header",
    "Merged",
    "Rows",
    "error_of",
]

Float64Array = npt.NDArray[np.float64]
# Mean and m2 of a shard, with the low part of the mean for float64 data; or two sums.
Rows = tuple[Float64Array, Float64Array, Float64Array | None]

CLOSED = "the group was closed"

Direction = Literal["forward", "backward", "double_backward"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class GroupError(RuntimeError):
    """An exchange among members that cannot come to an end, and why.

    Every member gets it that waits for the exchange, or comes to one later.

    Parameters
    ----------
    message : str
        The whole text: the call that failed, and the reason.
    layer : int, optional
        Number of the layer that was called, in the order in which the member first called them;
        -1 for a call of a function.
    step : int, optional
        How many forward calls of this layer came before.
    rank : int, optional
        The member that is missing or differed.
    reason : str
        The reason alone, the same for all members.
    """

    def __init__(
        self,
        message: str,
        *,
        layer: int | None = None,
        step: int | None = None,
        rank: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.layer = layer
        self.step = step
        self.rank = rank
        self.reason: str = reason or message


class Header(NamedTuple):
    """What travels with the data of an exchange and must agree among members.

    Attributes
    ----------
    layer : int
        Number of the layer that is called, in the order of first calls; -1 for a function.
    step : int
        How many forward calls of this layer came before.
    direction : {"forward", "backward", "double_backward"}
        Which pass.
    channels : int
        How many channels there are.
    dtype : str
        Name of the data's.
    owner : int
        The identity of the layer object: members of one process bring one object that they share,
        or each a replica of its own.
    """

    layer: int
    step: int
    direction: Direction
    channels: int
    dtype: str
    owner: int = 0


def error_of(header: Header | None, reason: str, rank: int | None = None) -> GroupError:
    """Make the error of a call, or without one of entering the group."""
    if header is None:
        return GroupError(f"entering the group: {reason}", rank=rank, reason=reason)
    layer, step, direction, *_ = header
    call = "a call without a layer" if layer < 0 else f"layer {layer}"
    text = f"{call}, step {step}, {direction}: {reason}"
    return GroupError(text, layer=layer, step=step, rank=rank, reason=reason)


class Merged(NamedTuple):
    """What every member gets from an exchange: the same bits.

    Attributes
    ----------
    total_count : int or float
        Values per channel of the whole batch, or the sum of their weights.
    first, second : array of float64, shape (C,)
        Mean and m2 of the whole batch, or the two sums of the backward pass.
    generation : int
        Number of the exchange in the group.
    shared : bool
        Whether all members brought the same layer object.
    mean_low : array of float64, shape (C,), or None
        Low part of the mean: the exact mean is ``first + mean_low``; None: 0, as for data narrower
        than float64.
    """

    total_count: float
    first: Float64Array
    second: Float64Array
    generation: int
    shared: bool
    mean_low: Float64Array | None = None


class Calls:
    """How one member numbers its layers, by their first call, and the steps of each."""

    def __init__(self) -> None:
        # Numbers of layers, and how many calls each has had.
        self._layers: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()
        self._next = 0  # no number is given twice, also where layers have died
        self._of_functions = [-1, 0]

    def numbers(self) -> set[int]:
        """Numbers of the layers that are alive."""
        return {number for number, _ in self._layers.values()}

    def begin(self, layer: Any) -> tuple[int, int, bool]:
        """Count a forward call: its layer's number, its step, and whether it is the first."""
        entry = self._of_functions if layer is None else self._layers.get(layer)
        first = entry is None
        if entry is None:
            entry = self._layers[layer] = [self._next, 0]
            self._next += 1
        entry[1] += 1
        return entry[0], entry[1] - 1, first
