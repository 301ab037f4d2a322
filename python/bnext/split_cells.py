"""Group and instance normalization of examples whose positions are divided among a group.

Every member holds all examples and all channels, and positions of its own (a part of an image, of a
volume, of a sequence). A slab's values then lie with several members: both passes are open between
their phases, as `bnext.spine` has them, and the group merges the Moments, and the sums, of N * G
slabs. The phases are batch normalization's, over the cells of examples as channels: of all
examples at once where their planes follow each other, else of one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy import ndarray

from bnext import _core
from bnext.arrays.libraries import library_of
from bnext.groups.exchange import Float64Array, Merged
from bnext.groups.group import Group, Part
from bnext.spine import check_parameter_gradients

__all__ = ["SplitSaved", "backward", "forward"]

# Weights below this share of the largest of their group stand for it (cpu/cell_phases.hpp).
SMALLEST_WEIGHT = 2.0**-60


class Cells(NamedTuple):
    """How an array of examples becomes arrays whose channels are cells."""

    examples: int
    channels: int
    groups: int
    axis: int  # of the channels, from the front
    joined: bool  # whether all examples are one array of N * C channels

    def of(self, array: Any) -> list[Any]:
        """Give views of an array, on which the kernels work."""
        if array is None:
            return [None] * (1 if self.joined else self.examples)
        if self.joined:
            return [array.reshape(1, self.examples * self.channels, self.values_of(array))]
        return [array[n : n + 1] for n in range(self.examples)]

    def values_of(self, array: Any) -> int:
        """Count the values of a cell."""
        return int(np.prod(array.shape[2:], dtype=np.int64))

    @property
    def call_axis(self) -> int:
        """The axis of the channels in these views."""
        return 1 if self.joined else self.axis

    def tiled(self, parameter: Any, otherwise: float, dtype: Any) -> npt.NDArray[Any]:
        """Give a parameter for every cell of a view."""
        if parameter is None:
            parameter = np.full(self.channels, otherwise, dtype)
        return np.tile(parameter, self.examples) if self.joined else parameter

    def shares(self, of_cells: Any) -> list[Any]:
        """Divide numbers of all cells among the views."""
        return [of_cells] if self.joined else np.split(of_cells, max(self.examples, 1))

    def slabs(self, of_cells: Any) -> Any:
        """Give numbers of cells a row for each slab."""
        return of_cells.reshape(self.examples * self.groups, self.channels // self.groups)

    def spread(self, of_slabs: Any) -> Any:
        """Give every cell its slab's number."""
        return np.repeat(of_slabs, self.channels // self.groups)


class SplitSaved:
    """What a forward call of divided examples leaves for its backward call.

    Statistics are of whole slabs: float64 of shape (N, G), the same bits for all members.

    Attributes
    ----------
    mean, mean_low, m2, var, rstd : array of float64, shape (N, G)
        Mean, its low part, sum of squared deviations, biased variance, ``1 / sqrt(var + eps)``.
    count : float
        Values of a slab, of all members.
    num_groups : int
        Groups G of channels.
    eps : float
        What was added to the variance.
    shape : tuple of int
        Shape of the member's part.
    generation : int
        Number of the exchange in the group.
    shared : bool
        Whether all members called the same layer object.
    residual, reads_residual : bool
        Whether a residual was added, and whether the backward pass needs it again.
    """

    in_place = False
    batch_statistics = True

    def __init__(
        self, part: Part, merged: Merged, cells: Cells, locals_: list[Any], x: Any, eps: float,
        epilogue: Any,
    ) -> None:  # fmt: skip
        self.part: Part = part
        self.cells: Cells = cells
        self.locals: list[Any] = locals_
        self.eps: float = eps
        self.shape: tuple[int, ...] = x.shape
        self.dtype: np.dtype[Any] = x.dtype
        self.activation: str | None = None if epilogue is None else epilogue[1]
        self.residual: bool = epilogue is not None and epilogue[0] is not None
        self.reads_residual: bool = any(each.reads_residual for each in locals_)
        self.count: float = merged.total_count
        self.generation: int = merged.generation
        self.shared: bool = merged.shared
        self.num_groups: int = cells.groups
        of = (cells.examples, cells.groups)
        low = merged.mean_low
        self.mean: Float64Array = merged.first.reshape(of)
        self.mean_low: Float64Array = np.zeros(of) if low is None else low.reshape(of)
        self.m2: Float64Array = merged.second.reshape(of)
        self.var: Float64Array = self.m2 / max(self.count, 1)
        shifted = self.var + eps
        self.rstd: Float64Array = np.where(
            shifted == 0, 0.0, 1 / np.sqrt(np.where(shifted == 0, 1.0, shifted))
        )
        for each in (self.mean, self.mean_low, self.m2, self.var, self.rstd):
            each.flags.writeable = False

    @property
    def group(self) -> Group:
        """The group, which merges the statistics and the sums."""
        return self.part.group

    def __repr__(self) -> str:
        part = f"a {self.dtype} part of shape {self.shape}"
        return f"<bnext.sync.SplitSaved of {part} in {self.group!r}>"


def forward(
    x: Any, num_groups: int | None, weight: Any, bias: Any, eps: Any, channel_axis: Any, out: Any,
    epilogue: Any, part: Part,
) -> tuple[Any, SplitSaved]:  # fmt: skip
    """Do `bnext.group_norm_forward` for a member of a group, whose part of a call this is."""
    with part:
        library = library_of(x)
        x = _as_numpy(x, "x")
        weight, bias = _as_numpy(weight, "weight"), _as_numpy(bias, "bias")
        written = None if out is None else _as_numpy(out, "out")
        residual, *how = (None,) if epilogue is None else epilogue
        residual = _as_numpy(residual, "residual")
        operands: dict[str, Any] = {"eps": eps, "epilogue": (None, *how) if how else None}
        _check(x, weight, bias, channel_axis, num_groups, written, residual, operands)
        cells = _cells_of(x, channel_axis, num_groups, written, residual)
        found = [_moments(cells, view, operands) for view in cells.of(x)]
        count = found[0][0] if found else 0
        mean, low, m2 = (
            np.concatenate([np.empty(0), *(each[row] for each in found)]) for row in (1, 2, 3)
        )
        merged = part.merge_moments(str(x.dtype), count, mean, m2, low)
    if merged.total_count == 1:  # every member raises this by itself
        raise ValueError(
            "Expected more than 1 value per slab, got 1 in the parts of all "
            f"{part.group.size} members together (input size {tuple(x.shape)} here)"
        )
    with part:
        parameters = _parameter_dtype(x)
        y = np.empty_like(x) if written is None else written
        given: dict[str, Any] = {
            "weight": cells.tiled(weight, 1, parameters), "bias": cells.tiled(bias, 0, parameters)
        }  # fmt: skip
        low = np.zeros_like(merged.first) if merged.mean_low is None else merged.mean_low
        rows = [cells.shares(cells.spread(each)) for each in (merged.first, low, merged.second)]
        saved = []
        every = zip(cells.of(x), cells.of(y), cells.of(residual), *rows, strict=False)
        for view, to, added, *of in every:
            operands["epilogue"] = (added, *how) if how else None
            _, local = _core.apply_norm(
                x=view, count=merged.total_count, mean=of[0], mean_low=of[1], m2=of[2],
                channel_axis=cells.call_axis, out=to, **given, **operands,
            )  # fmt: skip
            saved.append(local)
        result = y if library is None else library.wrap(y)
        result = result if out is None else out
        return result, SplitSaved(part, merged, cells, saved, x, float(eps), epilogue)


def backward(
    dy: Any, x: Any, saved: SplitSaved, weight: Any, out: Any, parameter_gradients: str = "local",
    residual: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """Do `bnext.group_norm_backward` for a member: dx, dweight and dbias; and dresidual."""
    given_dy = dy
    part, cells = saved.part, saved.cells
    part.group.check_open()
    with part:
        total = check_parameter_gradients(parameter_gradients) == "total"
        library, of_weight = library_of(x), library_of(x if weight is None else weight)
        x, dy, weight = _as_numpy(x, "x"), _as_numpy(dy, "dy"), _as_numpy(weight, "weight")
        written = None if out is None else _as_numpy(out, "out")
        residual = _as_numpy(residual, "residual")
        _check_again(dy, x, saved, weight, written, residual)
        # Of all cells: of g, and of g * (x - mean).
        a, b = np.zeros((2, cells.examples * cells.channels))
        of_dy, of_x = cells.of(dy), cells.of(x)
        added = cells.of(residual if saved.reads_residual else None)
        shares = zip(
            of_dy, of_x, saved.locals, added, cells.shares(a), cells.shares(b), strict=False
        )
        for dy_view, x_view, local, each, into_a, into_b in shares:
            into_a[...], into_b[...] = _core.backward_reduce(
                dy=dy_view, x=x_view, saved=local, residual=each
            )
        given = cells.tiled(None if weight is None else weight.astype(np.float64), 1, np.float64)
        if not cells.joined:
            given = np.tile(given, cells.examples)
        of_channels = (cells.examples, cells.channels)
        dweight = (b * cells.spread(saved.rstd.ravel())).reshape(of_channels).sum(axis=0)
        dbias = a.reshape(of_channels).sum(axis=0)
        # Of slabs, and behind them of channels: one exchange.
        first = np.concatenate([cells.slabs(given * a).sum(axis=1), dbias])
        second = np.concatenate([cells.slabs(given * b).sum(axis=1), dweight])
        merged = _merge_sums(part, first, second)
        slabs = cells.examples * cells.groups
        if total:
            dbias, dweight = merged.first[slabs:], merged.second[slabs:]
        # The kernel multiplies all of a cell by its weight.
        rows = cells.slabs(given)
        least = np.abs(rows).max(axis=1, keepdims=True, initial=0) * SMALLEST_WEIGHT
        by = np.where(np.abs(rows) < least, np.copysign(least, rows), rows)
        inverse = 1 / np.where(least > 0, by, 1)
        s1 = (merged.first[:slabs, None] * inverse).ravel()
        s2 = (merged.second[:slabs, None] * inverse).ravel()
        parameters = _parameter_dtype(x)
        dense = written is not None and (not cells.joined or written.flags.c_contiguous)
        dx = written if dense else np.empty_like(x)
        weights = cells.shares(by.ravel().astype(parameters))
        every = zip(
            of_dy, of_x, saved.locals, added, weights, cells.shares(s1), cells.shares(s2),
            cells.of(dx), strict=False,
        )  # fmt: skip
        of_residual: list[Any] = []
        for dy_view, x_view, local, again, each, first, second, to in every:
            found = _core.backward_apply(
                dy=dy_view, x=x_view, saved=local, weight=each, sum_dy=first, sum_dy_xmu=second,
                count=max(merged.total_count, 1), out=to, residual=again,
            )  # fmt: skip
            of_residual.append(found[1] if saved.residual else None)
        if written is not None and not dense:
            written[...] = dx
        gradients = [each.astype(parameters) for each in (dweight, dbias)]
        if of_weight is not None:
            gradients = [of_weight.wrap(each) for each in gradients]
        wrap = (lambda each: each) if library is None else library.wrap
        result: Any = out if out is not None else wrap(np.asarray(dx))
        if not saved.residual:
            return result, gradients[0], gradients[1]
        if saved.activation is None:  # the gradient is dy itself
            return result, gradients[0], gradients[1], given_dy
        whole = np.concatenate(of_residual).reshape(x.shape) if of_residual else np.empty_like(x)
        return result, gradients[0], gradients[1], wrap(whole)


def _merge_sums(part: Part, first: Float64Array, second: Float64Array) -> Merged:
    header = part.header._replace(direction="backward", channels=len(first))
    return part.group.merge_sums(header, part.count, first, second)


def _moments(cells: Cells, view: Any, operands: Any) -> Any:
    """Give count, mean, mean_low and m2 of a view's slabs."""
    together = cells.channels // cells.groups
    if cells.joined:  # where the planes of a slab follow each other
        view = view.reshape(1, cells.examples * cells.groups, -1) if view.size else view
        if view.size == 0:
            return 0.0, *np.zeros((3, cells.examples * cells.groups))
        return _collected(view, 1, operands)
    count, mean, low, m2 = _collected(view, cells.axis, operands)
    # About the mean of a slab's first cell, cell after cell (Chan, Golub and LeVeque 1983).
    rows = [each.reshape(cells.groups, together) for each in (mean, low, m2)]
    origin, origin_low = rows[0][:, 0], rows[1][:, 0]
    done, offset, sum_m2 = count, np.zeros(cells.groups), rows[2][:, 0].copy()
    for k in range(1, together):
        more = (rows[0][:, k] - origin) + (rows[1][:, k] - origin_low)
        delta, whole = more - offset, done + count
        share = count / whole if whole else 0.0
        sum_m2 += rows[2][:, k] + delta * delta * (done * share)
        offset = offset + delta * share
        done = whole
    offset = offset + origin_low
    high = origin + offset
    return done, high, (origin - high) + offset, sum_m2


def _collected(view: Any, axis: int, operands: Any) -> Any:
    count, mean, low, m2, _ = _core.collect_stats(
        x=view, weight=None, bias=None, channel_axis=axis, out=None, **NOT_MOVED, **operands
    )
    return count, mean, low, m2


NOT_MOVED: dict[str, Any] = dict.fromkeys(
    ("running_mean", "running_var", "momentum", "num_batches_tracked")
)


# --- arrays ---------------------------------------------------------------------------------------


def _as_numpy(array: Any, name: str) -> Any:
    """Give a NumPy array on the same memory; ValueError for one on a GPU."""
    if array is None or isinstance(array, ndarray):
        return array
    library = library_of(array)
    if library is None:
        return _core.as_array(x=array, name=name)
    where = library.where(array)
    if where.kind != "cpu":
        raise ValueError(f"{name}: expected an array on the CPU, got one on {where}")
    return library.adopt(array, name)


def _parameter_dtype(x: Any) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32


def _check(
    x: Any, weight: Any, bias: Any, channel_axis: Any, num_groups: Any, out: Any, residual: Any,
    operands: Any,
) -> None:  # fmt: skip
    """Raise what is wrong with the operands, before anything is exchanged or written."""
    # The check of batch normalization, over no examples at all.
    _core.collect_stats(
        x=x[:0] if x.ndim else x, weight=weight, bias=bias, channel_axis=channel_axis, out=None,
        **NOT_MOVED, **operands,
    )  # fmt: skip
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got {x.ndim}")
    axis = _core.check_axis(channel_axis, x.ndim)
    if axis == 0:
        raise ValueError(
            "channel_axis: expected an axis behind the first, which has the examples, got "
            f"{channel_axis}"
        )
    channels = x.shape[axis]
    if num_groups is not None and (num_groups < 1 or channels % num_groups):
        raise ValueError(
            f"num_groups: expected a divisor of the number of channels, {channels}, "
            f"got {num_groups}"
        )
    if residual is not None:
        _check_like(residual, "residual", x)
    _check_out(out, x, x=x, residual=residual)


def _check_again(dy: Any, x: Any, saved: SplitSaved, weight: Any, out: Any, residual: Any) -> None:
    if x.shape != saved.shape or x.dtype != saved.dtype:
        raise ValueError(
            f"saved: made from an input of shape {saved.shape} and dtype {saved.dtype}, got x of "
            f"shape {x.shape} and dtype {x.dtype}"
        )
    _check_like(dy, "dy", x)
    if residual is not None:
        if not saved.residual:
            raise ValueError("residual: expected None, since the forward call had none")
        _check_like(residual, "residual", x)
    elif saved.reads_residual:
        raise ValueError(
            "residual: expected the forward call's, since the derivative of "
            f"{saved.activation} follows from it, got None"
        )
    if weight is not None:
        if weight.shape != (saved.cells.channels,):
            raise ValueError(
                f"weight: expected shape ({saved.cells.channels},), got {weight.shape}"
            )
        if weight.dtype != _parameter_dtype(x):
            raise TypeError(f"weight: expected dtype {_parameter_dtype(x)}, got {weight.dtype}")
    _check_out(out, x, x=x, residual=residual)
    is_dresidual = saved.residual and saved.activation is None
    if is_dresidual and out is not None and np.may_share_memory(out, dy):
        raise ValueError("out: expected memory of its own, got dy, which is dresidual as well")


def _check_like(array: Any, name: str, x: Any) -> None:
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, got {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype}, got {array.dtype}")


def _check_out(out: Any, like: Any, **reads: Any) -> None:
    if out is None:
        return
    if out.shape != like.shape:
        raise ValueError(f"out: expected shape {like.shape}, got {out.shape}")
    if out.dtype != like.dtype:
        raise TypeError(f"out: expected dtype {like.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    for name, array in reads.items():
        if array is not None and np.may_share_memory(out, array):
            raise ValueError(f"out: expected memory of its own, got an array that overlaps {name}")


def _cells_of(x: Any, channel_axis: Any, num_groups: Any, *others: Any) -> Cells:
    axis = _core.check_axis(channel_axis, x.ndim)
    channels = x.shape[axis]
    groups = num_groups if num_groups is not None else max(channels, 1)
    dense = all(each is None or each.flags.c_contiguous for each in (x, *others))
    return Cells(x.shape[0], channels, groups, axis, bool(axis == 1 and dense))
