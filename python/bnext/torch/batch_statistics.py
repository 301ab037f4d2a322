"""Mean and variance of a batch, which calls need besides normalizing it."""

from __future__ import annotations

import torch
from torch import Tensor

from bnext.rows import Statistics
from bnext.torch import kernels
from bnext.torch.context import is_plain, is_traced

__all__ = ["statistics_of"]


def statistics_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the mean and the biased variance of each channel in float64."""
    if (is_plain(x) or is_traced()) and kernels.takes(x) and kernels.fuses(x):
        rows, _ = torch.ops.bnext.statistics_and_coefficients(x, None, None, 1.0)
        of = Statistics(*rows.unbind())
        return of.mean, of.var
    if x.numel() == 0:
        none = x.new_zeros(x.size(1), dtype=torch.float64)
        return none, none
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(x.double(), axes, correction=0)
    return mean, var
