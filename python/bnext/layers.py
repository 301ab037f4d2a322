"""Batch-normalization layers: parameters, running statistics and modes over the functional calls.

The conventions are those of ``torch.nn.BatchNorm1d/2d/3d``: constructor arguments, defaults, names
in the state dict, update rules and messages.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.devices import engine_of
from bnext.devices.libraries import library_of, to_numpy
from bnext.state import StateMixin
from bnext.sync.group import Group
from bnext.sync.phases import (
    check_group,
    check_parameter_gradients,
    layer_backward,
    layer_forward,
)

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]

Array = npt.NDArray[Any]

ARRAYS = ("weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var")


class BatchNorm(StateMixin):
    """Batch normalization over every axis but the channels', for input of any rank.

    In training mode, each channel is normalized by the mean and the biased variance of the batch,
    and the running statistics move towards the batch's. In evaluation mode the running statistics
    are used and stay as they are; a layer that tracks none goes on using the batch's.

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch: ``running = (1 - momentum) * running + momentum * batch``. The
        decay alpha of the literature is ``1 - momentum``. None keeps the cumulative average, which
        is momentum = 1 / (number of batches so far).
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics.
    channel_axis : int
        Which axis of the input has the channels: 1 for NCHW, -1 for NHWC.
    dtype : dtype
        float32 or float64: of the parameters and the running statistics. The input has it as well;
        a float32 layer also takes float16 and bfloat16 (as ``ml_dtypes`` has it), and answers with
        what it was given.
    group : bnext.sync.Group, optional
        In training, the input is a member's shard of a batch that the whole group holds: all
        members call the layer together, and statistics are the whole batch's. In evaluation mode
        nothing is exchanged. Threads may share the layer, or have a replica each: on GPUs, one
        where its shards are.
    parameter_gradients : {"local", "total"}
        In a group: whether gradients of parameters are sums over the member's shard, as the
        averaging of gradients expects them, or over the whole batch. Those of a layer that threads
        share are always the total.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        Parameters, initially 1 and 0.
    weight_grad, bias_grad : array, shape (C,), or None
        Set by `backward`; each call replaces them.
    running_mean, running_var : array, shape (C,), or None
        Running statistics, initially 0 and 1. The variance is the unbiased one.
    num_batches_tracked : array of int64, shape (), or None
        Batches seen in training mode, also empty ones.
    training : bool
        True after construction and `train`, False after `eval`.

    A new layer's arrays are NumPy's. They serve input of any library on the CPU; for input on a
    GPU they must be there as well, and `to` moves them. The counter stays on the CPU.

    Raises
    ------
    ValueError
        `num_features` is negative, or `eps` is negative or not finite.
    TypeError
        `dtype` is not float32 or float64, or an argument is not a number.
    """

    _ranks: ClassVar[tuple[int, ...]] = ()  # which ranks of input are taken; empty: any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        dtype: npt.DTypeLike = np.float32,
        group: Group | None = None,
        parameter_gradients: str = "local",
    ) -> None:
        if isinstance(num_features, bool) or not hasattr(num_features, "__index__"):
            got = type(num_features).__name__
            raise TypeError(f"num_features: expected an integer, got {got}")
        if num_features < 0:
            raise ValueError(f"num_features: expected an integer >= 0, got {num_features}")
        if not hasattr(channel_axis, "__index__"):
            got = type(channel_axis).__name__
            raise TypeError(f"channel_axis: expected an integer, got {got}")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: expected dtype float32 or float64, got {self.dtype}")
        _core.check_eps(eps)
        if momentum is not None:
            _core.check_momentum(momentum)
        check_group(group)
        self.group = group
        self.parameter_gradients = check_parameter_gradients(parameter_gradients)
        self.num_features = int(num_features)
        self.eps = eps
        self.momentum = momentum
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.channel_axis = int(channel_axis)
        self.training = True

        self.weight: Array | None = None
        self.bias: Array | None = None
        self.weight_grad: Array | None = None
        self.bias_grad: Array | None = None
        self.running_mean: Array | None = None
        self.running_var: Array | None = None
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

    # --- modes ------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> BatchNorm:
        """Switch to training mode, or with ``mode=False`` to evaluation mode; returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Switch to evaluation mode; returns the layer."""
        return self.train(False)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the counter to 0."""
        if self.running_mean is not None:
            self.running_mean[...] = 0
        if self.running_var is not None:
            self.running_var[...] = 1
        if self.num_batches_tracked is not None:
            self.num_batches_tracked[...] = 0

    def reset_parameters(self) -> None:
        """Reset the running statistics; set `weight` to 1 and `bias` to 0."""
        self.reset_running_stats()
        if self.weight is not None:
            self.weight[...] = 1
        if self.bias is not None:
            self.bias[...] = 0

    def to(self, like: Any) -> BatchNorm:
        """Move parameters, their gradients and the running statistics to where an array is.

        Parameters
        ----------
        like : array
            Of the library and on the device that the layer's arrays are to have; a NumPy array
            brings them back. The counter of batches stays on the CPU.

        Returns
        -------
        BatchNorm
            The layer. A forward call before is forgotten, as if `backward` had consumed it.

        Raises
        ------
        TypeError
            `like` is no array, or of a library whose arrays cannot be written: on the CPU, NumPy
            arrays serve that library as well.
        RuntimeError
            `like` is on a device on which bnext cannot compute.
        """
        library = library_of(like)
        if library is None and not isinstance(like, np.ndarray):
            raise TypeError(f"like: expected an array, got {type(like).__name__}")
        if library is not None and library.immutable:
            raise TypeError(
                f"like: expected an array that can be written, got one of {library.name}; on the "
                "CPU a layer of NumPy arrays takes those"
            )
        engine_of(like, "like")
        moved = {}
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                values = to_numpy(array)
                moved[name] = values if library is None else library.from_numpy(values, like)
        vars(self).update(moved)
        self._latest = None
        self._latest_of.clear()
        return self

    # --- the two passes ---------------------------------------------------------------------------

    def forward(self, x: npt.ArrayLike, *, out: Array | None = None) -> Array:
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
        if self.group is not None and self.training:
            return layer_forward(self, x, out)
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        x = self._checked(x) if engine is _core else self._checked_elsewhere(x, engine)
        mean, var = self.running_mean, self.running_var
        try:
            if self.training and self.track_running_stats:
                momentum = self.momentum
                if momentum is None:
                    momentum = self._momentum_of_the_average()
                y, saved = engine.forward(
                    x, self.weight, self.bias, mean, var, momentum, self.num_batches_tracked,
                    self.eps, self.channel_axis, out,
                )  # fmt: skip
            elif self.training or (mean is None and var is None):
                y, saved = engine.forward(
                    x, self.weight, self.bias, None, None, None, None,
                    self.eps, self.channel_axis, out,
                )  # fmt: skip
            else:
                y, saved = engine.normalize_by_running(
                    x, mean, var, self.weight, self.bias, self.eps, self.channel_axis, out
                )
        except TypeError:
            if engine is not _core:
                self._check_places(engine)
            raise
        if self.group is not None:
            self._latest_of[self.group.rank_or_none] = (x, saved)
        else:
            self._latest = (x, saved)
        result: Array = y
        return result

    __call__ = forward

    def backward(self, dy: npt.ArrayLike, *, out: Array | None = None) -> Array:
        """Gradient by the input of the latest forward call, which it consumes.

        In evaluation mode with running statistics these are constants, and ``dx`` is
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
        x, saved = self._latest
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        dx, dweight, dbias = engine.backward(dy, x, saved, self.weight, out)
        if self.weight is not None:
            self.weight_grad = dweight
        if self.bias is not None:
            self.bias_grad = dbias
        self._latest = None
        result: Array = dx
        return result

    # --- checks -----------------------------------------------------------------------------------

    def _checked(self, x: npt.ArrayLike) -> Array:
        # Subclasses of ndarray go through: _core refuses masks, which asarray would drop.
        array = x if isinstance(x, np.ndarray) else _core.as_array(x, "x")
        shape, dtype, ranks, axis = array.shape, array.dtype, self._ranks, self.channel_axis
        rank = len(shape)
        if ranks and rank not in ranks:
            raise self._wrong_rank(rank)
        # Usually there is one object for each dtype; to compare what they say takes longer.
        if dtype is not self.dtype and dtype != self.dtype and not self._takes(dtype):
            raise self._wrong_dtype(dtype)
        if -rank <= axis < rank and shape[axis] != self.num_features:
            raise self._wrong_channels(shape[axis])
        return array

    def _checked_elsewhere(self, x: Any, engine: Any) -> Any:
        """Check an array of another library."""
        shape, dtype = engine.inspect(x)
        rank, axis = len(shape), self.channel_axis
        if self._ranks and rank not in self._ranks:
            raise self._wrong_rank(rank)
        is_wide = self.dtype == np.float32
        if dtype != self.dtype.name and not (is_wide and dtype in ("float16", "bfloat16")):
            raise self._wrong_dtype(dtype)
        if -rank <= axis < rank and shape[axis] != self.num_features:
            raise self._wrong_channels(shape[axis])
        return x

    def _check_places(self, engine: Any) -> None:
        """Say which of the layer's arrays is not where x is, if a call has failed for that."""
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None and (problem := engine.misplaced(array)):
                raise TypeError(f"{name}: {problem}; the layer's to(x) moves it")

    def _wrong_rank(self, rank: int) -> ValueError:
        expected = " or ".join(f"{n}D" for n in self._ranks)
        return ValueError(f"expected {expected} input (got {rank}D input)")

    def _wrong_dtype(self, dtype: Any) -> TypeError:
        also = ", float16 or bfloat16" if self.dtype == np.float32 else ""
        return TypeError(f"x: expected dtype {self.dtype}{also}, got {dtype}")

    def _wrong_channels(self, got: int) -> ValueError:
        expected, axis = self.num_features, self.channel_axis
        return ValueError(f"x: expected {expected} channels at axis {axis}, got {got}")

    def _momentum_of_the_average(self) -> float:
        if self.num_batches_tracked is None:
            return 0.0
        return 1.0 / (int(self.num_batches_tracked) + 1)

    def _takes(self, dtype: np.dtype[Any]) -> bool:
        """Whether x may be of a dtype other than the layer's: 16 bits under float32 parameters."""
        return self.dtype == np.float32 and dtype.itemsize == 2 and _core.is_data_dtype(dtype)

    def __repr__(self) -> str:
        """As PyTorch prints it, with `channel_axis` and `dtype` where they are not the default."""
        text = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )
        if self.group is not None:
            text += f", group={self.group!r}"
        if self.channel_axis != 1:
            text += f", channel_axis={self.channel_axis}"
        if self.dtype != np.float32:
            text += f", dtype={self.dtype}"
        return f"{type(self).__name__}({text})"


class BatchNorm1d(BatchNorm):
    """`BatchNorm` for input of shape (N, C) or (N, C, L); see there for the arguments."""

    _ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` for input of shape (N, C, H, W); see there for the arguments."""

    _ranks = (4,)


class BatchNorm3d(BatchNorm):
    """`BatchNorm` for input of shape (N, C, D, H, W); see there for the arguments."""

    _ranks = (5,)
