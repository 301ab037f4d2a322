"""An output that is made again when it is asked for, in place of being kept."""

from __future__ import annotations

from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from bnext import spine
from bnext._core import Saved
from bnext.array_types import ArrayT
from bnext.arrays import DeviceSaved
from bnext.ghosts import GhostSaved
from bnext.groups.saved import SyncSaved

__all__ = ["Recomputed"]


class Recomputed(Generic[ArrayT]):
    """The result `y` of one forward call, made again with the same bits whenever it is asked for.

    It refers to the input of that call, without a copy, and to the statistics, the weight and the
    bias that the call used: later calls, optimizers and `backward` of the layer change nothing. It
    serves as often as needed, and lets go of the input when it is dropped. `layer.recomputed()`
    makes one; NumPy reads it as an array (``np.asarray(again)``).

    Parameters
    ----------
    x : array, shape (N, C, ...)
        The input of the forward call; it must not change.
    saved : Saved, or bnext.sync.SyncSaved with a group
        What the forward call left.
    residual : array or Recomputed, shape of `x`, optional
        The residual of the forward call, if there was one; it must not change.

    Attributes
    ----------
    x, saved, residual
        As they were given.
    shape, dtype : tuple of int, dtype
        Of `y`, and of `x`.

    Raises
    ------
    ValueError
        The forward call was in place, so that there is no `x`; it had a residual and none is given,
        or the other way round; it was on a GPU.
    """

    __slots__ = ("residual", "saved", "x")

    def __init__(
        self, x: ArrayT, saved: Saved | DeviceSaved | SyncSaved | GhostSaved, residual: Any = None
    ) -> None:
        local = saved.local if isinstance(saved, SyncSaved) else saved
        if isinstance(local, DeviceSaved):
            raise ValueError("saved: expected of a call on the CPU, got of one on a GPU")
        if local.in_place:
            raise ValueError(
                "saved: expected of a call that left x as it was, got of one in place, whose y is "
                "kept anyway"
            )
        if local.residual and residual is None:
            raise ValueError(
                "residual: expected the forward call's, since y follows from it, got None"
            )
        if residual is not None and not local.residual:
            raise ValueError("residual: expected None, since the forward call had none")
        self.x: ArrayT = x
        self.saved: Saved | DeviceSaved | SyncSaved | GhostSaved = saved
        self.residual: Any = residual

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `y`."""
        return self.saved.shape

    @property
    def dtype(self) -> Any:
        """Dtype of `y`."""
        return self.saved.dtype

    def value(self, out: ArrayT | None = None) -> ArrayT:
        """Make `y` again: one pass over memory, each time.

        Parameters
        ----------
        out : array, shape of `x`, optional
            Where to put it.

        Returns
        -------
        array, shape of `x`
            Of the library of `x` and in its memory order, or `out`.

        Raises
        ------
        ValueError, TypeError
            `x` or the residual has changed since; what `bnext.recompute` raises.
        """
        residual = self.residual
        if isinstance(residual, Recomputed):
            residual = residual.value()
        result: ArrayT
        if isinstance(self.saved, GhostSaved):
            result = self.saved.recompute(self.x, residual, out)
        else:
            result = spine.recompute(self.x, self.saved, residual, out)
        return result

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Make `y` again, as NumPy's array."""
        if copy is False:
            raise ValueError("copy: expected True or None, since the array is made anew, got False")
        return np.asarray(self.value(), dtype)

    def __repr__(self) -> str:
        """Shape and dtype."""
        return f"<bnext.Recomputed of shape {self.shape}, {self.dtype}>"
