"""What every group is: members with ranks, who merge what they know of one batch."""

from __future__ import annotations

import abc
import threading
import weakref
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Calls", "Group", "GroupError", "Header", "Merged", "announcing"]

Float64Array = npt.NDArray[np.float64]


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
        self.reason = reason or message


class Header(NamedTuple):
    """What travels with the data of an exchange and must agree among members.

    Attributes
    ----------
    layer : int
        Number of the layer that is called, in the order of first calls; -1 for a function.
    step : int
        How many forward calls of this layer came before.
    direction : {"forward", "backward"}
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
    direction: Literal["forward", "backward"]
    channels: int
    dtype: str
    owner: int = 0

    def of_backward(self) -> Header:
        """Give that of the backward call that follows."""
        layer, step, _, channels, dtype, owner = self
        return Header(layer, step, "backward", channels, dtype, owner)


class Merged(NamedTuple):
    """What every member gets from an exchange: the same bits.

    Attributes
    ----------
    total_count : int
        Values per channel of the whole batch.
    first, second : array of float64, shape (C,)
        Mean and m2 of the whole batch, or the two sums of the backward pass.
    generation : int
        Number of the exchange in the group.
    shared : bool
        Whether all members brought the same layer object.
    """

    total_count: int
    first: Float64Array
    second: Float64Array
    generation: int
    shared: bool


class Calls:
    """How one member numbers its layers, by their first call, and the steps of each."""

    def __init__(self) -> None:
        self._layers: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()
        self._next = 0  # no number is given twice, also where layers have died
        self._of_functions = 0

    def begin(self, layer: Any) -> tuple[int, int, bool]:
        """Count a forward call: its layer's number, its step, and whether it is the first."""
        if layer is None:
            self._of_functions += 1
            return -1, self._of_functions - 1, False
        entry = self._layers.get(layer)
        if entry is None:
            number = self._next
            self._next += 1
            self._layers[layer] = [number, 1]
            return number, 0, True
        entry[1] += 1
        return entry[0], entry[1] - 1, False


class Group(abc.ABC):
    """Members that each hold a shard of one batch.

    Subclasses say how rows of numbers get from member to member. All members call the same layers
    in the same order; each call is one exchange.
    """

    # Whether `recalled` may know what an exchange gives before anything is brought to it.
    recalls = False

    def __init__(self) -> None:
        # Members of one process that share a layer take turns in what must happen once.
        self.lock = threading.Lock()

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many members there are."""

    @property
    @abc.abstractmethod
    def rank(self) -> int:
        """Which member the caller is, from 0 to size - 1."""

    @property
    def rank_or_none(self) -> int | None:
        """The same; None where the caller is no member."""
        return self.rank

    @abc.abstractmethod
    def begin(self, layer: Any) -> tuple[int, int]:
        """Count a forward call.

        Parameters
        ----------
        layer : object or None
            The layer that is called; None for a function.

        Returns
        -------
        tuple of int
            The layer's number, and the step.
        """

    @abc.abstractmethod
    def merge_moments(
        self, header: Header, count: int, mean: Float64Array, m2: Float64Array
    ) -> Merged:
        """Merge the Moments of the shards into those of the whole batch.

        Parameters
        ----------
        header : Header
            The call that this is part of.
        count : int
            Values per channel of the member's shard; 0 contributes nothing.
        mean, m2 : array of float64, shape (C,)
            Mean and sum of squared deviations of each channel.

        Returns
        -------
        Merged
            The same to the bit for all members, whoever came first.

        Raises
        ------
        GroupError
            A member is missing, has failed, or brought another header.
        """

    @abc.abstractmethod
    def merge_sums(
        self, header: Header, count: int, sum_dy: Float64Array, sum_dy_xmu: Float64Array
    ) -> Merged:
        """Add up the two sums of the backward pass.

        Parameters
        ----------
        header : Header
            The call that this is part of.
        count : int
            Values per channel of the member's shard; 0 contributes nothing.
        sum_dy, sum_dy_xmu : array of float64, shape (C,)
            Sums of ``dy`` and of ``dy * (x - mean)``, of each channel.

        Returns
        -------
        Merged
            The same to the bit for all members.

        Raises
        ------
        GroupError
            A member is missing, has failed, or brought another header.
        """

    def recalled(self, header: Header) -> Merged | None:
        """Give what a forward exchange gives, if that is known already; then it counts as made.

        Parameters
        ----------
        header : Header
            The call that the exchange is part of.

        Returns
        -------
        Merged or None
            None where it is not known.
        """
        return None

    @abc.abstractmethod
    def fail(self, message: str) -> None:
        """Tell the other members that the caller cannot go on; they get a `GroupError`.

        Parameters
        ----------
        message : str
            Why.
        """

    def __copy__(self) -> Group:
        """Itself: copies of a layer belong to the same group."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        """Itself."""
        return self


def error_text(error: BaseException) -> str:
    """How the members are told of an error of one of them."""
    text = str(error)
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


class announcing:  # noqa: N801 - read as `with announcing(group):`
    """Tells the group of errors in the body, so that nobody waits for this member."""

    __slots__ = ("_group",)

    def __init__(self, group: Group) -> None:
        self._group = group

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, GroupError):
            self._group.fail(error_text(error))
