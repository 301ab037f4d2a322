"""What a forward call in a group leaves for its backward call."""

from __future__ import annotations

from typing import Any

from bnext.groups.exchange import Merged
from bnext.groups.group import Part

__all__ = ["SyncSaved"]


class SyncSaved:
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

    __slots__ = ("generation", "local", "part", "shared")

    batch_statistics = True

    def __init__(self, local: Any, part: Part, merged: Merged) -> None:
        self.local = local  # what the engine has saved, with the whole batch's statistics in it
        self.part = part
        self.generation = merged.generation
        self.shared = merged.shared

    group = property(lambda self: self.part.group, doc="It merges the statistics and the sums.")
    count = property(
        lambda self: self.local.count, doc="Values per channel of the whole batch, or weights."
    )
    mean = property(lambda self: self.local.mean, doc="Mean of each channel.")
    mean_low = property(lambda self: self.local.mean_low, doc="Low part of `mean`.")
    m2 = property(lambda self: self.local.m2, doc="Sum of squared deviations from the mean.")
    var = property(lambda self: self.local.var, doc="Biased variance; 0 for an empty batch.")
    rstd = property(lambda self: self.local.rstd, doc="``1 / sqrt(var + eps)``, 0 if both are 0.")
    eps = property(lambda self: self.local.eps, doc="Added to the variance.")
    shape = property(lambda self: self.local.shape, doc="Shape of the member's shard.")
    dtype = property(lambda self: self.local.dtype, doc="Dtype of the input.")
    activation = property(lambda self: self.local.activation, doc="Name of the activation.")
    residual = property(lambda self: self.local.residual, doc="Whether a residual was added.")
    reads_residual = property(
        lambda self: self.local.reads_residual, doc="Whether the backward pass needs it again."
    )
    in_place = property(lambda self: self.local.in_place, doc="Whether y was written over x.")
    channel_axis = property(lambda self: self.local.channel_axis, doc="Which axis has channels.")

    def __repr__(self) -> str:
        """As `Saved`, with the group."""
        shard = f"a {self.part.header.dtype} shard of shape {self.shape}"
        return f"<bnext.sync.SyncSaved of {shard} in {self.group!r}>"
