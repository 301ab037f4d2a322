"""Groups: members with ranks that merge the sums of their shards of one batch."""

from __future__ import annotations

import abc
import importlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from bnext.groups.exchange import CLOSED, Float64Array, GroupError, Header, Merged, Rows

__all__ = ["ALONE", "Group", "Part", "announcing", "check_group", "engine_module", "part_of"]


class Group(abc.ABC):
    """Members that each hold a shard of one batch.

    All members call the same layers in the same order; each call is one exchange in the forward
    pass and one in the backward pass. Subclasses say how rows of numbers get from member to member.
    """

    def __init__(self) -> None:
        # Members of one process that share a layer take turns in what must happen once.
        self.lock: threading.Lock = threading.Lock()
        self._done: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

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

    def part(self, layer: Any) -> Part:
        """Begin a forward call: number it, and give the caller's part in it.

        Parameters
        ----------
        layer : object or None
            The layer that is called; None for a function.

        Returns
        -------
        Part
            A context that announces errors of its body to the other members.

        Raises
        ------
        GroupError
            The group was closed, or the caller is no member.
        """
        self.check_open()
        return Part(self, layer)

    def once(self, changed: Any, generation: int, action: Callable[[], Any]) -> None:
        """Change an object once after an exchange, also where members share the object.

        The first member acts; the others wait until it has.

        Parameters
        ----------
        changed : object
            Object that the action changes: running statistics.
        generation : int
            Number of the exchange.
        action : callable
            Makes the change.
        """
        with self.lock:
            if self._done.get(changed) != generation:
                action()
                self._done[changed] = generation

    def merge_moments(
        self,
        header: Header,
        count: float,
        mean: Float64Array,
        m2: Float64Array,
        mean_low: Float64Array | None = None,
    ) -> Merged:
        """Merge the Moments of the shards into the whole batch's Moments.

        Parameters
        ----------
        header : Header
            The call that this is part of.
        count : int or float
            Values per channel of the member's shard, or the sum of their weights; 0 contributes
            nothing.
        mean, m2 : array of float64, shape (C,)
            Mean and sum of squared deviations of each channel.
        mean_low : array of float64, shape (C,), optional
            Low part of the mean, for float64 data.

        Returns
        -------
        Merged
            The same to the bit for all members, in any order of arrival.

        Raises
        ------
        GroupError
            A member is missing, has failed, or brought another header.
        """
        return self._exchange(header, count, (mean, m2, mean_low))

    def merge_sums(
        self, header: Header, count: float, sum_dy: Float64Array, sum_dy_xmu: Float64Array
    ) -> Merged:
        """Add up the two sums of the backward pass.

        Parameters
        ----------
        header : Header
            The call that this is part of.
        count : int or float
            Values per channel of the member's shard, or the sum of their weights; 0 contributes
            nothing.
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
        return self._exchange(header, count, (sum_dy, sum_dy_xmu, None))

    def add_rows(self, header: Header, rows: Float64Array) -> Float64Array:
        """Add up numbers over all members, of empty shards as well.

        Parameters
        ----------
        header : Header
            The call that this is part of, of another direction than "forward"; its number of
            channels is replaced.
        rows : array of float64
            The member's numbers; of the same shape for all.

        Returns
        -------
        array of float64
            The sums, the same to the bit for all members.

        Raises
        ------
        GroupError
            A member is missing, has failed, or brought another header.
        """
        half = (rows.size + 1) // 2
        pair = np.zeros((2, half))
        pair.reshape(-1)[: rows.size] = rows.ravel()
        header = header._replace(channels=half)
        merged = self._exchange(header, 1, (pair[0], pair[1], None))
        both = np.concatenate([merged.first, merged.second])
        return both[: rows.size].reshape(rows.shape)

    def _exchange(self, header: Header, count: float, rows: Rows) -> Merged:
        """Merge the rows of all members, by the direction in the header: the methods above."""
        raise NotImplementedError

    @abc.abstractmethod
    def fail(self, message: str) -> None:
        """Tell the other members that the caller cannot go on; they get a `GroupError`.

        Parameters
        ----------
        message : str
            Why.
        """

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return "_closing" in vars(self)

    def close(self) -> None:
        """Give the group up, and give back what it holds: communicators, keys of a store.

        It does not wait, and every member may close at a time of its own, more than once, also
        where the group is broken, or in a forked child. Members that wait for an exchange with a
        member that has closed get a `GroupError`, and so does every later call in the closed group.
        Its `size` can still be asked for. A layer that has the group goes on when another one is
        put in its place: ``layer.group = group``.

        A group that is garbage gives back what it holds without having been closed.
        ``with contextlib.closing(group):`` closes at the end of a block.
        """
        mine = object()
        if vars(self).setdefault("_closing", mine) is mine:  # one of several threads
            self._release()

    def check_open(self) -> None:
        """`GroupError` if the group was closed."""
        if "_closing" in vars(self):
            raise GroupError(
                f"group: expected an open group, got {self!r}; make another one, and give it to "
                "the layers that had this one (layer.group = group)",
                reason=CLOSED,
            )

    def _release(self) -> None:  # noqa: B027 - most groups hold nothing but memory
        """Give back what the group holds, without waiting for other members; called once."""

    def __copy__(self) -> Group:
        """Itself: copies of a layer belong to the same group."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        """Itself."""
        return self

    def __getstate__(self) -> Any:
        """Refuse to be pickled: members meet in memory, or by handles, of this process.

        Raises
        ------
        TypeError
            Always, unless a subclass knows better.
        """
        raise TypeError(
            f"group: a {type(self).__name__} cannot be pickled, since its members meet in this "
            "process; pickle layers with `layer.group = None` (or their `state_dict()`), and give "
            "them a group where they are loaded"
        )


def engine_module(module: str, name: str, extra: str) -> Any:
    """Import what a kind of group needs; the error names the group, and how to install it."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise ModuleNotFoundError(
            f"{name}: expected {package} to be installed (pip install 'bnext[{extra}]')",
            name=package,
        ) from None


def error_text(error: BaseException) -> str:
    """How the members are told of an error of one of them."""
    text = str(error)
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


class announcing:  # noqa: N801 - read as `with announcing(group):`
    """Announces errors of the body to the group, so that no member waits for this one."""

    __slots__ = ("group",)

    def __init__(self, group: Group) -> None:
        self.group: Group = group

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and not isinstance(error, GroupError):
            self.group.fail(error_text(error))


class Part(announcing):
    """A member's part in one call, forward and backward; `Group.part` makes it.

    From the forward exchange on, `header` has channels and dtype, and `count` is the number of
    values per channel of the member's shard.
    """

    __slots__ = ("count", "header")

    # Whether to ask `recalled` before the member collects anything.
    recalls = False

    def __init__(self, group: Group, layer: Any) -> None:
        super().__init__(group)
        owner = 0 if layer is None else id(layer)
        self.header: Header = Header(*group.begin(layer), "forward", 0, "", owner)
        self.count: float = 0

    def recalled(self, channels: int, dtype: str, count: float) -> Merged | None:
        """Give the result of `merge_moments` before the call; None where it is not known."""
        return None

    def merge_moments(
        self, dtype: str, count: float, mean: Float64Array, m2: Float64Array, mean_low: Any
    ) -> Merged:
        """Merge the Moments of the shards; see `Group`."""
        self.header = self.header._replace(channels=len(mean), dtype=dtype)
        self.count = count
        low = mean_low if dtype == "float64" else None
        return self.group.merge_moments(self.header, count, mean, m2, low)

    def merge_sums(self, sum_dy: Float64Array, sum_dy_xmu: Float64Array) -> Merged:
        """Add up the two sums of the backward pass over the whole batch; see `Group`."""
        header = self.header._replace(direction="backward")
        return self.group.merge_sums(header, self.count, sum_dy, sum_dy_xmu)

    def add_twice(self, rows: Float64Array) -> Float64Array:
        """Add up the numbers of a double backward pass over all members; see `Group.add_rows`."""
        return self.group.add_rows(self.header._replace(direction="double_backward"), rows)


class _Alone(Part):
    """The part of a caller without a group, whose shard is the whole batch."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def merge_moments(
        self, dtype: str, count: float, mean: Float64Array, m2: Float64Array, mean_low: Any
    ) -> Merged:
        return Merged(count, mean, m2, 0, False, mean_low)


ALONE: Part = _Alone()


def part_of(group: Any) -> Part:
    """Begin a call of a function; TypeError unless it is a group or None."""
    check_group(group)
    return ALONE if group is None else group.part(None)


def check_group(group: Any) -> None:
    """TypeError unless it is a group or None."""
    if group is not None and not isinstance(group, Group):
        raise TypeError(f"group: expected a bnext.sync group, got {type(group).__name__}")
