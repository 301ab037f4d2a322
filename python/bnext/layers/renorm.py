"""Batch-renormalization layers (Ioffe 2017)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext.docstrings import with_sections_of
from bnext.estimators import Estimator, Exponential
from bnext.groups.group import Group
from bnext.layers.batch import BatchNorm
from bnext.renorm import Limit, RenormRunning, check_limit
from bnext.running import Running

__all__ = ["BatchRenorm", "BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]


class BatchRenorm(BatchNorm):
    """Batch renormalization over every axis but the channels', for input of any rank.

    In training, each channel is normalized by the batch and then corrected towards what the running
    statistics would give, within limits; these move afterwards. So training and inference agree
    better where batches are small, or their examples depend on each other. In evaluation it is
    batch normalization.

    ``y = ((x - mean_B) / sigma_B * r + d) * weight + bias`` with ``sigma = sqrt(var + eps)``,
    ``r = clip(sigma_B / sigma, 1 / r_max, r_max)`` and
    ``d = clip((mean_B - running_mean) / sigma, -d_max, d_max)``, which `backward` takes for
    constants (Ioffe 2017, "Batch Renormalization", algorithm 1).

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics, of which the standard deviation moves:
        ``sigma = (1 - momentum) * sigma + momentum * sigma_B``; None keeps the average.
    affine : bool
        Whether the layer has `weight` and `bias`.
    r_max, d_max : float or callable
        Limits of r and d: numbers, at least 1 and 0, or functions of the number of batches tracked
        before, such as `bnext.Ramp`. ``r_max=1, d_max=0`` is batch normalization.
    channel_axis, dtype, group, parameter_gradients, activation, negative_slope, skip_nonfinite
        As for `BatchNorm`.
    estimator : bnext.Estimator, optional
        In place of `momentum`: ``bnext.Exponential(momentum, bessel=False)`` if not given.

    Attributes
    ----------
    running_var : array, shape (C,)
        ``sigma**2 - eps``; other attributes as in `BatchNorm`.
    r_max, d_max : float or callable
        As they were given; may be replaced at any time.

    Raises
    ------
    ValueError, TypeError
        As `BatchNorm`; `r_max` or `d_max` is too small, or neither a number nor callable.

    Notes
    -----
    State dicts are as in batch normalization. On the CPU only, and not in `micro_batches`.
    """

    _varies = True
    running_kind: ClassVar[type[Running]] = RenormRunning

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: Limit = 3.0,
        d_max: Limit = 5.0,
        channel_axis: int = 1,
        dtype: npt.DTypeLike = np.float32,
        group: Group | None = None,
        parameter_gradients: str = "local",
        estimator: Estimator | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
        skip_nonfinite: bool = False,
    ) -> None:
        given: dict[str, Any] = {"estimator": estimator}
        if estimator is None:
            given["estimator"] = Exponential(0.01, bessel=False).with_momentum(momentum)
        super().__init__(
            num_features, eps, affine=affine, channel_axis=channel_axis, dtype=dtype, group=group,
            parameter_gradients=parameter_gradients, activation=activation,
            negative_slope=negative_slope, skip_nonfinite=skip_nonfinite, **given,
        )  # fmt: skip
        self.r_max: Any = check_limit("r_max", r_max)
        self.d_max: Any = check_limit("d_max", d_max)

    def __repr__(self) -> str:
        """As `BatchNorm`, with both limits."""
        return f"{super().__repr__()[:-1]}, r_max={self.r_max}, d_max={self.d_max})"


@with_sections_of(BatchRenorm)
class BatchRenorm1d(BatchRenorm):
    """Batch renormalization over (N, C) or (N, C, L); arguments as for `BatchRenorm`.

    With ``channel_axis=-1`` the shape is (N, L, C).
    """

    ranks: tuple[int, ...] = (2, 3)


@with_sections_of(BatchRenorm)
class BatchRenorm2d(BatchRenorm):
    """Batch renormalization over (N, C, H, W); arguments as for `BatchRenorm`.

    With ``channel_axis=-1`` the shape is (N, H, W, C).
    """

    ranks: tuple[int, ...] = (4,)


@with_sections_of(BatchRenorm)
class BatchRenorm3d(BatchRenorm):
    """Batch renormalization over (N, C, D, H, W); arguments as for `BatchRenorm`.

    With ``channel_axis=-1`` the shape is (N, D, H, W, C).
    """

    ranks: tuple[int, ...] = (5,)
