"""The one forward pass and the one backward pass, which every call comes through.

Functions, layers, PyTorch's group layer, micro-batches and the making of statistics give the same
named operands. A call without a group is one call of an engine. A call in a group is open at the
seam between its phases: collect_stats | exchange of Moments | apply_norm, and backward_reduce |
exchange of the two sums | backward_apply. The first phase checks all operands of the call, so that
errors come before any member has written anything, and the member's `Part` announces them.

Engines have the calls of `_core` (`bnext.arrays`). All their operands are given by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from bnext import _core
from bnext._core import Saved
from bnext.arrays import DeviceSaved, engine_of
from bnext.arrays.libraries import library_of, to_numpy
from bnext.groups.exchange import Merged
from bnext.groups.group import ALONE, Part
from bnext.groups.saved import SyncSaved
from bnext.weighting import Weighting, total_weight

__all__ = [
    "backward", "check_parameter_gradients", "double_backward", "epilogue_of", "forward",
    "recompute",
]  # fmt: skip


def forward(
    x: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    channel_axis: Any,
    out: Any,
    given: Any = None,
    moved: Any = None,
    part: Part = ALONE,
    epilogue: Epilogue | None = None,
    engine: Any = None,
    explain: Callable[[Any, Any], None] | None = None,
    plain: bool = False,
    keeps: bool = True,
    adjust: Callable[[float, Any, Any], tuple[Any, Any]] | None = None,
    weighting: Weighting | None = None,
) -> Any:
    """Normalize `x`: give y, and the statistics that `backward` needs.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, out
        As `bnext.batch_norm_forward` takes them.
    given : Running, (mean, var, weight, counter) or (mean, var), optional
        Statistics to normalize by; the batch's if not given. A pair need not be of the dtype of x.
    moved : Running or (mean, var, weight, counter), optional
        Running statistics that the batch moves by that weight; in a group, a `Running`, once for
        all members that share it.
    part : Part
        The caller's part in the call: in a group the batch is the shards of all members.
    epilogue : (residual, activation, negative_slope), optional
        What follows normalization, as `bnext.batch_norm_forward` takes it.
    engine : engine, optional
        Computes on `x`; found if not given.
    explain : callable, optional
        Called with x and the engine after a TypeError; raises a better one, or returns.
    plain : bool
        Outside groups: TypeError for tensors of PyTorch that are not plain. What autograd would
        record is not asked.
    keeps : bool
        Whether a backward pass may follow. Otherwise `saved` need not be made.
    adjust : callable, optional
        Makes the weight and the bias of the count, mean and m2 of the batch; `moved`, a `Running`,
        then moves by its own `move`. On the CPU.
    weighting : Weighting, optional
        Which positions of x count, and how much; `saved` has it for the backward pass.

    Returns
    -------
    y : array
        The result, or `out`.
    saved : Saved, DeviceSaved, SyncSaved or None
        None from an engine on a GPU where `given` is a pair of arrays.
    """
    # (Callers give the first operands by position: names cost a small call 0.1 us in CPython. So do
    # variables that only another road has.)
    if weighting is not None:
        engine = WeightedCalls(engine_of(x) if engine is None else engine, weighting)
    if part is not ALONE or adjust is not None or not (given is None or moved is None):
        return _in_two_phases(
            x, weight, bias, eps, channel_axis, out, given, moved, part, epilogue, engine, explain,
            adjust, weighting,
        )  # fmt: skip
    if engine is None:
        engine = _core if type(x) is ndarray else engine_of(x)
    try:
        if given is None:
            if moved is None:
                return engine.forward(
                    x=x, weight=weight, bias=bias, eps=eps, channel_axis=channel_axis, out=out,
                    plain=plain, keeps=keeps, epilogue=epilogue,
                )  # fmt: skip
            bessel, skipped = True, None
            if type(moved) is tuple:
                mean, var, momentum, counter = moved
            else:
                mean, var, counter, skipped = moved.mean, moved.var, moved.counter, moved.skipped
                momentum, bessel = moved.weight(), moved.estimator.bessel
            return engine.forward(
                x=x, weight=weight, bias=bias, eps=eps, channel_axis=channel_axis, out=out,
                plain=plain, keeps=keeps, epilogue=epilogue, running_mean=mean, running_var=var,
                momentum=momentum, num_batches_tracked=counter, bessel=bessel,
                num_batches_skipped=skipped,
            )  # fmt: skip
        if type(given) is not tuple:
            mean, var = given.mean, given.var
        elif len(given) == len(RUNNING):
            mean, var, *_ = given
        else:
            return engine.normalize(
                x=x, mean=given[0], var=given[1], weight=weight, bias=bias, eps=eps,
                channel_axis=channel_axis, out=out, epilogue=epilogue, keeps=keeps,
            )  # fmt: skip
        if not keeps and weighting is None:
            y = engine.evaluate(
                x=x, running_mean=mean, running_var=var, weight=weight, bias=bias, eps=eps,
                channel_axis=channel_axis, plain=plain, epilogue=epilogue,
            )  # fmt: skip
            return y, None
        return engine.normalize_by_running(
            x=x, running_mean=mean, running_var=var, weight=weight, bias=bias, eps=eps,
            channel_axis=channel_axis, out=out, plain=plain, epilogue=epilogue,
        )  # fmt: skip
    except TypeError:
        if explain is not None:
            explain(x, engine)
        raise


def _in_two_phases(
    x: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, out: Any, given: Any, moved: Any,
    part: Part, epilogue: Epilogue | None, engine: Any, explain: Callable[[Any, Any], None] | None,
    adjust: Callable[[float, Any, Any], tuple[Any, Any]] | None, weighting: Weighting | None,
) -> Any:  # fmt: skip
    """Do `forward` for a call that is open between its phases."""
    operands = {
        "weight": weight, "bias": bias, "eps": eps, "channel_axis": channel_axis, "out": out,
        "epilogue": epilogue,
    }  # fmt: skip
    with part:
        if engine is None:
            engine = _core if type(x) is ndarray else engine_of(x)
        if not isinstance(x, ndarray):
            x = engine.as_array(x=x, name="x")
        try:
            running = NOT_MOVED if moved is None else moved.operands()
            merged = _recalled(part, engine, x, channel_axis, weighting) if part.recalls else None
            if merged is None:
                if given is not None:
                    given.check_movable()
                count, mean, mean_low, m2, dtype = engine.collect_stats(x=x, **operands, **running)
                if part is ALONE and weighting is None:
                    _core.check_more_than_one(tuple(x.shape), count)
                if given is not None:
                    # Before the exchange: members may share the arrays, and move them after it.
                    y, saved = engine.normalize_by_running(
                        x=x, running_mean=given.mean, running_var=given.var, **operands
                    )
                merged = part.merge_moments(dtype, count, mean, m2, mean_low)
        except TypeError:
            if explain is not None:
                explain(x, engine)
            raise
    count, mean, m2, generation, _, mean_low = merged
    if count == 1 and part is not ALONE:  # every member raises this by itself
        shape = engine.inspect(x=x)[0]
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 in the whole batch of "
            f"{part.group.size} shards (input size {shape} here)"
        )
    with part:
        if adjust is not None:
            operands["weight"], operands["bias"] = adjust(count, mean, m2)
        if given is None:
            y, local = engine.apply_norm(
                x=x, count=count, mean=mean, mean_low=mean_low, m2=m2, **operands
            )
            saved = local if part is ALONE else SyncSaved(local, part, merged)
        if moved is not None:
            move: Callable[[], None] = partial(moved.move, count, mean, m2)
            if given is None and adjust is None:  # without a copy to the host
                bessel = moved.estimator.bessel
                move = partial(engine.move_running, saved=local, bessel=bessel, **running)
            move() if part is ALONE else part.group.once(moved, generation, move)
    return y, saved


class WeightedCalls:
    """The calls of an engine, with the weights of positions among their operands.

    Calls without weights name no more operands than they need: each costs a small call 0.05 us.
    """

    def __init__(self, engine: Any, weighting: Weighting) -> None:
        self._engine = engine
        self._weighting = weighting

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._engine, name)
        return partial(call, weighting=self._weighting) if name in OF_POSITIONS else call


OF_POSITIONS = ("apply_norm", "collect_stats", "forward", "normalize", "normalize_by_running")
Epilogue = tuple[Any, str | None, float]
RUNNING = ("running_mean", "running_var", "momentum", "num_batches_tracked")
NOT_MOVED: dict[str, Any] = dict.fromkeys((*RUNNING, "num_batches_skipped"))


def _recalled(
    part: Part, engine: Any, x: Any, channel_axis: Any, weighting: Weighting | None
) -> Merged | None:
    """Give the result of an exchange that the group has had before, without collecting."""
    shape, dtype = engine.inspect(x=x)
    axis = _core.check_axis(channel_axis, len(shape))
    count: float = math.prod(shape[:axis] + shape[axis + 1 :])
    if weighting is not None:
        count = total_weight(weighting)
    return part.recalled(shape[axis], dtype, count)


def epilogue_of(residual: Any, activation: Any, negative_slope: Any) -> Epilogue | None:
    """Give what follows normalization, as calls take it; None for nothing.

    The shortest calls of batch normalization have these lines themselves.
    """
    if residual is None and activation is None:
        return None
    return residual, activation, negative_slope


def check_parameter_gradients(value: str) -> str:
    """`value`, if it is one of the two."""
    if value not in ("local", "total"):
        raise ValueError(f"parameter_gradients: expected 'local' or 'total', got {value!r}")
    return value


def backward(
    dy: Any,
    x: Any,
    saved: Any,
    weight: Any,
    out: Any,
    parameter_gradients: str = "local",
    residual: Any = None,
    engine: Any = None,
    plain: bool = False,
) -> Any:
    """Gradients of `forward`: dx, dweight and dbias.

    Parameters
    ----------
    dy, x, saved, weight, out
        As `bnext.batch_norm_backward` takes them. Without `x` statistics are constants, and
        gradients of parameters None.
    parameter_gradients : {"local", "total"}
        In a group: sums over the shard, or over the whole batch.
    residual : array, optional
        The forward call's, where `saved.reads_residual`.
    engine, plain
        As in `forward`.

    Returns
    -------
    tuple
        dx, dweight, dbias; and dresidual, if the forward call had a residual.
    """
    if type(saved) is Saved or not isinstance(saved, SyncSaved):
        if parameter_gradients != "local":
            check_parameter_gradients(parameter_gradients)
        if x is None:
            if engine is None and isinstance(saved, DeviceSaved):
                engine = engine_of(saved.var)
            elif engine is None:
                engine = _core if type(dy) is ndarray else engine_of(dy, "dy")
            dx = engine.backward_constant(dy=dy, saved=saved, weight=weight, out=out, plain=plain)
            if type(dx) is tuple:  # with a residual, and positions that do not count
                return dx[0], None, None, dx[1]
            if getattr(saved, "residual", False):  # without an activation
                return dx, None, None, dy
            return dx, None, None
        if engine is None:
            engine = _core if type(x) is ndarray else engine_of(x)
        return engine.backward(
            dy=dy, x=x, saved=saved, weight=weight, out=out, plain=plain, residual=residual
        )

    part, local = saved.part, saved.local
    part.group.check_open()
    with part:
        total = check_parameter_gradients(parameter_gradients) == "total"
        engine = _core if type(x) is ndarray else engine_of(x)
        operands = {
            "dy": dy, "x": x, "saved": local, "weight": weight, "out": out, "residual": residual
        }  # fmt: skip
        sums = engine.backward_reduce(**operands)
        merged = part.merge_sums(*sums)
        count, *of_all = merged[:3]
        # First, since on a GPU the sums are there at once before there is work to wait for.
        sum_dy, sum_dy_xmu = of_all if total else sums
        gradients = engine.parameter_gradients(
            saved=local, weight=weight, sum_dy=sum_dy, sum_dy_xmu=sum_dy_xmu, like=x
        )
        sum_dy, sum_dy_xmu = of_all
        dx = engine.backward_apply(
            **operands,
            sum_dy=sum_dy,
            sum_dy_xmu=sum_dy_xmu,
            count=count if count > 0 else 1,
        )
    if getattr(local, "residual", False):
        dx, dresidual = dx
        return dx, *gradients, dresidual
    return dx, *gradients


def double_backward(
    dy: Any,
    x: Any,
    saved: Any,
    weight: Any,
    residual: Any,
    ddx: Any,
    ddweight: Any,
    ddbias: Any,
    ddresidual: Any,
    wanted: int,
    parameter_gradients: str = "local",
    plain: bool = False,
) -> Any:
    """Gradients of `backward`: by dy, x, weight, bias and residual.

    Parameters
    ----------
    dy, x, saved, weight, residual, ddx, ddweight, ddbias, ddresidual
        As `bnext.batch_norm_double_backward` takes them.
    wanted : int
        A bit for each result, the first for dy.
    parameter_gradients
        As in `backward`, of the call that is differentiated, and of these gradients.
    plain
        As in `forward`.

    Returns
    -------
    tuple
        The five results; None where one is not wanted, or is 0 since the activation is a piece of
        a line.
    """
    operands = {
        "dy": dy, "x": x, "weight": weight, "residual": residual, "ddx": ddx, "ddweight": ddweight,
        "ddbias": ddbias, "ddresidual": ddresidual,
    }  # fmt: skip
    if isinstance(saved, SyncSaved):
        return _double_backward_of_shard(operands, saved, wanted, parameter_gradients)
    if parameter_gradients != "local":
        check_parameter_gradients(parameter_gradients)
    engine: Any = _core if type(x) is ndarray else engine_of(x)
    return engine.double_backward(**operands, saved=saved, wanted=wanted, plain=plain)


def _double_backward_of_shard(
    operands: dict[str, Any], saved: SyncSaved, wanted: int, parameter_gradients: str
) -> Any:
    """Do `double_backward` in a group: two exchanges, of pilots that all have, and of sums."""
    part, local = saved.part, saved.local
    part.group.check_open()
    with part, np.errstate(all="ignore"):  # as the kernels do of NaN and overflow
        total = check_parameter_gradients(parameter_gradients) == "total"
        x = operands["x"]
        engine: Any = _core if type(x) is ndarray else engine_of(x)
        wide = part.header.dtype == "float64"
        operands["saved"] = local
        pilots = engine.double_backward_pilots(**operands)
        channels = pilots.shape[1]
        # The mean of the members' pilots is one for all; 0 is, where a member has no ddx.
        has_ddx = np.full((1, channels), operands["ddx"] is not None)
        rows = part.count * np.concatenate([pilots, has_ddx])
        if total:  # what differentiates one sum over all members is the sum of their gradients
            rows = np.concatenate([rows, _gradients_by_parameters(operands, channels)])
        rows = part.add_twice(rows)
        count = saved.count
        # Rounded, so that products about them are exact, and the same for every engine.
        pilots = _rounded(rows[:2] / (count or 1), wide).astype(np.float64)
        pilots[0, rows[2] < count] = 0.0
        if total:
            library = None if engine is _core else library_of(x)
            for name, row in zip(("ddweight", "ddbias"), _rounded(rows[3:], wide), strict=True):
                operands[name] = row if library is None else library.from_numpy(row, like=x)
        sums = engine.double_backward_reduce(**operands, pilots=pilots)
        whole = part.add_twice(sums)
        return engine.double_backward_apply(
            **operands, wanted=wanted, pilots=pilots, sums=None if total else sums, total=whole,
            count=count,
        )  # fmt: skip


def _gradients_by_parameters(operands: dict[str, Any], channels: int) -> ndarray[Any, Any]:
    """Give `ddweight` and `ddbias` as rows of float64, 0 where there is none."""
    rows = np.zeros((2, channels))
    for row, name in zip(rows, ("ddweight", "ddbias"), strict=True):
        if operands[name] is not None:
            row[:] = to_numpy(operands[name])
    return rows


def _rounded(rows: ndarray[Any, Any], wide: bool) -> ndarray[Any, Any]:
    """Round rows of float64 to the dtype of the arithmetic."""
    return rows if wide else rows.astype(np.float32)


def recompute(x: Any, saved: Any, residual: Any = None, out: Any = None) -> Any:
    """Make y of `forward` again, to the bit; of a group without an exchange.

    Parameters
    ----------
    x, saved, residual, out
        As `bnext.recompute` takes them.

    Returns
    -------
    array
        y, or `out`.
    """
    local = saved.local if isinstance(saved, SyncSaved) else saved
    engine: Any = _core if type(x) is ndarray else engine_of(x)
    if engine is not _core or isinstance(local, DeviceSaved):
        raise ValueError("x: expected an array on the CPU, to recompute y from, got one on a GPU")
    return engine.recompute(x=x, saved=local, out=out, residual=residual)
