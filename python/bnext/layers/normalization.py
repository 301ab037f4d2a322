"""Normalization layers: parameters, running statistics, and both passes.

``torch.nn`` sets the conventions: constructor arguments, defaults, names in the state dict, update
rules and messages.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from numpy import ndarray

from bnext import _core, spine
from bnext.arguments import index_of
from bnext.array_types import Array, ArrayT
from bnext.estimators import Cumulative, Exponential
from bnext.ghosts import check_size
from bnext.groups.group import ALONE, Group, announcing, check_group
from bnext.groups.saved import SyncSaved
from bnext.groups.visits import VISITS, Latest, latest_call
from bnext.inference.folding import Affine, affine_of
from bnext.layers.checks import check_places, check_residual_grad, taken
from bnext.layers.modes import Modes
from bnext.layers.recomputed import Recomputed
from bnext.layers.variants import varied
from bnext.signatures import BY_NAME, by_name, given_by_position
from bnext.weighting import ZERO, Masked, weighting_of

__all__ = ["Normalization"]


class Normalization(Modes):
    """A layer with parameters for each channel, and statistics of its own or of the batch.

    `bnext.BatchNorm` explains the arguments. Subclasses set `running` and `track_running_stats`.
    """

    ranks: tuple[int, ...] = ()  # of input that is taken; empty: any
    # Here too, for pickles of layers from before there were activations.
    activation: str | None = None
    negative_slope: float = 0.01
    in_place: bool = False
    _varies = False  # whether a call may be another than by one batch: `variants` has them
    _ghosts: int | None = None

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
        activation: str | None,
        negative_slope: float,
        in_place: bool,
    ) -> None:
        super().__init__(num_features, affine, dtype)
        # Each call reads them, and CPython reads attributes of instances in less time.
        self.ranks, self._varies = type(self).ranks, type(self)._varies
        _core.check_activation(activation=activation)
        self.activation = activation
        self.negative_slope = _core.check_negative_slope(negative_slope=negative_slope)
        self.in_place = bool(in_place)
        if self.in_place:
            _core.check_in_place(activation=activation, negative_slope=self.negative_slope)
        self.channel_axis: int = index_of(channel_axis, "channel_axis")
        _core.check_eps(eps=eps)
        check_group(group)
        self.group = group
        self.parameter_gradients: str = spine.check_parameter_gradients(parameter_gradients)
        self.eps = eps
        self.training = True
        self.use_running_stats: bool | None = None
        self.update_running_stats: bool | None = None
        self.train_affine = True

    @property
    def ghost_batch_size(self) -> int | None:
        """Examples that are normalized together in training; None: the batch. May be set."""
        return self._ghosts

    @ghost_batch_size.setter
    def ghost_batch_size(self, value: int | None) -> None:
        self._ghosts = check_size(value)
        self._varies = type(self)._varies or self._ghosts is not None

    # --- the two passes ---------------------------------------------------------------------------

    @overload
    def forward(
        self,
        x: ArrayT,
        *,
        out: ArrayT | None = None,
        residual: Any = None,
        mask: Any = None,
        sample_weight: Any = None,
        lengths: Any = None,
        offsets: Any = None,
        masked: Masked = "zero",
    ) -> ArrayT: ...

    @overload
    def forward(
        self,
        x: npt.ArrayLike,
        *,
        out: Array | None = None,
        residual: Any = None,
        mask: Any = None,
        sample_weight: Any = None,
        lengths: Any = None,
        offsets: Any = None,
        masked: Masked = "zero",
    ) -> Array: ...

    @by_name
    def forward(
        self,
        x: Any,
        _by_name: Any = BY_NAME,
        out: Any = None,
        residual: Any = None,
        mask: Any = None,
        sample_weight: Any = None,
        lengths: Any = None,
        offsets: Any = None,
        masked: Masked = ZERO,
    ) -> Any:
        """Normalize `x`; the same as calling the layer.

        Parameters
        ----------
        x : array, shape (N, C, ...) with C at `channel_axis`
            Of any library. Of the layer's dtype; for a float32 layer also float16 or bfloat16. The
            layer keeps it, without a copy, until `backward` or the next call: it must not change.
        out : array, shape of `x`, optional
            Where to put the result. `x` itself makes the call one in place, as `in_place` does; the
            array, which has the result, must then not change.
        residual : array, shape of `x`, optional
            Added to the normalized values, before the activation; of the dtype of `x`. After
            "silu", "hardswish", "gelu", "gelu_tanh", "sigmoid" and "tanh" the layer keeps it like
            `x`, on a GPU after any activation.
        mask, sample_weight, lengths, offsets : array, optional
            Which positions count, and how often; as `bnext.batch_norm_forward` takes them. Running
            statistics move as without, by the statistics of what counts. The layer keeps a copy for
            `backward`.
        masked : {"zero", "normalized", "unchanged"}
            What the result has at positions that do not count.

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
        if _by_name is not BY_NAME:
            given_by_position(Normalization.forward)
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
        engine: Any = _core
        if not _core.suits(  # asks in one step what `taken` does
            x=x, dtype=self.dtype, ranks=self.ranks, channel_axis=self.channel_axis,
            num_features=self.num_features,
        ):  # fmt: skip
            with part:
                x, engine = taken(self, x)
        if out is None and self.in_place:
            out = x
        running = self.running
        explain = None if type(x) is ndarray else partial(check_places, self)
        weighting = None
        if not (
            mask is None
            and sample_weight is None
            and lengths is None
            and offsets is None
            and masked is ZERO
        ):
            with part:
                weighting = weighting_of(
                    x, self.channel_axis, mask, sample_weight, lengths, masked, offsets
                )
        activation, epilogue = self.activation, None
        if activation is not None or residual is not None:
            epilogue = residual, activation, self.negative_slope
        if weighting is None and not self._varies:
            y, saved = spine.forward(
                x, self.weight, self.bias, self.eps, self.channel_axis, out,
                running if uses else None, running if moves else None, part, epilogue, engine,
                explain,
            )  # fmt: skip
        else:
            y, saved = varied(
                self, group, uses or self in visits, x, out, running if uses else None,
                running if moves else None, part, epilogue, engine, explain, weighting,
            )  # fmt: skip
        if epilogue is not None and not saved.reads_residual:
            residual = None
        # Where statistics are constants, x is needed for gradients of parameters, and for the
        # derivative of an activation.
        if uses and activation is None and not self._trains_parameters():
            x = None
        latest[member] = x, saved, residual
        return y

    __call__ = forward

    @overload
    def backward(
        self, dy: ArrayT, *, out: ArrayT | None = None, residual_grad: Literal[True]
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def backward(
        self, dy: npt.ArrayLike, *, out: Array | None = None, residual_grad: Literal[True]
    ) -> tuple[Array, Array]: ...

    @overload
    def backward(
        self, dy: ArrayT, *, out: ArrayT | None = None, residual_grad: Literal[False] | None = None
    ) -> ArrayT: ...

    @overload
    def backward(
        self,
        dy: npt.ArrayLike,
        *,
        out: Array | None = None,
        residual_grad: Literal[False] | None = None,
    ) -> Array: ...

    def backward(self, dy: Any, *, out: Any = None, residual_grad: bool | None = None) -> Any:
        """Gradient by the input of the latest forward call, which it consumes.

        ``dx = weight * rstd * (dy - E[dy] - xhat * E[dy * xhat])`` with
        ``xhat = (x - mean) * rstd`` and E the mean over a channel's values (Ioffe and Szegedy 2015,
        section 3). In evaluation mode with running statistics these are constants, and ``dx`` is
        ``dy * weight * rstd``. After an activation, ``g = dy * act'(z)`` takes the place of `dy`,
        with z the argument of the activation; ``dresidual`` is ``g``.

        Parameters
        ----------
        dy : array, shape of `x`
            Gradient of the loss by the output; of the dtype of `x`.
        out : array, shape of `x`, optional
            Where to put the result; on the CPU also `dy` itself, unless it is ``dresidual`` too.
        residual_grad : bool, optional
            Whether ``dresidual`` is expected; not needed. Type checkers, which cannot know of the
            forward call, tell both results apart by it, and take one without it for an array.

        Returns
        -------
        array, shape of `x`
            ``dx``; or ``(dx, dresidual)``, a tuple, if the forward call had a residual. The call
            replaces `weight_grad` and `bias_grad`.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by an earlier `backward`.
        ValueError, TypeError
            `dy` has another shape or dtype than the input, or the input has changed since; the
            forward call had a residual and `residual_grad` is False, or the other way round.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        visits = VISITS.get()
        visit = visits.get(self) if visits else None
        group, latest = visit or (self.group, self._latest)
        if group is None:
            return self._backward(dy, out, None, latest, residual_grad)
        with announcing(group):
            return self._backward(dy, out, group, latest, residual_grad)

    def _backward(
        self, dy: Any, out: Any, group: Group | None, latest: Latest, residual_grad: bool | None
    ) -> Any:
        member, (x, saved, residual) = latest_call(group, latest, "backward")
        if residual_grad is not None:
            check_residual_grad(residual_grad, saved)
        variant = None if type(saved) is _core.Saved else getattr(type(saved), "backward", None)
        exchanged: Any = saved if variant is None else getattr(saved, "inner", saved)
        sums = "local"
        if group is not None and isinstance(exchanged, SyncSaved):
            own = self.parameter_gradients if group is self.group else "local"  # or on a visit
            sums = "total" if exchanged.shared else own
        dx, dweight, dbias, *dresidual = (
            spine.backward(dy, x, saved, self.weight, out, sums, residual)
            if variant is None
            else variant(saved, dy, x, self.weight, out, sums, residual)
        )
        if self.train_affine and self.weight is not None:
            self.weight_grad = dweight
        if self.train_affine and self.bias is not None:
            self.bias_grad = dbias
        del latest[member]
        return (dx, *dresidual) if dresidual else dx

    def recomputed(self, x: Any = None, *, residual: Any = None) -> Recomputed[Any]:
        """Take what makes the output of the latest forward call again, to be kept in its place.

        It has the statistics and parameters of that call, and stays good after `backward`, further
        calls and steps of an optimizer.

        Parameters
        ----------
        x : array, shape of the input, optional
            The input of the call. Needed where the layer keeps none: frozen, without an activation.
        residual : array or Recomputed, shape of `x`, optional
            The residual of the call. Needed where the layer does not keep it: after no activation,
            "relu", "relu6" and "leaky_relu".

        Returns
        -------
        Recomputed
            Its `value()` is the output, with the same bits.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by `backward`.
        ValueError
            `x` or `residual` is needed; the call was in place, or on a GPU.
        """
        visits = VISITS.get()
        visit = visits.get(self) if visits else None
        _, (kept, saved, added) = latest_call(*(visit or (self.group, self._latest)), "recomputed")
        if (x := kept if x is None else x) is None:
            raise ValueError(
                "x: expected the input of the forward call, since a frozen layer without an "
                "activation keeps none, got None"
            )
        return Recomputed(
            x, getattr(saved, "inner", saved), added if residual is None else residual
        )

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
            The layer has no running statistics, or it has an activation.
        """
        return affine_of(self)

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
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        if self.in_place:
            text += ", in_place=True"
        if self.ghost_batch_size is not None:
            text += f", ghost_batch_size={self.ghost_batch_size}"
        if self.skip_nonfinite:
            text += ", skip_nonfinite=True"
        if self.frozen:
            text += ", frozen"
        return f"{type(self).__name__}({text})"

    def _estimator_text(self) -> str:
        estimator = self.estimator
        is_torch_s = type(estimator) in (Exponential, Cumulative) and estimator.bessel
        return f"momentum={self.momentum}" if is_torch_s else f"estimator={estimator}"
