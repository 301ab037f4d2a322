"""Batch normalization with the seam between its phases open: what members of a group run.

Forward is collect_stats | exchange of Moments | apply_norm, backward is backward_reduce | exchange
of the two sums | backward_apply. Whatever goes wrong in one member is announced to the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.devices.libraries import library_of
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
        The whole batch's; read-only.
    shape, dtype, channel_axis, eps
        Of the forward call.
    group : Group
        Where the statistics are from; backward merges its sums there.
    """

    batch_statistics = True

    def __init__(self, local: _core.Saved, group: Group, header: Header, merged: Merged) -> None:
        self._local = local
        self._header = header
        self._generation = merged.generation
        self._shared = merged.shared
        self.group = group
        self.count = merged.total_count
        self.m2 = merged.second
        self.m2.flags.writeable = False

    @property
    def mean(self) -> Float64Array:
        """Mean of each channel."""
        return self._local.mean

    @property
    def var(self) -> Float64Array:
        """Biased variance of each channel; 0 for an empty batch."""
        return self._local.var

    @property
    def rstd(self) -> Float64Array:
        """``1 / sqrt(var + eps)``, and 0 where both are 0."""
        if math.prod(self.shape) > 0:
            return self._local.rstd
        # Nothing was normalized, so that nothing computed it.
        root = np.sqrt(self.var + self.eps)
        return np.divide(1.0, root, out=np.zeros_like(root), where=root != 0)

    @property
    def eps(self) -> float:
        """What was added to the variance."""
        return self._local.eps

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the member's shard."""
        return self._local.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the input."""
        return self._local.dtype

    @property
    def channel_axis(self) -> int:
        """Which axis has the channels."""
        return self._local.channel_axis

    def __repr__(self) -> str:
        """As that of `Saved`, with the group."""
        shard = f"a {self.dtype} shard of shape {self.shape}"
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
    layer: BatchNorm | None = None,
) -> tuple[Array, SyncSaved]:
    """`batch_norm_forward` of a shard by the statistics of the whole batch."""
    check_group(group)
    number, step = group.begin(layer)
    with announcing(group):
        if type(x) is not np.ndarray and (library := library_of(x)) is not None:
            raise TypeError(f"x: expected a NumPy array in a group, got one of {library.name}")
        if layer is not None:
            x = layer._checked(x)
        array = x if isinstance(x, np.ndarray) else _core.as_array(x, "x")
        _core.check_eps(eps)
        count, mean, m2 = _core.moments(array, channel_axis)
        owner = 0 if layer is None else id(layer)
        header = Header(number, step, "forward", mean.size, array.dtype.name, owner)
        merged = group.merge_moments(header, count, mean, m2)
    if merged.total_count == 1:  # all members know, and all raise
        raise ValueError(
            f"Expected more than 1 value per channel when training, got 1 in the whole batch of "
            f"{group.size} shards (input size {array.shape} here)"
        )
    with announcing(group):
        var = merged.second / max(merged.total_count, 1)
        y, local = _core.normalize(
            array, merged.first, var, weight, bias, eps, channel_axis, out
        )  # fmt: skip
    return y, SyncSaved(local, group, header, merged)


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
    group = saved.group
    with announcing(group):
        check_parameter_gradients(parameter_gradients)
        local = saved._local
        sum_dy, sum_dy_xmu = _core.backward_reduce(dy, x, local)
        axis = local.channel_axis
        count = math.prod(local.shape[:axis] + local.shape[axis + 1 :])
        header = saved._header._replace(direction="backward")
        merged = group.merge_sums(header, count, sum_dy, sum_dy_xmu)
        dx = _core.backward_apply(
            dy, x, local, weight, merged.first, merged.second, max(merged.total_count, 1), out
        )
    if parameter_gradients == "total":
        sum_dy, sum_dy_xmu = merged.first, merged.second
    dtype = np.float64 if local.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
        return dx, (sum_dy_xmu * saved.rstd).astype(dtype), sum_dy.astype(dtype)


# --- layers ---------------------------------------------------------------------------------------


def layer_forward(layer: BatchNorm, x: npt.ArrayLike, out: Array | None, moves: bool) -> Array:
    """Run a forward pass by the statistics of the group's batch, and move the running ones."""
    group = layer.group
    assert group is not None
    y, saved = synchronized_forward(
        x, layer.weight, layer.bias, layer.eps, layer.channel_axis, out, group, layer
    )
    with announcing(group), group.lock:
        # Of members that share the layer, the first to come here does it; none goes on before.
        this = (group, saved._generation)
        if layer._moved_at != this:
            if moves:
                move_running(layer, saved.count, saved.mean, saved.m2)
            layer._moved_at = this
    array = x if isinstance(x, np.ndarray) else _core.as_array(x, "x")
    layer._latest_of[group.rank] = (array, saved)
    return y


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
        if isinstance(saved, SyncSaved):
            total = saved._shared or layer.parameter_gradients == "total"
            sums = "total" if total else "local"
            gradients = synchronized_backward(dy, x, saved, layer.weight, out, None, sums)
        else:
            gradients = layer._gradients(dy, x, saved, out)
    dx, dweight, dbias = gradients
    layer._keep_gradients(dweight, dbias)
    del layer._latest_of[member]
    return dx
