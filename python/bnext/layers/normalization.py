"""Normalization layers: parameters, running statistics, modes, and both passes.

``torch.nn`` sets the conventions: constructor arguments, defaults, names in the state dict, update
rules and messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import numpy.typing as npt
from numpy import ndarray

from bnext import _core, spine
from bnext.arguments import index_of
from bnext.array_types import AnyArray, Array, ArrayT, Parameter
from bnext.estimators import Cumulative, Estimator, Exponential
from bnext.groups.group import ALONE, Group, announcing, check_group
from bnext.groups.saved import SyncSaved
from bnext.groups.visits import VISITS, Latest
from bnext.inference.folding import Affine, affine_of
from bnext.layers import state
from bnext.layers.checks import check_places, taken
from bnext.layers.state import IncompatibleKeys, StateDict
from bnext.running import Running

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Normalization"]


class OfRunning:
    """An attribute of a layer that its `Running` has, under another name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layer: Any, kind: type) -> Any:
        return self if layer is None else getattr(layer.running, self._name)

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer.running, self._name, value)


class Normalization:
    """A layer with parameters for each channel, and statistics of its own or of the batch.

    Parameters
    ----------
    num_features, eps, affine, channel_axis, dtype, group, parameter_gradients
        As `bnext.BatchNorm` has them.

    Notes
    -----
    Subclasses set `running` and `track_running_stats`.
    """

    ranks: ClassVar[tuple[int, ...]] = ()  # of input that is taken; empty: any

    running: Running
    track_running_stats: bool

    running_mean: Parameter = OfRunning("mean")
    running_var: Parameter = OfRunning("var")
    num_batches_tracked: npt.NDArray[np.int64] | None = OfRunning("counter")  # type: ignore[assignment]
    estimator: Estimator = OfRunning("estimator")  # type: ignore[assignment]

    def __init__(
        self,
        num_features: int,
        eps: float,
        affine: bool,
        *,
        channel_axis: int,
        dtype: npt.DTypeLike,
        group: Group | None,
        parameter_gradients: str,
    ) -> None:
        self.num_features = index_of(num_features, "num_features")
        if self.num_features < 0:
            raise ValueError(f"num_features: expected an integer >= 0, got {num_features}")
        self.channel_axis = index_of(channel_axis, "channel_axis")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: expected dtype float32 or float64, got {self.dtype}")
        _core.check_eps(eps=eps)
        check_group(group)
        self.group = group
        self.parameter_gradients = spine.check_parameter_gradients(parameter_gradients)
        self.eps = eps
        self.affine = bool(affine)
        self.training = True
        self.use_running_stats: bool | None = None
        self.update_running_stats: bool | None = None
        self.train_affine = True

        self.weight: Parameter = None
        self.bias: Parameter = None
        self.weight_grad: Parameter = None
        self.bias_grad: Parameter = None
        if self.affine:
            self.weight = np.ones(self.num_features, self.dtype)
            self.bias = np.zeros(self.num_features, self.dtype)
        # The input of the latest forward call and what it saved, until backward consumes them; in a
        # group, of each member by its rank.
        self._latest: Latest = {}

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
            Of any library. Of the layer's dtype; for a float32 layer also float16 or bfloat16. The
            layer keeps it, without a copy, until `backward` or the next call: it must not change.
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
        uses, moves = self.statistics_of_call()
        group, latest, member = self.group, self._latest, None
        part = ALONE
        visits = VISITS.get()
        if group is not None or visits:
            if visits and self in visits:
                group, latest = visits[self]
                uses, moves, meets = False, False, True
            else:
                # In evaluation a layer without running statistics normalizes by its own shard.
                meets = moves if uses else self.training or self.use_running_stats is False
            if group is not None:
                member = group.rank_or_none
                part = group.part(self) if meets else ALONE
        if part is ALONE:
            x, engine = taken(self, x)
        else:
            with part:
                x, engine = taken(self, x)
        running = self.running
        explain = None if type(x) is ndarray else partial(check_places, self)
        y, saved = spine.forward(
            x, self.weight, self.bias, self.eps, self.channel_axis, out,
            running if uses else None, running if moves else None, part, engine, explain,
        )  # fmt: skip
        # Where statistics are constants, gradients of parameters are all that x is needed for.
        latest[member] = (None if uses and not self._trains_parameters() else x), saved
        return y

    __call__ = forward

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
            ``dx``. The call replaces `weight_grad` and `bias_grad`.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by an earlier `backward`.
        ValueError, TypeError
            `dy` has another shape or dtype than the input, or the input has changed since.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        visits = VISITS.get()
        visit = visits.get(self) if visits else None
        group, latest = visit or (self.group, self._latest)
        if group is None:
            return self._backward(dy, out, None, latest)
        with announcing(group):
            return self._backward(dy, out, group, latest)

    def _backward(self, dy: Any, out: Any, group: Group | None, latest: Latest) -> Any:
        member = None if group is None else group.rank_or_none
        if member not in latest:
            if group is not None:
                group.check_open()
            raise RuntimeError(
                "backward: expected a forward call before it, since the latest one was consumed "
                "or there was none"
            )
        x, saved = latest[member]
        sums = "local"
        if group is not None and isinstance(saved, SyncSaved):
            own = self.parameter_gradients if group is self.group else "local"  # or on a visit
            sums = "total" if saved.shared else own
        dx, dweight, dbias = spine.backward(dy, x, saved, self.weight, out, sums)
        if self.train_affine and self.weight is not None:
            self.weight_grad = dweight
        if self.train_affine and self.bias is not None:
            self.bias_grad = dbias
        del latest[member]
        return dx

    # --- modes ------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with ``mode=False`` to evaluation mode.

        The mode does not change what `freeze`, or a switch that is not None, has set.

        Parameters
        ----------
        mode : bool
            Whether to train.

        Returns
        -------
        BatchNorm
            The layer.
        """
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode.

        Returns
        -------
        BatchNorm
            The layer.
        """
        return self.train(False)

    def freeze(self, *, affine: bool = True) -> Self:
        """Make a constant of the layer, in every mode.

        It normalizes by its running statistics and leaves them alone, and `backward` is a
        multiplication: it neither needs the input nor computes gradients of parameters.

        Parameters
        ----------
        affine : bool
            Whether `weight` and `bias` are constants as well. Their gradients become None.

        Returns
        -------
        BatchNorm
            The layer.

        Raises
        ------
        ValueError
            The layer has no running statistics.
        """
        if self.running_mean is None or self.running_var is None:
            raise ValueError(
                "freeze: expected a layer with running statistics, got one with "
                f"track_running_stats={self.track_running_stats}"
            )
        switches: dict[str, object] = {"use_running_stats": True, "update_running_stats": False}
        if affine:
            switches |= {"train_affine": False, "weight_grad": None, "bias_grad": None}
        vars(self).update(switches)  # all of them at once
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze`: the mode decides again, and parameters train.

        Returns
        -------
        BatchNorm
            The layer.
        """
        vars(self).update(use_running_stats=None, update_running_stats=None, train_affine=True)
        return self

    @property
    def frozen(self) -> bool:
        """Whether the statistics are constants in every mode, as after `freeze`."""
        return self.use_running_stats is True and self.update_running_stats is False

    def _trains_parameters(self) -> bool:
        return self.train_affine and (self.weight is not None or self.bias is not None)

    def statistics_of_call(self) -> tuple[bool, bool]:
        """Whether a call normalizes by the running statistics, and whether it moves them."""
        uses, moves = self.use_running_stats, self.update_running_stats
        if uses is None:
            uses = not self.training
        if moves is None:
            moves = self.training
        if uses:
            uses = self.running.mean is not None or self.running.var is not None
        return uses, moves and self.track_running_stats

    @property
    def momentum(self) -> float | None:
        """Weight of the new batch, of the layer's `estimator`; None in a cumulative average."""
        return self.estimator.momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self.estimator = self.estimator.with_momentum(value)

    @property
    def decay(self) -> float | None:
        """``1 - momentum``; None in a cumulative average."""
        return self.estimator.decay

    @decay.setter
    def decay(self, value: float) -> None:
        self.estimator = self.estimator.with_decay(value)

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> StateDict:
        """Parameters and running statistics by name.

        Returns
        -------
        StateDict
            Copies of `weight`, `bias`, `running_mean`, `running_var` (shape (C,), the layer's
            dtype) and `num_batches_tracked` (shape (), int64), as far as the layer has them; each
            where the layer's own is.
        """
        return state.state_of(self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy parameters and running statistics into the layer's own arrays.

        Parameters
        ----------
        state_dict : mapping of str to array
            From `state_dict`, or from a PyTorch layer, of any library and on any device. Values are
            converted to the layer's dtype, as PyTorch does; the counter may be of any dtype, if it
            is a whole number that int64 holds. A checkpoint from before the counter existed keeps
            the current one.
        strict : bool
            Whether missing and unexpected names are errors.

        Returns
        -------
        IncompatibleKeys
            With `missing_keys` and `unexpected_keys`.

        Raises
        ------
        RuntimeError
            A value has another shape, a mask, or cannot become the layer's dtype; an array of the
            layer cannot be written; with `strict` also a missing or unexpected name. Nothing was
            changed then.
        TypeError
            `state_dict` is not a mapping.
        """
        return state.load(self, state_dict, strict)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the counter to 0.

        Raises
        ------
        ValueError, TypeError
            One of them cannot be written; then none has changed.
        """
        state.fill(self, running_mean=0, running_var=1, num_batches_tracked=0)

    def reset_parameters(self) -> None:
        """Reset the running statistics; set `weight` to 1 and `bias` to 0.

        Raises
        ------
        ValueError, TypeError
            An array cannot be written; then none has changed.
        """
        state.fill(self, running_mean=0, running_var=1, num_batches_tracked=0, weight=1, bias=0)

    def to(self, like: AnyArray) -> Self:
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
        state.move(self, like)
        return self

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

    def __getstate__(self) -> dict[str, Any]:
        """Give all attributes but the latest call, which copies and pickles do not have."""
        return state.flattened(self)

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        """Set the attributes; arrays that cannot be written are copied.

        Pickles have such arrays where buffers lie elsewhere: memory maps of joblib, shared memory.
        """
        read_only = {
            name: np.array(value)
            for name, value in attributes.items()
            if isinstance(value, np.ndarray) and not value.flags.writeable
        }
        state.restore(self, attributes | read_only)

    def __copy__(self) -> Self:
        """Make a layer with the same arrays and no latest call."""
        other = type(self).__new__(type(self))
        state.restore(other, state.flattened(self))
        return other

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
