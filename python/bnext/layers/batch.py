"""The batch-normalization layers, with the arguments of ``torch.nn.BatchNorm1d/2d/3d``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bnext.docstrings import with_sections_of
from bnext.estimators import DEFAULT_MOMENTUM, Estimator, chosen
from bnext.groups.group import Group
from bnext.layers.normalization import Normalization
from bnext.layers.variants import check_alone
from bnext.running import Running

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class BatchNorm(Normalization):
    """Batch normalization over every axis but the channels', for input of any rank.

    In training mode, each channel is normalized by the mean and the biased variance of the batch,
    and the running statistics move towards the batch's. In evaluation mode the running statistics
    are used and stay as they are; a layer that tracks none goes on using the batch's.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` (Ioffe and Szegedy 2015, algorithm 1).
    With an activation, or a residual that a call is given, the result is ``act(y + residual)``, in
    the same pass over memory. Calls take `mask`, `sample_weight` and `lengths`, which say which
    positions count, and how often.

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch: ``running = (1 - momentum) * running + momentum * batch``. None
        keeps the cumulative average, which is momentum = 1 / (number of batches so far). At most
        one of `momentum`, `decay` and `estimator` may be given.
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics.
    channel_axis : int
        Which axis of the input has the channels: 1 for NCHW, -1 for NHWC.
    dtype : dtype
        float32 or float64: of the parameters and the running statistics. The input has it as well;
        a float32 layer also takes float16 and bfloat16 (as ``ml_dtypes`` has it), and answers with
        what it was given. Nothing is converted silently, and the dtype does not follow the first
        input, since an optimizer may hold the parameters already: for NumPy's float64 make a layer
        with ``dtype=np.float64``, or pass ``x.astype(np.float32)``.
    group : bnext.sync.Group, optional
        In training, the input is a member's shard of a batch that the whole group holds: all
        members call the layer together, and statistics are the whole batch's. In evaluation mode
        nothing is exchanged. Threads may share the layer, or have a replica each: on GPUs, one
        where its shards are.
    parameter_gradients : {"local", "total"}
        In a group: whether gradients of parameters are sums over the member's shard, as the
        averaging of gradients expects them, or over the whole batch. Those of a layer that threads
        share are always the total.
    decay : float, optional
        The alpha of the literature, ``1 - momentum``.
    estimator : bnext.Estimator, optional
        How the running statistics are estimated: `bnext.Exponential`, `bnext.Cumulative`,
        `bnext.DebiasedExponential` or `bnext.FirstBatchExponential`, each with or without Bessel's
        correction of the variance.
    activation : str, optional
        The function that is applied last: "relu", "relu6", "leaky_relu", "silu", "hardswish",
        "gelu", "gelu_tanh", "sigmoid" or "tanh", as `bnext.batch_norm_forward` has them.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    in_place : bool
        Whether calls without `out` write their output over their input, in every mode; the layer
        then keeps the output, and finds what `backward` needs of the input from it. For no
        activation and "leaky_relu" with a slope above 0, without a residual, and weights that are
        not too small: `bnext.batch_norm_forward` explains it (``out=x``). On the CPU only.
    ghost_batch_size : int, optional
        Examples in a ghost batch: in training, consecutive ghosts of a batch, along axis 0, are
        normalized each by its own statistics, and move the running ones and the counter one after
        the other as batches do (Hoffer, Hubara and Soudry 2017, algorithm 1). The last ghost has
        what remains; if that is one value per channel, it is joined to the ghost before. Not in a
        group. On the CPU only.
    skip_nonfinite : bool
        Whether a batch whose mean or variance is not finite, in any channel and in the layer's
        dtype, leaves the running statistics and `num_batches_tracked` alone and is counted in
        `num_batches_skipped`. Its output is the same either way. In a group the statistics of the
        whole batch decide, so that all members skip a batch or none. On the CPU only.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        Parameters, initially 1 and 0.
    weight_grad, bias_grad : array, shape (C,), or None
        Set by `backward`; each call replaces them.
    running_mean, running_var : array, shape (C,), or None
        Running statistics, initially 0 and 1. The variance is the unbiased one, unless the
        estimator leaves it biased.
    num_batches_tracked : array of int64, shape (), or None
        Batches seen in training mode, also empty ones.
    num_batches_skipped : array of int64, shape (), or None
        Batches that were not finite; None without `skip_nonfinite`. Copies and pickles have it,
        the state dict, which is PyTorch's, does not.
    training : bool
        True after construction and `train`, False after `eval`.
    use_running_stats : bool or None
        Whether calls normalize by the running statistics, if the layer has any, rather than by the
        batch's. None: in evaluation mode.
    update_running_stats : bool or None
        Whether calls move the running statistics, if the layer tracks them. None: in training mode.
        Calls that use and move them use what they were before.
    train_affine : bool
        Whether `backward` computes the gradients of `weight` and `bias`.
    activation, negative_slope, in_place, ghost_batch_size, skip_nonfinite
        As they were given; may be replaced at any time. A backward call goes by what its forward
        call applied.
    estimator : bnext.Estimator
        May be replaced at any time; `momentum` and `decay` read it and replace it.

    A new layer's arrays are NumPy's. They serve input of any library on the CPU; for input on a
    GPU they must be there as well, and `to` moves them. The counter stays on the CPU.

    Raises
    ------
    ValueError
        `num_features` is negative, `eps` is negative or not finite, more than one of `momentum`,
        `decay` and `estimator` was given, `activation` is not one of the names, `negative_slope`
        is not finite, `in_place` does not go with the activation, or `skip_nonfinite` is given
        for a layer without running statistics.
    TypeError
        `dtype` is not float32 or float64, an argument is not a number, or `activation` is not a
        string.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = DEFAULT_MOMENTUM,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        dtype: npt.DTypeLike = np.float32,
        group: Group | None = None,
        parameter_gradients: str = "local",
        decay: float | None = None,
        estimator: Estimator | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
        in_place: bool = False,
        ghost_batch_size: int | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(
            num_features, eps, affine, channel_axis=channel_axis, dtype=dtype, group=group,
            parameter_gradients=parameter_gradients, activation=activation,
            negative_slope=negative_slope, in_place=in_place,
        )  # fmt: skip
        if ghost_batch_size is not None:
            self.ghost_batch_size = ghost_batch_size
            check_alone(self, group)
        self.track_running_stats: bool = bool(track_running_stats)
        self.running: Running = self.running_kind.new(
            self.num_features, chosen(momentum, decay, estimator), self.dtype,
            tracked=self.track_running_stats,
        )  # fmt: skip
        self.skip_nonfinite = skip_nonfinite


@with_sections_of(BatchNorm)
class BatchNorm1d(BatchNorm):
    """Batch normalization over (N, C) or (N, C, L); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, L, C).
    """

    ranks: tuple[int, ...] = (2, 3)


@with_sections_of(BatchNorm)
class BatchNorm2d(BatchNorm):
    """Batch normalization over (N, C, H, W); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, H, W, C).
    """

    ranks: tuple[int, ...] = (4,)


@with_sections_of(BatchNorm)
class BatchNorm3d(BatchNorm):
    """Batch normalization over (N, C, D, H, W); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, D, H, W, C).
    """

    ranks: tuple[int, ...] = (5,)
