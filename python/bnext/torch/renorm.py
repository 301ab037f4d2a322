"""Batch renormalization (Ioffe 2017, arXiv 1702.03275): `bnext.renorm` has the formulas.

It is batch normalization by a weight and a bias that r and d have changed. autograd knows how, with
r and d as constants; so batch normalization does both passes, compiled ones and derivatives of
derivatives. The statistics of the batch, which r and d need, cost a further reading of the
input.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnext.docstrings import with_sections_of
from bnext.renorm import Limit, Ramp, check_limit, limit_at
from bnext.torch.batch_statistics import statistics_of
from bnext.torch.context import is_compiling, is_recomputed
from bnext.torch.epilogues import Epilogue
from bnext.torch.functional import activated_batch_norm, counted_batch_norm, weight_of_batch
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, Forward, refuse_proxy
from bnext.torch.skipping import guarded

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]

# What the layers share is the forward pass of one of PyTorch's layers.
_Base: Any = Forward if TYPE_CHECKING else object


class _Renormalized(_Base):
    takes_ghosts = False
    _alone = "it renormalizes, of which there is no synchronized form"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        r_max: Limit = 3.0,
        d_max: Limit = 5.0,
        activation: str | None = None,
        negative_slope: float = 0.01,
        skip_nonfinite: bool = False,
    ) -> None:
        check_limit("r_max", r_max)
        check_limit("d_max", d_max)
        super().__init__(
            num_features, eps, momentum, affine, True, device, dtype, activation=activation,
            negative_slope=negative_slope, skip_nonfinite=skip_nonfinite,
        )  # fmt: skip
        self.r_max, self.d_max = r_max, d_max

    def _is_special(self) -> bool:
        return self.training or super()._is_special()

    def _normalized(
        self, input: Tensor, epilogue: Epilogue | None, special: bool | None = None,
        over: bool = False,
    ) -> Tensor:  # fmt: skip
        if not self.training or self._special is not None:
            return super()._normalized(input, epilogue, special, over)
        refuse_proxy(input, "renormalization")
        self._check_input_dim(input)
        running_mean, running_var = self.running_mean, self.running_var
        r_max, d_max = (self._limit(name) for name in ("r_max", "d_max"))
        with torch.no_grad():
            mean, var = statistics_of(input.detach())
            sigma = (running_var.double() + self.eps).sqrt()
            r = ((var + self.eps).sqrt() / sigma).clamp(1.0 / r_max, r_max)
            d = ((mean - running_mean.double()) / sigma).clamp(-d_max, d_max)
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        weight, bias = r.to(dtype), d.to(dtype)
        if self.weight is not None:
            weight, bias = ((self.weight * each).to(dtype) for each in (r, d))
            if self.bias is not None:
                bias = bias + self.bias
        of = input, None, None, weight, bias, True, 0.0, self.eps, None
        y = counted_batch_norm(*of) if epilogue is None else activated_batch_norm(*of, epilogue)
        if not is_recomputed():
            values = input.numel() // max(input.size(1), 1)
            move = partial(self._move, mean, var, values)
            buffers = running_mean, running_var, self.num_batches_tracked
            skipped = self.num_batches_skipped
            with torch.no_grad():
                move(*buffers) if skipped is None else guarded(move, *buffers, skipped)
        return y

    def _limit(self, name: str) -> Any:
        limit, counter = getattr(self, name), self.num_batches_tracked
        if not (isinstance(limit, Ramp) and is_compiling()):
            return limit_at(name, limit, int(counter) if callable(limit) else 0)
        # As the ramp does, without a look at the count, which would break the graph.
        share = ((counter - limit.first) / (limit.last - limit.first)).clamp(0, 1)
        return limit.start + share * (limit.stop - limit.start)

    def _move(
        self, mean: Tensor, var: Tensor, values: int, running_mean: Tensor, running_var: Tensor,
        counter: Tensor,
    ) -> None:  # fmt: skip
        """Move the running mean and standard deviation, as `bnext.renorm.RenormRunning` does."""
        w = weight_of_batch(counter) if self.momentum is None else self.momentum
        if values > 1:
            old = running_var.double()
            apart = (old + self.eps).sqrt() - (var + self.eps).sqrt()
            towards = var - (1 - w) * apart * apart
            running_mean.copy_((1 - w) * running_mean.double() + w * mean)
            running_var.copy_((1 - w) * old + w * towards)
        counter.add_(1)

    def extra_repr(self) -> str:
        """Describe the layer as a layer of batch normalization, with both limits."""
        text: str = super().extra_repr()
        return text.replace(", kernels=", f", r_max={self.r_max}, d_max={self.d_max}, kernels=")


class BatchRenorm1d(_Renormalized, BatchNorm1d):
    """Batch renormalization over (N, C) or (N, C, L): `bnext.BatchRenorm` for PyTorch.

    ``y = ((x - mean_B) / sigma_B * r + d) * weight + bias`` with ``sigma = sqrt(var + eps)``,
    ``r = clip(sigma_B / sigma, 1 / r_max, r_max)`` and
    ``d = clip((mean_B - running_mean) / sigma, -d_max, d_max)``, which are constants for autograd
    (Ioffe 2017, "Batch Renormalization", algorithm 1). In evaluation it is batch normalization.

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics, of which the standard deviation moves;
        None keeps the average.
    affine : bool
        Whether the layer has `weight` and `bias`.
    device : torch.device, optional
        Where the parameters and the running statistics are.
    dtype : torch.dtype, optional
        Of the parameters and the running statistics.
    r_max, d_max : float or callable
        Limits of r and d: numbers, at least 1 and 0, or functions of the number of batches tracked
        before. Compiled without breaks are numbers and `bnext.Ramp`.
    activation, negative_slope, skip_nonfinite
        As in `BatchNorm1d`.

    Raises
    ------
    ValueError, TypeError
        As `BatchNorm1d`; `r_max` or `d_max` is too small, or neither a number nor callable.

    Notes
    -----
    State dicts are as in batch normalization; ``running_var`` is ``sigma**2 - eps``.
    """


@with_sections_of(BatchRenorm1d)
class BatchRenorm2d(_Renormalized, BatchNorm2d):
    """Batch renormalization over (N, C, H, W): `bnext.BatchRenorm` for PyTorch."""


@with_sections_of(BatchRenorm1d)
class BatchRenorm3d(_Renormalized, BatchNorm3d):
    """Batch renormalization over (N, C, D, H, W): `bnext.BatchRenorm` for PyTorch."""
