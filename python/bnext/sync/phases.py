"""Batch normalization with the seam between its phases open: what members of a group run.

Forward is collect_stats | exchange of Moments | apply_norm, backward is backward_reduce | exchange
of the two sums | backward_apply. Whatever goes wrong in one member is announced to the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.devices import engine_of
from bnext.sync.group import Float64Array, Group, Header, Merged, announcing

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = [
    "SyncSaved",
    "check_group",
    "check_parameter_gradients",
    "layer_backward",
    "layer_forward",
    "synchronized_backward",
    "synchronized_forward",
]

Array = npt.NDArray[Any]


class SyncSaved:
    """What a forward call in a group leaves for its backward call: the whole batch's statistics.

    Attributes
    ----------
    count : int
        Values per channel of the whole batch.
    mean, m2, var, rstd : array of float64, shape (C,)
        The whole batch's, the same to the bit for all members. Read-only NumPy arrays, or if `x` is
        on a GPU, arrays there.
    shape, dtype, channel_axis, eps
        Of the forward call.
    group : Group
        Where the statistics are from; backward merges its sums there.
    """

    __slots__ = ("_header", "_local", "_own_count", "_shared", "group")

    batch_statistics = True

    def __init__(
        self, local: Any, group: Group, header: Header, own_count: int, merged: Merged
    ) -> None:
        self._local = local  # what the engine has saved, with the whole batch's statistics in it
        self._header = header
        self._own_count = own_count
        self._shared = merged.shared
        self.group = group

    @property
    def count(self) -> int:
        """Values per channel of the whole batch."""
        return int(self._local.count)

    @property
    def mean(self) -> Float64Array:
        """Mean of each channel."""
        mean: Float64Array = self._local.mean
        return mean

    @property
    def m2(self) -> Float64Array:
        """Sum of squared deviations from the mean."""
        m2: Float64Array = self._local.m2
        return m2

    @property
    def var(self) -> Float64Array:
        """Biased variance of each channel; 0 for an empty batch."""
        var: Float64Array = self._local.var
        return var

    @property
    def rstd(self) -> Float64Array:
        """``1 / sqrt(var + eps)``, and 0 where both are 0."""
        rstd: Float64Array = self._local.rstd
        return rstd

    @property
    def eps(self) -> float:
        """What was added to the variance."""
        return float(self._local.eps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the member's shard."""
        shape: tuple[int, ...] = self._local.shape
        return shape

    @property
    def dtype(self) -> Any:
        """Of the input."""
        return self._local.dtype

    @property
    def channel_axis(self) -> int:
        """Which axis has the channels."""
        return int(self._local.channel_axis)

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
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    eps: float,
    channel_axis: int,
    out: Array | None,
    group: Group,
) -> tuple[Array, SyncSaved]:
    """`batch_norm_forward` of a shard by the statistics of the whole batch."""
    check_group(group)
    number, step = group.begin(None)
    with announcing(group):
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        if engine is _core:
            x = _core.as_array(x, "x")
        count, mean, m2, dtype = engine.collect_stats(
            x, weight, bias, None, None, None, None, eps, channel_axis, out
        )
        header = Header(number, step, "forward", len(mean), dtype)
        merged = group.merge_moments(header, count, mean, m2)
    check_more_than_one(merged, group, engine, x)
    with announcing(group):
        y, local = engine.apply_norm(x, *merged[:3], weight, bias, eps, channel_axis, out)
    return y, SyncSaved(local, group, header, count, merged)


def check_more_than_one(merged: Merged, group: Group, engine: Any, x: Any) -> None:
    """ValueError for one value per channel: all members know of it, and all raise it."""
    if merged.total_count == 1:
        shape = x.shape if engine is _core else engine.inspect(x)[0]
        raise ValueError(
            f"Expected more than 1 value per channel when training, got 1 in the whole batch of "
            f"{group.size} shards (input size {shape} here)"
        )


def synchronized_backward(
    dy: npt.ArrayLike,
    x: npt.ArrayLike,
    saved: SyncSaved,
    weight: npt.ArrayLike | None,
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
    with announcing(saved.group):
        total = check_parameter_gradients(parameter_gradients) == "total"
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        return backward_through(engine, dy, x, saved, weight, out, total)


def backward_through(
    engine: Any, dy: Any, x: Any, saved: SyncSaved, weight: Any, out: Any, total: bool
) -> tuple[Array, Array, Array]:
    """Run it; gradients of parameters are those of the shard, or if `total`, of the batch."""
    local = saved._local
    sums = engine.backward_reduce(dy, x, local, weight, out)
    merged = saved.group.merge_sums(saved._header.of_backward(), saved._own_count, *sums)
    count, *of_all = merged[:3]
    # First, since on a GPU the sums are there at once before there is work to wait for.
    gradients = engine.parameter_gradients(local, weight, *(of_all if total else sums))
    dx = engine.backward_apply(dy, x, local, weight, *of_all, max(count, 1), out)
    return dx, *gradients


# --- layers ---------------------------------------------------------------------------------------


def layer_forward(layer: BatchNorm, x: npt.ArrayLike, out: Array | None) -> Array:
    """Run the forward pass of a layer in training that has a group."""
    group = layer.group
    assert group is not None
    number, step = group.begin(layer)
    weight, bias, eps, channel_axis = layer.weight, layer.bias, layer.eps, layer.channel_axis
    with announcing(group):
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        x = layer._checked(x) if engine is _core else layer._checked_elsewhere(x, engine)
        running = running_of(layer)
        try:
            count, mean, m2, dtype = engine.collect_stats(
                x, weight, bias, *running, eps, channel_axis, out
            )
        except TypeError:
            if engine is not _core:
                layer._check_places(engine)
            raise
        header = Header(number, step, "forward", len(mean), dtype, id(layer))
        merged = group.merge_moments(header, count, mean, m2)
    check_more_than_one(merged, group, engine, x)
    with announcing(group):
        y, local = engine.apply_norm(x, *merged[:3], weight, bias, eps, channel_axis, out)
        # Of members that share the layer, the first to come here does it; none goes on before.
        this = (group, merged.generation)
        with group.lock:
            if layer._moved_at != this:
                engine.move_running(local, *running)
                layer._moved_at = this
    layer._latest_of[group.rank] = (x, SyncSaved(local, group, header, count, merged))
    result: Array = y
    return result


def running_of(layer: BatchNorm) -> tuple[Any, Any, float | None, Any]:
    """Give the running statistics, the momentum and the counter, as calls of engines take them."""
    if not layer.track_running_stats:
        return None, None, None, None
    momentum = layer.momentum
    if momentum is None:
        momentum = layer._momentum_of_the_average()
    return layer.running_mean, layer.running_var, momentum, layer.num_batches_tracked


def layer_backward(layer: BatchNorm, dy: npt.ArrayLike, out: Array | None) -> Array:
    """Run the backward pass of a layer that has a group, from the member's own latest call."""
    group = layer.group
    assert group is not None
    member = group.rank_or_none
    with announcing(group):
        latest = layer._latest_of.get(member)
        if latest is None:
            raise RuntimeError(
                "backward: expected a forward call before it, since the latest one was consumed "
                "or there was none"
            )
        x, saved = latest
        engine: Any = _core if type(x) is np.ndarray else engine_of(x)
        if isinstance(saved, SyncSaved):
            total = saved._shared or layer.parameter_gradients == "total"
            gradients = backward_through(engine, dy, x, saved, layer.weight, out, total)
        else:
            gradients = engine.backward(dy, x, saved, layer.weight, out)
    dx, dweight, dbias = gradients
    if layer.weight is not None:
        layer.weight_grad = dweight
    if layer.bias is not None:
        layer.bias_grad = dbias
    del layer._latest_of[member]
    return dx
