"""What a forward call in a group leaves for its backward call."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnext.groups.exchange import Merged
from bnext.groups.group import Group, Part

__all__ = ["MemberSaved", "SyncSaved"]


class MemberSaved:
    """What a member of a group keeps of a forward call: what its kernels saved, and its part.

    Attributes
    ----------
    generation : int
        Number of the exchange in the group.
    """

    __slots__ = ("generation", "local", "part")

    def __init__(self, local: Any, part: Part, merged: Merged) -> None:
        self.local: Any = local  # with the statistics of all members in it
        self.part: Part = part
        self.generation: int = merged.generation

    @property
    def group(self) -> Group:
        """The group, which merges the statistics and the sums."""
        return self.part.group

    @property
    def activation(self) -> str | None:
        """Name of the activation."""
        value: str | None = self.local.activation
        return value

    @property
    def residual(self) -> bool:
        """Whether a residual was added."""
        value: bool = self.local.residual
        return value

    @property
    def reads_residual(self) -> bool:
        """Whether the backward pass needs it again."""
        value: bool = self.local.reads_residual
        return value


class SyncSaved(MemberSaved):
    """What a forward call in a group leaves for its backward call: the whole batch's statistics.

    Rows of statistics are float64 of shape (C,), the same bits for all members: read-only NumPy
    arrays, or if `x` is on a GPU, arrays there.

    Attributes
    ----------
    generation : int
        Number of the exchange in the group.
    shared : bool
        Whether all members called the same layer object.
    """

    __slots__ = ("shared",)

    batch_statistics = True

    def __init__(self, local: Any, part: Part, merged: Merged) -> None:
        super().__init__(local, part, merged)
        self.shared: bool = merged.shared

    @property
    def count(self) -> float:
        """Values per channel of the whole batch, or weights."""
        value: float = self.local.count
        return value

    @property
    def mean(self) -> Any:
        """Mean of each channel."""
        return self.local.mean

    @property
    def mean_low(self) -> Any:
        """Low part of `mean`."""
        return self.local.mean_low

    @property
    def m2(self) -> Any:
        """Sum of squared deviations from the mean."""
        return self.local.m2

    @property
    def var(self) -> Any:
        """Biased variance; 0 for an empty batch."""
        return self.local.var

    @property
    def rstd(self) -> Any:
        """``1 / sqrt(var + eps)``, 0 if both are 0."""
        return self.local.rstd

    @property
    def eps(self) -> float:
        """What was added to the variance."""
        value: float = self.local.eps
        return value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the member's shard."""
        value: tuple[int, ...] = self.local.shape
        return value

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the input."""
        value: np.dtype[Any] = self.local.dtype
        return value

    @property
    def in_place(self) -> bool:
        """Whether y was written over x."""
        value: bool = self.local.in_place
        return value

    @property
    def channel_axis(self) -> int:
        """Which axis has channels."""
        value: int = self.local.channel_axis
        return value

    def __repr__(self) -> str:
        """As `Saved`, with the group."""
        shard = f"a {self.part.header.dtype} shard of shape {self.shape}"
        return f"<bnext.sync.SyncSaved of {shard} in {self.group!r}>"
