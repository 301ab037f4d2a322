"""Layers with statistics of groups of channels: both passes, which group and instance share."""

from __future__ import annotations

from functools import partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bnext import _core, spine
from bnext.arguments import index_of
from bnext.array_types import Array, ArrayT, Values
from bnext.group_norm import cells_backward, cells_forward
from bnext.groups.group import ALONE, Group, check_group
from bnext.layers.checks import check_places, taken
from bnext.layers.examples import ExampleNormalization, text_of_activation
from bnext.layers.modes import Modes
from bnext.spine import check_parameter_gradients
from bnext.split_cells import SplitSaved

__all__ = ["CellNormalization"]


class CellNormalization(ExampleNormalization, Modes):
    """A layer with parameters for each channel, and statistics of groups of an example's channels.

    Subclasses set `running`, `track_running_stats` and `num_groups` (None: a group for each
    channel). `bnext.GroupNorm` explains the arguments.
    """

    ranks: tuple[int, ...] = ()  # of input that is taken; empty: any
    in_place = False
    num_groups: int | None
    # Here too, for pickles of layers from before there were activations.
    activation: str | None = None
    negative_slope: float = 0.01
    group: Group | None = None
    parameter_gradients: str = "local"

    def __init__(
        self, num_features: int, eps: float, affine: bool, channel_axis: int, dtype: npt.DTypeLike,
        activation: str | None, negative_slope: float, group: Group | None,
        parameter_gradients: str,
    ) -> None:  # fmt: skip
        super().__init__(num_features, affine, dtype)
        check_group(group)
        self.group = group
        self.parameter_gradients = check_parameter_gradients(parameter_gradients)
        _core.check_eps(eps=eps)
        _core.check_activation(activation=activation)
        self.activation = activation
        self.negative_slope = _core.check_negative_slope(negative_slope=negative_slope)
        self.eps = eps
        self.channel_axis: int = index_of(channel_axis, "channel_axis")
        self.training = True
        self.use_running_stats: bool | None = None
        self.update_running_stats: bool | None = None
        self.train_affine = True

    @overload
    def forward(
        self, x: ArrayT, *, out: ArrayT | None = None, residual: Values | None = None
    ) -> ArrayT: ...

    @overload
    def forward(
        self, x: npt.ArrayLike, *, out: Array | None = None, residual: Values | None = None
    ) -> Array: ...

    def forward(self, x: Any, *, out: Any = None, residual: Any = None) -> Any:
        """Normalize `x`; the same as calling the layer.

        Parameters
        ----------
        x : array, shape (N, C, ...) with C at `channel_axis`; InstanceNorm's also one example's
            Of any library, on the CPU or on a GPU. Of the layer's dtype; for a float32 layer also
            float16 or bfloat16. The layer keeps it, without a copy, until `backward` or the next
            call: it must not change.
        out : array, shape of `x`, optional
            Where to put the result.
        residual : array, shape of `x`, optional
            Added to the normalized values, before the activation; of the dtype of `x`. With an
            activation the layer keeps it as it keeps `x`.

        Returns
        -------
        array, shape of `x`
            Of the dtype and in the memory order of `x`, or `out`.

        Raises
        ------
        ValueError, TypeError
            `x` has a wrong rank, number of channels or dtype, has one value per slab, or what
            `bnext.group_norm_forward` raises. The layer's state is then what it was before.
        RuntimeError
            `x` is on a device on which bnext cannot compute.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        return self._normalized(x, out, residual)

    __call__ = forward

    def _normalized(self, x: Any, out: Any, residual: Any) -> Any:
        uses, moves = self.statistics_of_call()
        # Without a parameter or a statistic for each channel, there may be any number of them.
        per_channel = self.weight is not None or self.track_running_stats
        group = self.group
        part = ALONE if group is None or uses else group.part(self)
        with part:
            x, engine = taken(self, x, any_channels=not per_channel)
            if moves:
                self.running.check_movable()
                if engine is not _core:
                    check_places(self, x, engine)
        of = self.weight, self.bias, self.eps, self.channel_axis, out
        act = self.activation, self.negative_slope
        if uses:
            y, saved = spine.forward(
                x, *of, given=self.running, epilogue=spine.epilogue_of(residual, *act),
                engine=engine, explain=None if engine is _core else partial(check_places, self),
            )  # fmt: skip
        else:
            try:
                y, saved = cells_forward(x, self.num_groups, *of, *act, part, residual)
            except TypeError:
                if engine is not _core:
                    check_places(self, x, engine)
                raise
            if moves:
                move = partial(self._move_running, saved)
                if group is not None and isinstance(saved, SplitSaved):
                    group.once(self.running, saved.generation, move)
                else:
                    move()
        kept = residual if residual is not None and saved.reads_residual else None
        self._latest[None if group is None else group.rank_or_none] = x, saved, kept
        return y

    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any, residual: Any) -> tuple[Any, ...]:
        if saved.num_groups is None:
            found = spine.backward(dy, x, saved, self.weight, out, residual=residual)
        else:
            shares = isinstance(saved, SplitSaved) and saved.shared
            sums = "total" if shares else self.parameter_gradients
            found = cells_backward(dy, x, saved, self.weight, out, sums, residual)
        dx, dweight, dbias, *rest = found
        return (dx, dweight, dbias, *rest) if self.train_affine else (dx, None, None, *rest)

    def _move_running(self, saved: Any) -> None:
        """Move running statistics by the statistics of a forward call; GroupNorm has none."""

    def _options(self) -> str:
        """Describe what is not the default of every layer, as a representation ends."""
        text = ""
        if self.channel_axis != 1:
            text += f", channel_axis={self.channel_axis}"
        text += text_of_activation(self)
        if self.dtype != np.float32:
            text += f", dtype={self.dtype}"
        if self.group is not None:
            text += f", group={self.group!r}"
        return text + (", frozen" if self.frozen else "")
