"""Batch normalization with the seam between its phases open: what members of a group run.

Forward is collect_stats | exchange of Moments | apply_norm, backward is backward_reduce | exchange
of the two sums | backward_apply. Whatever goes wrong in one member is announced to the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.devices import engine_of
from bnext.devices.checks import axis_of
from bnext.running import move_running
from bnext.sync.group import Float64Array, Group, Header, Merged, announcing

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = [
    "SyncSaved",
    "check_group",
    "check_parameter_gradients",
    "layer_backward",
    "layer_forward",
    "layer_moments",
    "move_by_group",
    "move_once",
    "synchronized_backward",
    "synchronized_forward",
]

Array = npt.NDArray[Any]

# Running mean and variance, the momentum and the counter, as calls of engines take them.
Running = tuple[Any, Any, float | None, Any]
NO_RUNNING: Running = (None, None, None, None)


class SyncSaved:
    """What a forward call in a group leaves for its backward call: the whole batch's statistics.

    Attributes
    ----------
    count : int
        Values per channel of the whole batch.
    mean, m2, var, rstd, mean_low : array of float64, shape (C,)
        The whole batch's, the same to the bit for all members. Read-only NumPy arrays, or if `x` is
        on a GPU, arrays there.
    shape, dtype, channel_axis, eps
        Of the forward call.
    group : Group
        Where the statistics are from; backward merges its sums there.
    generation : int
        Which exchange of the group they are from.
    """

    __slots__ = ("_header", "_own_count", "_shared", "generation", "group", "local")

    batch_statistics = True

    def __init__(
        self, local: Any, group: Group, header: Header, own_count: int, merged: Merged
    ) -> None:
        self.local = local  # what the engine has saved, with the whole batch's statistics in it
        self._header = header
        self._own_count = own_count
        self.generation = merged.generation
        self._shared = merged.shared
        self.group = group

    @property
    def count(self) -> int:
        """Values per channel of the whole batch."""
        return int(self.local.count)

    @property
    def mean(self) -> Float64Array:
        """Mean of each channel."""
        mean: Float64Array = self.local.mean
        return mean

    @property
    def mean_low(self) -> Float64Array:
        """Low part of the mean: the exact mean is ``mean + mean_low``."""
        mean_low: Float64Array = self.local.mean_low
        return mean_low

    @property
    def m2(self) -> Float64Array:
        """Sum of squared deviations from the mean."""
        m2: Float64Array = self.local.m2
        return m2

    @property
    def var(self) -> Float64Array:
        """Biased variance of each channel; 0 for an empty batch."""
        var: Float64Array = self.local.var
        return var

    @property
    def rstd(self) -> Float64Array:
        """``1 / sqrt(var + eps)``, and 0 where both are 0."""
        rstd: Float64Array = self.local.rstd
        return rstd

    @property
    def eps(self) -> float:
        """What was added to the variance."""
        return float(self.local.eps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the member's shard."""
        shape: tuple[int, ...] = self.local.shape
        return shape

    @property
    def dtype(self) -> Any:
        """Of the input."""
        return self.local.dtype

    @property
    def channel_axis(self) -> int:
        """Which axis has the channels."""
        return int(self.local.channel_axis)

    def __repr__(self) -> str:
        """As that of `Saved`, with the group."""
        shard = f"a {self._header.dtype} shard of shape {self.shape}"
        return f"<bnext.sync.SyncSaved of {shard} in {self.group!r}>"


def check_group(group: Any) -> None:
    """TypeError unless it is a group or None."""
    if group is not None and not isinstance(group, Group):
        raise TypeError(f"group: expected a bnext.sync group, got {type(group).__name__}")


def check_parameter_gradients(value: str) -> str:
    """`value`, if it is one of the two."""
    if value not in ("local", "total"):
        raise ValueError(f"parameter_gradients: expected 'local' or 'total', got {value!r}")
    return value


def synchronized_forward(
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    channel_axis: int,
    out: Array | None,
    group: Group,
    layer: Any = None,
) -> tuple[Array, SyncSaved]:
    """`batch_norm_forward` of a shard by the statistics of the whole batch."""
    check_group(group)
    group.check_open()
    number, step = group.begin(layer)
    with announcing(group):
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        if engine is _core:
            x = _core.as_array(x, "x")
        call = Call(group, engine, number, step, 0 if layer is None else id(layer))
        merged, header, count = exchanged(call, x, weight, bias, NO_RUNNING, eps, channel_axis, out)
    check_more_than_one(merged, group, engine, x)
    with announcing(group):
        y, local = normalized(engine, x, merged, weight, bias, eps, channel_axis, out)
    return y, SyncSaved(local, group, header, count, merged)


class Call(NamedTuple):
    """Which call of which member it is, and what computes."""

    group: Group
    engine: Any
    layer: int
    step: int
    owner: int


def exchanged(
    call: Call, x: Any, weight: Any, bias: Any, running: Running, eps: Any, channel_axis: Any,
    out: Any,
) -> tuple[Merged, Header, int]:  # fmt: skip
    """Collect the shard's Moments and exchange them; also the header, and the shard's count.

    Where the group knows what will come of it, nothing is collected.
    """
    group, engine, layer, step, owner = call
    if group.recalls:
        shape, dtype = (x.shape, x.dtype.name) if engine is _core else engine.inspect(x)
        axis = axis_of(channel_axis, len(shape))
        header = Header(layer, step, "forward", shape[axis], dtype, owner)
        merged = group.recalled(header)
        if merged is not None:
            return merged, header, math.prod(shape[:axis] + shape[axis + 1 :])
    count, mean, mean_low, m2, dtype = engine.collect_stats(
        x, weight, bias, *running, eps, channel_axis, out
    )
    header = Header(layer, step, "forward", len(mean), dtype, owner)
    low = mean_low if dtype == "float64" else None
    return group.merge_moments(header, count, mean, m2, low), header, count


def normalized(
    engine: Any, x: Any, merged: Merged, weight: Any, bias: Any, eps: Any, channel_axis: Any,
    out: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Normalize a shard by the merged statistics: y, and the engine's saved statistics."""
    result: tuple[Any, Any] = engine.apply_norm(
        x=x, count=merged.total_count, mean=merged.first, mean_low=merged.mean_low,
        m2=merged.second, weight=weight, bias=bias, eps=eps, channel_axis=channel_axis, out=out,
    )  # fmt: skip
    return result


def check_more_than_one(merged: Merged, group: Group, engine: Any, x: Any) -> None:
    """ValueError for one value per channel: all members know of it, and all raise it."""
    if merged.total_count == 1:
        shape = x.shape if engine is _core else engine.inspect(x)[0]
        raise ValueError(
            f"Expected more than 1 value per channel when training, got 1 in the whole batch of "
            f"{group.size} shards (input size {shape} here)"
        )


def synchronized_backward(
    dy: Any,
    x: Any,
    saved: SyncSaved,
    weight: Any,
    out: Array | None,
    group: Group | None = None,
    parameter_gradients: str = "local",
) -> tuple[Array, Array, Array]:
    """`batch_norm_backward` of a shard through the statistics of the whole batch."""
    check_group(group)
    if group is not None and group is not saved.group:
        raise ValueError(
            f"group: expected that of the forward call, {saved.group!r}, got {group!r}"
        )
    saved.group.check_open()
    with announcing(saved.group):
        total = check_parameter_gradients(parameter_gradients) == "total"
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        return backward_through(engine, dy, x, saved, weight, out, total)


def backward_through(
    engine: Any, dy: Any, x: Any, saved: SyncSaved, weight: Any, out: Any, total: bool
) -> tuple[Array, Array, Array]:
    """Run it; gradients of parameters are those of the shard, or if `total`, of the batch."""
    local = saved.local
    sums = engine.backward_reduce(dy, x, local, weight, out)
    merged = saved.group.merge_sums(saved._header.of_backward(), saved._own_count, *sums)
    count, *of_all = merged[:3]
    # First, since on a GPU the sums are there at once before there is work to wait for.
    gradients = engine.parameter_gradients(local, weight, *(of_all if total else sums))
    dx = engine.backward_apply(dy, x, local, weight, *of_all, max(count, 1), out)
    return dx, *gradients


# --- layers ---------------------------------------------------------------------------------------


def layer_forward(layer: BatchNorm, x: Any, out: Any, moves: bool) -> Any:
    """Run a forward pass by the statistics of the group's batch; move the running ones, or not."""
    group = layer.group
    assert group is not None
    group.check_open()
    number, step = group.begin(layer)
    weight, bias, eps, channel_axis = layer.weight, layer.bias, layer.eps, layer.channel_axis
    with announcing(group):
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        x = layer._checked(x) if engine is _core else layer._checked_elsewhere(x, engine)
        running = running_of(layer) if moves else NO_RUNNING
        call = Call(group, engine, number, step, id(layer))
        try:
            merged, header, count = exchanged(
                call, x, weight, bias, running, eps, channel_axis, out
            )
        except TypeError:
            if engine is not _core:
                layer._check_places(engine)
            raise
    check_more_than_one(merged, group, engine, x)
    with announcing(group):
        y, local = normalized(engine, x, merged, weight, bias, eps, channel_axis, out)
        if moves:
            bessel = layer.estimator.bessel
            move = functools.partial(engine.move_running, local, *running, bessel)
            move_once(layer, group, merged.generation, move)
    layer._latest_of[group.rank] = (x, SyncSaved(local, group, header, count, merged))
    result: Array = y
    return result


def layer_moments(layer: BatchNorm, engine: Any, x: Any) -> Merged:
    """Give the Moments of the group's batch, for a layer that does not normalize by them."""
    group = layer.group
    assert group is not None
    group.check_open()
    number, step = group.begin(layer)
    with announcing(group):
        call = Call(group, engine, number, step, id(layer))
        merged, _, _ = exchanged(
            call, x, None, None, NO_RUNNING, layer.eps, layer.channel_axis, None
        )
    check_more_than_one(merged, group, engine, x)
    return merged


def move_by_group(layer: BatchNorm, merged: Merged) -> None:
    """Move the running statistics by those of the group's batch."""
    group = layer.group
    assert group is not None
    with announcing(group):
        move = functools.partial(move_running, layer, *merged[:3])
        move_once(layer, group, merged.generation, move)


def move_once(layer: Any, group: Group, generation: int, move: Callable[[], None]) -> None:
    """Of members that share the layer, the first to come here does it; none goes on before."""
    this = (group, generation)
    with group.lock:
        if layer._moved_at != this:
            move()
            layer._moved_at = this


def running_of(layer: BatchNorm) -> Running:
    """Give the running statistics, the momentum and the counter, as calls of engines take them."""
    if not layer.track_running_stats:
        return NO_RUNNING
    counter = layer.num_batches_tracked
    return layer.running_mean, layer.running_var, layer._weight_of_batch(), counter


def layer_backward(layer: BatchNorm, dy: Any, out: Any) -> Any:
    """Run the backward pass of a layer that has a group, from the member's own latest call."""
    group = layer.group
    assert group is not None
    member = group.rank_or_none
    with announcing(group):
        latest = layer._latest_of.get(member)
        if latest is None:
            group.check_open()
            raise RuntimeError(
                "backward: expected a forward call before it, since the latest one was consumed "
                "or there was none"
            )
        x, saved = latest
        if isinstance(saved, SyncSaved):
            group.check_open()
            engine: Any = _core if type(x) is np.ndarray else engine_of(x)
            total = saved._shared or layer.parameter_gradients == "total"
            gradients = backward_through(engine, dy, x, saved, layer.weight, out, total)
        else:
            gradients = layer._gradients(dy, x, saved, out)
    dx, dweight, dbias = gradients
    layer._keep_gradients(dweight, dbias)
    del layer._latest_of[member]
    return dx
