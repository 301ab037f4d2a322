"""Layer and RMS normalization of examples whose values are divided among a group.

Every member holds all examples, a part of each one's normalized axes, and the parameters of that
part. The group merges the Moments, and the sums, of every example between the phases of both
passes, as `bnext.spine` has it. Gradients of parameters are of a member's own part, and whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.groups.exchange import Merged
from bnext.groups.group import Part
from bnext.groups.saved import MemberSaved

__all__ = ["SplitRowSaved", "backward", "forward"]


class SplitRowSaved(MemberSaved):
    """What a forward call of divided examples leaves for its backward call.

    Statistics are of whole examples: the same bits for all members.

    Attributes
    ----------
    count : float
        Values of an example, of all members.
    generation : int
        Number of the exchange in the group.
    """

    __slots__ = ("count",)

    def __init__(self, local: Any, part: Part, merged: Merged) -> None:
        super().__init__(local, part, merged)
        self.count: float = merged.total_count

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of each example; 0 of RMS normalization."""
        value: npt.NDArray[np.float64] = self.local.mean
        return value

    @property
    def rstd(self) -> npt.NDArray[np.float64]:
        """``1 / sqrt(var + eps)`` of each example."""
        value: npt.NDArray[np.float64] = self.local.rstd
        return value

    @property
    def centered(self) -> bool:
        """Whether the mean was subtracted."""
        value: bool = self.local.centered
        return value

    def __repr__(self) -> str:
        part = f"a {self.local.dtype} part of shape {self.local.shape}"
        return f"<bnext.sync.SplitRowSaved of {part} in {self.group!r}>"


def forward(
    x: Any, shape: Any, weight: Any, bias: Any, eps: Any, out: Any, centered: bool, epilogue: Any,
    part: Part,
) -> tuple[Any, SplitRowSaved]:  # fmt: skip
    """Do `forward_of_rows` for a member of a group, whose part of a call this is."""
    operands = weight, bias, eps, out, centered, epilogue
    with part:
        count, mean, low, m2, dtype = _core.rows_collect(x, shape, *operands)
        merged = part.merge_moments(dtype, count, mean, m2, low)
        low = np.zeros_like(merged.first) if merged.mean_low is None else merged.mean_low
        y, local = _core.rows_apply(
            x, shape, merged.total_count, merged.first, low, merged.second, *operands
        )
    return y, SplitRowSaved(local, part, merged)


def backward(
    dy: Any, x: Any, saved: SplitRowSaved, weight: Any, out: Any, centered: bool,
    wants_parameters: bool, residual: Any,
) -> Any:  # fmt: skip
    """Do `backward_of_rows` for a member."""
    part = saved.part
    part.group.check_open()
    with part:
        of: dict[str, Any] = {
            "dy": dy, "x": x, "saved": saved.local, "weight": weight, "out": out,
            "centered": centered, "wants_parameters": wants_parameters, "residual": residual,
        }  # fmt: skip
        first, second = np.zeros((2, saved.mean.size))
        _core.rows_backward(**of, divided=(first, second))
        merged = part.merge_sums(first, second)
        sums = np.array(merged.first), np.array(merged.second)
        return _core.rows_backward(**of, divided=(*sums, max(int(merged.total_count), 1)))
