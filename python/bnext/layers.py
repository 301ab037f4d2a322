"""Batch-normalization layers: parameters, running statistics and modes over the functional calls.

The conventions are those of ``torch.nn.BatchNorm1d/2d/3d``: constructor arguments, defaults, names
in the state dict, update rules and messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.arguments import index_of
from bnext.array_types import Array, ArrayT, Parameter
from bnext.devices import DeviceSaved, engine_of
from bnext.devices.checks import check_more_than_one
from bnext.docstrings import with_sections_of
from bnext.estimators import DEFAULT_MOMENTUM, Cumulative, Estimator, Exponential, chosen
from bnext.folding import Affine, affine_of
from bnext.layer_checks import ChecksMixin
from bnext.modes import ModesMixin
from bnext.running import check_movable, prepare_move
from bnext.state import StateMixin
from bnext.sync.group import Group
from bnext.sync.phases import (
    check_group,
    check_parameter_gradients,
    layer_backward,
    layer_forward,
    layer_moments,
    move_by_group,
)
from bnext.writes import Writes

if TYPE_CHECKING:
    pass

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class BatchNorm(ModesMixin, ChecksMixin, StateMixin):
    """Batch normalization over every axis but the channels', for input of any rank.

    In training mode, each channel is normalized by the mean and the biased variance of the batch,
    and the running statistics move towards the batch's. In evaluation mode the running statistics
    are used and stay as they are; a layer that tracks none goes on using the batch's.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` (Ioffe and Szegedy 2015, algorithm 1).

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
        How the running statistics are estimated: `bnext.Exponential`, `bnext.Cumulative` or
        `bnext.DebiasedExponential`, each with or without Bessel's correction of the variance.

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
    estimator : bnext.Estimator
        May be replaced at any time; `momentum` and `decay` read it and replace it.

    A new layer's arrays are NumPy's. They serve input of any library on the CPU; for input on a
    GPU they must be there as well, and `to` moves them. The counter stays on the CPU.

    Raises
    ------
    ValueError
        `num_features` is negative, `eps` is negative or not finite, or more than one of
        `momentum`, `decay` and `estimator` was given.
    TypeError
        `dtype` is not float32 or float64, or an argument is not a number.
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
    ) -> None:
        self.num_features = index_of(num_features, "num_features")
        if self.num_features < 0:
            raise ValueError(f"num_features: expected an integer >= 0, got {num_features}")
        self.channel_axis = index_of(channel_axis, "channel_axis")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: expected dtype float32 or float64, got {self.dtype}")
        _core.check_eps(eps)
        self.estimator = chosen(momentum, decay, estimator)
        check_group(group)
        self.group = group
        self.parameter_gradients = check_parameter_gradients(parameter_gradients)
        self.eps = eps
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.training = True
        self.use_running_stats: bool | None = None
        self.update_running_stats: bool | None = None
        self.train_affine = True

        self.weight: Parameter = None
        self.bias: Parameter = None
        self.weight_grad: Parameter = None
        self.bias_grad: Parameter = None
        self.running_mean: Parameter = None
        self.running_var: Parameter = None
        self.num_batches_tracked: npt.NDArray[np.int64] | None = None
        if self.affine:
            self.weight = np.ones(self.num_features, self.dtype)
            self.bias = np.zeros(self.num_features, self.dtype)
        if self.track_running_stats:
            self.running_mean = np.zeros(self.num_features, self.dtype)
            self.running_var = np.ones(self.num_features, self.dtype)
            self.num_batches_tracked = np.zeros((), np.int64)
        # The input of the latest forward call and what it saved, until backward consumes them.
        self._latest: tuple[Any, Any] | None = None
        # The same in a group, of each member by its rank; and for which of the group's exchanges
        # the running statistics have moved.
        self._latest_of: dict[int | None, tuple[Any, Any]] = {}
        self._moved_at: tuple[Group, int] | None = None

    def as_affine(self) -> Affine:
        """Give what the layer is in inference: ``scale * x + shift`` for each channel.

        Returns
        -------
        Affine
            ``scale = weight / sqrt(running_var + eps)`` and
            ``shift = bias - running_mean * scale``, NumPy's float64 arrays of shape (C,).

        Raises
        ------
        ValueError
            The layer has no running statistics.
        """
        return affine_of(self)

    # --- the two passes ---------------------------------------------------------------------------

    @overload
    def forward(self, x: ArrayT, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def forward(self, x: npt.ArrayLike, *, out: Array | None = None) -> Array: ...

    def forward(self, x: Any, *, out: Any = None) -> Any:
        """Normalize `x`; the same as calling the layer.

        Parameters
        ----------
        x : array, shape (N, C, ...) with C at `channel_axis`
            Of any library. Of the layer's dtype; for a float32 layer also float16 or bfloat16. It
            is kept, not copied, until `backward` or the next call, and must not change meanwhile.
        out : array, shape of `x`, optional
            Where to put the result.

        Returns
        -------
        array, shape of `x`
            Of the dtype and in the memory order of `x`, or `out`.

        Raises
        ------
        ValueError, TypeError
            `x` has a wrong rank, number of channels or dtype, has one value per channel in
            training, or what `bnext.batch_norm_forward` raises. The layer's state is then what it
            was before.
        RuntimeError
            `x` is on a device on which bnext cannot compute.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        uses, moves = self._statistics_of_call()
        # In evaluation a layer without running statistics uses those of its own shard.
        meets = self.training or self.use_running_stats is False
        if self.group is not None and not uses and meets:
            return layer_forward(self, x, out, moves)
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        x = self._checked(x, engine)
        try:
            if uses:
                y, latest = self._by_running(engine, x, out, moves)
            else:
                y, latest = self._by_batch(engine, x, out, moves)
        except TypeError:
            self._check_places(x, engine)
            raise
        if self.group is not None:
            self._latest_of[self.group.rank_or_none] = latest
        else:
            self._latest = latest
        return y

    __call__ = forward

    def _by_batch(self, engine: Any, x: Any, out: Any, moves: bool) -> tuple[Any, Any]:
        """Normalize by the batch's statistics; y, and what backward needs."""
        options = (self.eps, self.channel_axis, out)
        if moves:
            y, saved = engine.forward(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                self._weight_of_batch(), self.num_batches_tracked, *options, self.estimator.bessel,
            )  # fmt: skip
        else:
            y, saved = engine.forward(x, self.weight, self.bias, None, None, None, None, *options)
        return y, (x, saved)

    def _by_running(self, engine: Any, x: Any, out: Any, moves: bool) -> tuple[Any, Any]:
        """Normalize by the running statistics, and move them after if asked to."""
        moving = None
        if moves and self.group is None:
            batch = engine.moments(x, self.channel_axis)
            check_more_than_one(tuple(x.shape), batch[0])
            moving = Writes()
            prepare_move(moving, self, *batch)
        elif moves:
            check_movable(self)
        y, saved = engine.normalize_by_running(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.eps, self.channel_axis, out,
        )  # fmt: skip
        if moving is not None:
            moving.commit()
        elif moves:
            # Only now: members that share the layer move it when all have normalized.
            move_by_group(self, layer_moments(self, engine, x))
        # Gradients of parameters are all that x would be needed for.
        return y, (x if self._needs_gradients_of_parameters() else None, saved)

    @overload
    def backward(self, dy: ArrayT, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def backward(self, dy: npt.ArrayLike, *, out: Array | None = None) -> Array: ...

    def backward(self, dy: Any, *, out: Any = None) -> Any:
        """Gradient by the input of the latest forward call, which it consumes.

        ``dx = weight * rstd * (dy - E[dy] - xhat * E[dy * xhat])`` with
        ``xhat = (x - mean) * rstd`` and E the mean over a channel's values (Ioffe and Szegedy 2015,
        section 3). In evaluation mode with running statistics these are constants, and ``dx`` is
        ``dy * weight * rstd``.

        Parameters
        ----------
        dy : array, shape of `x`
            Gradient of the loss by the output; of the dtype of `x`.
        out : array, shape of `x`, optional
            Where to put the result.

        Returns
        -------
        array, shape of `x`
            ``dx``. `weight_grad` and `bias_grad` are replaced by those of this call.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by an earlier `backward`.
        ValueError, TypeError
            `dy` has another shape or dtype than the input, or the input has changed since.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        if self.group is not None:
            return layer_backward(self, dy, out)
        if self._latest is None:
            raise RuntimeError(
                "backward: expected a forward call before it, since the latest one was consumed "
                "or there was none"
            )
        dx, *of_parameters = self._gradients(dy, *self._latest, out)
        self._keep_gradients(*of_parameters)
        self._latest = None
        return dx

    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any) -> tuple[Any, Any, Any]:
        """Give dx, dweight and dbias outside of groups; without x, dx alone."""
        engine: Any
        if x is None:
            if isinstance(saved, DeviceSaved):
                engine = engine_of(saved.var)
            else:
                engine = _core if type(dy) is np.ndarray else engine_of(dy, "dy")
            return engine.backward_constant(dy, saved, self.weight, out), None, None
        engine = _core if type(x) is np.ndarray else engine_of(x)
        gradients: tuple[Any, Any, Any] = engine.backward(dy, x, saved, self.weight, out)
        return gradients

    def _keep_gradients(self, dweight: Any, dbias: Any) -> None:
        if self.train_affine and self.weight is not None:
            self.weight_grad = dweight
        if self.train_affine and self.bias is not None:
            self.bias_grad = dbias

    def __repr__(self) -> str:
        """As PyTorch prints it, with `channel_axis` and `dtype` where they are not the default."""
        text = (
            f"{self.num_features}, eps={self.eps}, {self._estimator_text()}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )
        if self.group is not None:
            text += f", group={self.group!r}"
        if self.channel_axis != 1:
            text += f", channel_axis={self.channel_axis}"
        if self.dtype != np.float32:
            text += f", dtype={self.dtype}"
        if self.frozen:
            text += ", frozen"
        return f"{type(self).__name__}({text})"

    def _estimator_text(self) -> str:
        estimator = self.estimator
        is_torch_s = type(estimator) in (Exponential, Cumulative) and estimator.bessel
        return f"momentum={self.momentum}" if is_torch_s else f"estimator={estimator}"


@with_sections_of(BatchNorm)
class BatchNorm1d(BatchNorm):
    """Batch normalization over (N, C) or (N, C, L); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, L, C).
    """

    _ranks = (2, 3)


@with_sections_of(BatchNorm)
class BatchNorm2d(BatchNorm):
    """Batch normalization over (N, C, H, W); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, H, W, C).
    """

    _ranks = (4,)


@with_sections_of(BatchNorm)
class BatchNorm3d(BatchNorm):
    """Batch normalization over (N, C, D, H, W); arguments as for `BatchNorm`.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1). With ``channel_axis=-1`` the shape is (N, D, H, W, C).
    """

    _ranks = (5,)
