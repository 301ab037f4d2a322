"""Instance normalization, with the arguments of ``torch.nn.InstanceNorm1d/2d/3d``."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext._core import DeviceSaved
from bnext.array_types import AnyArray
from bnext.arrays.libraries import library_of
from bnext.docstrings import with_sections_of
from bnext.estimators import DEFAULT_MOMENTUM, chosen
from bnext.groups.group import Group
from bnext.layers.cells import CellNormalization
from bnext.running import Running

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class _InstanceNorm(CellNormalization):
    """Instance normalization for input of so many axes."""

    num_groups: None = None
    _rank: ClassVar[int]  # of a batch; an example alone has one axis less

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = DEFAULT_MOMENTUM,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        channel_axis: int = 1,
        dtype: npt.DTypeLike = np.float32,
        activation: str | None = None,
        negative_slope: float = 0.01,
        group: Group | None = None,
        parameter_gradients: str = "local",
    ) -> None:
        super().__init__(
            num_features, eps, affine, channel_axis, dtype, activation, negative_slope, group,
            parameter_gradients,
        )  # fmt: skip
        self.track_running_stats: bool = bool(track_running_stats)
        self.running: Running = Running.new(
            self.num_features, chosen(momentum, None, None), self.dtype,
            tracked=self.track_running_stats,
        )  # fmt: skip

    def _normalized(self, x: Any, out: Any, residual: Any) -> Any:
        x = x if hasattr(x, "shape") else np.asarray(x)
        rank, batch = len(x.shape), self._rank
        if rank not in (batch - 1, batch):
            raise ValueError(f"expected {batch - 1}D or {batch}D input (got {rank}D input)")
        self._warn_of_channels(x)
        if rank == batch:
            return super()._normalized(x, out, residual)
        if residual is not None:
            residual = (residual if hasattr(residual, "shape") else np.asarray(residual))[None]
        y = super()._normalized(x[None], None if out is None else out[None], residual)
        return y[0] if out is None else out

    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any, residual: Any) -> tuple[Any, ...]:
        dy = dy if hasattr(dy, "shape") else np.asarray(dy)
        if len(dy.shape) != self._rank - 1:
            return super()._gradients(dy, x, saved, out, residual)
        into = None if out is None else out[None]
        dx, dweight, dbias, *rest = super()._gradients(dy[None], x, saved, into, residual)
        rest = [each[0] for each in rest]
        return dx[0] if out is None else out, dweight, dbias, *rest

    def _warn_of_channels(self, x: AnyArray) -> None:
        axis = self.channel_axis
        if axis > 0 and len(x.shape) < self._rank:
            axis -= 1
        is_free = self.weight is None and not self.track_running_stats
        if is_free and -len(x.shape) <= axis < len(x.shape) and x.shape[axis] != self.num_features:
            warnings.warn(
                f"input's size at dim={axis} does not match num_features. You can silence this "
                "warning by not passing in num_features, which is not used because affine=False",
                stacklevel=4,  # of the call of the layer
            )

    def _move_running(self, saved: Any) -> None:
        """Move running statistics by the means over the examples of their means and variances.

        As PyTorch has it, nothing is counted, and without a momentum nothing moves.
        """
        if saved.shape[0] == 0:
            return
        if isinstance(saved, DeviceSaved):
            self._move_there(saved)
        else:
            uncounted = dataclasses.replace(self.running, counter=None)
            uncounted.move(saved.count, saved.mean.mean(axis=0), saved.m2.mean(axis=0))

    def _move_there(self, saved: DeviceSaved) -> None:
        """Do the same on a GPU, by operations of the library."""
        library: Any = library_of(saved.rows)
        momentum = dataclasses.replace(self.running, counter=None).weight()
        mean, m2 = (library.mean_of_first(row) for row in (saved.mean, saved.m2))
        library.blend(self.running.mean, momentum, mean, 1)
        library.blend(self.running.var, momentum, m2, saved.count - 1)

    def __repr__(self) -> str:
        """As PyTorch prints it, with `channel_axis` and `dtype` where they are not the default."""
        return (
            f"{type(self).__name__}({self.num_features}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}{self._options()})"
        )


class InstanceNorm1d(_InstanceNorm):
    """Instance normalization over (N, C, L), or of one example (C, L).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a channel of an example (Ulyanov, Vedaldi and Lempitsky 2016). With
    ``channel_axis=-1`` the shape is (N, L, C).

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics; None: they stay, as in PyTorch.
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics. In training mode they move by the means over the
        examples of the means and the unbiased variances; in evaluation mode they normalize.
    channel_axis : int
        Which axis of a batch has the channels: 1 for NCHW, -1 for NHWC. Axis 0 has the examples.
    dtype : dtype
        float32 or float64: of the parameters and the running statistics. The input has it as well;
        a float32 layer also takes float16 and bfloat16, and answers with what it was given.
    activation : str, optional
        What is applied to the result, in the same pass; `bnext.batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    group : bnext.sync.Group, optional
        Members that hold the positions of the same examples together, as
        `bnext.group_norm_forward` has it.
    parameter_gradients : {"local", "total"}
        In a group: whether `weight_grad` and `bias_grad` are sums over the member's positions or
        over the positions of all members. If all members share the layer, they are the total.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        Parameters, initially 1 and 0.
    weight_grad, bias_grad : array, shape (C,), or None
        Set by `backward`; each call replaces them.
    running_mean, running_var : array, shape (C,), or None
        Running statistics, initially 0 and 1.
    num_batches_tracked : array of int64, shape (), or None
        0: as in PyTorch, nothing is counted.
    training : bool
        True after construction and `train`, False after `eval`.
    use_running_stats, update_running_stats : bool or None
        As `bnext.BatchNorm` has them.
    train_affine : bool
        Whether `backward` computes the gradients of `weight` and `bias`.
    activation, negative_slope
        As they were given; may be replaced at any time. A backward call goes by what its forward
        call applied.

    Raises
    ------
    ValueError
        `num_features` is negative, `eps` is negative or not finite, or `activation` is not one of
        the names.
    TypeError
        `dtype` is not float32 or float64, an argument is not a number, or `activation` is not a
        string.
    """

    _rank = 3


@with_sections_of(InstanceNorm1d)
class InstanceNorm2d(_InstanceNorm):
    """Instance normalization over (N, C, H, W), or of one example (C, H, W).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a channel of an example (Ulyanov, Vedaldi and Lempitsky 2016). With
    ``channel_axis=-1`` the shape is (N, H, W, C).
    """

    _rank = 4


@with_sections_of(InstanceNorm1d)
class InstanceNorm3d(_InstanceNorm):
    """Instance normalization over (N, C, D, H, W), or of one example (C, D, H, W).

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a channel of an example (Ulyanov, Vedaldi and Lempitsky 2016). With
    ``channel_axis=-1`` the shape is (N, D, H, W, C).
    """

    _rank = 5
