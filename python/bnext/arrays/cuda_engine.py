"""The calls of `_core` on arrays of a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnext import _core, cuda
from bnext.arrays.cuda_arrays import CudaArrays, count_of, parameter_dtype
from bnext.arrays.libraries import Library, View, Where
from bnext.arrays.saved import DeviceSaved
from bnext.rows import ROW, unbound

__all__ = ["CudaEngine", "engine_on"]


class CudaEngine(CudaArrays):
    """The calls of `_core`, with the same arguments, checks and messages.

    All arrays of a call are of one library and on one device. Usual calls on PyTorch's tensors run
    in C++ (`_cuda.FunctionCalls`). For every other call, a wrong one too, C++ returns None and has
    changed nothing: the general road follows, whose errors name the argument.
    """

    def forward(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, eps: Any, channel_axis: Any, out: Any, bessel: bool = True,
        plain: bool = False, keeps: bool = True,
    ) -> tuple[Any, DeviceSaved]:  # fmt: skip
        """As `_core.forward`."""
        if plain:
            operands = x, weight, bias, running_mean, running_var, momentum, num_batches_tracked
            done_plain: tuple[Any, Any] = (
                self._plain("forward", *operands, eps)
                if keeps
                else (self._plain("forward_only", *operands, eps), None)
            )
            self._count_writes(running_mean, running_var, num_batches_tracked)
            return done_plain
        _core.check_count(num_batches_tracked)
        if self._calls is not None:
            done: tuple[Any, DeviceSaved] | None = self._calls.forward(
                x, weight, bias, running_mean, running_var, momentum, eps, channel_axis, out, bessel
            )
            if done is not None:
                self._count_writes(running_mean, running_var, out)
                if num_batches_tracked is not None:
                    num_batches_tracked += 1
                return done
        views, axis = self._taken(
            "forward", {
                "x": x, "weight": weight, "bias": bias, "running_mean": running_mean,
                "running_var": running_var, "out": out,
            },
            momentum=momentum, num_batches_tracked=num_batches_tracked, eps=eps,
            channel_axis=channel_axis,
        )  # fmt: skip
        data, wanted = views["x"], views.pop("out", None)
        eps, count = float(eps), count_of(data.shape, axis)
        channels = data.shape[axis]
        if math.prod(data.shape) == 0:
            nothing = _of_nothing(data.shape, axis, eps)
            statistics = self._library.from_numpy(nothing.rows, data.array)
            y = self._like_view(data).array if wanted is None else wanted.array
        else:
            plan, (data, target) = self._fitted("forward", [data], axis, wanted)
            statistics = self._empty((len(ROW), channels), "float64", data)
            views |= {"x": data, "y": target}
            views["statistics"] = self._library.view(statistics, "statistics")
            moves = {"momentum": momentum or 0.0, "correction": float(bessel)}
            self._launch(plan, data, views, eps=eps, **moves)
            y = self._result(wanted, target)
            for name in views.keys() & {"running_mean", "running_var"}:
                self._library.count_writes((views[name].array,))
        if num_batches_tracked is not None:
            num_batches_tracked += 1  # the layer's array, in place
        return y, self._saved(statistics, data, axis, eps, count=count)

    def normalize(
        self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any,
        out: Any,
    ) -> tuple[Any, None]:  # fmt: skip
        """As `_core.normalize`, but for what backward would need."""
        if self._calls is not None:
            y = self._calls.normalize(x, mean, var, weight, bias, eps, channel_axis, out)
            if y is not None:
                self._count_writes(out)
                return y, None
        statistics = {"mean": mean, "var": var}
        y, *_ = self._normalize(x, statistics, True, weight, bias, eps, channel_axis, out)
        return y, None

    def normalize_by_running(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, out: Any, plain: bool = False,
    ) -> tuple[Any, DeviceSaved]:  # fmt: skip
        """As `_core.normalize_by_running`."""
        if plain:
            operands = x, running_mean, running_var, weight, bias, eps
            return self._plain("normalize_by_running", *operands)  # type: ignore[no-any-return]
        if self._calls is not None:
            done: tuple[Any, DeviceSaved] | None = self._calls.normalize_by_running(
                x, running_mean, running_var, weight, bias, eps, channel_axis, out
            )
            if done is not None:
                self._count_writes(out)
                return done
        statistics = {"running_mean": running_mean, "running_var": running_var}
        y, data, axis, written = self._normalize(
            x, statistics, False, weight, bias, eps, channel_axis, out
        )
        return y, self._saved(written, data, axis, eps, count=None)

    def evaluate(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, plain: bool = False,
    ) -> Any:  # fmt: skip
        """As `_core.evaluate`."""
        operands = x, running_mean, running_var, weight, bias, eps
        if plain:
            return self._plain("evaluate", *operands)
        return self.normalize_by_running(*operands, channel_axis, None)[0]

    def _plain(self, call: str, *operands: Any) -> Any:
        """Do a call of layers on plain tensors; TypeError for others."""
        done = self._calls_of_layers and getattr(self._calls_of_layers, call)(*operands)
        if done is None:
            raise TypeError("expected plain tensors")
        return done

    def _normalize(
        self, x: Any, given: Mapping[str, Any], wide: bool, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, out: Any, rows: Any = None,
    ) -> tuple[Any, View, int, Any]:  # fmt: skip
        """Give y, x, the axis, and unless statistics may be `wide` those that backward needs.

        With `rows`, which an earlier phase has left, these are taken, and `given` is only checked.
        """
        arrays = {"x": x, **given, "weight": weight, "bias": bias, "out": out}
        call = "normalize" if wide else "normalize_by_running" if rows is None else "apply_norm"
        views, axis = self._taken(call, arrays, eps=eps, channel_axis=channel_axis)
        data, wanted, eps = views["x"], views.pop("out", None), float(eps)
        statistics = self._of_one_dtype({name: views.pop(name) for name in given})
        written = rows
        if rows is None and not wide:
            written = self._empty((len(ROW), data.shape[axis]), "float64", data)
        if math.prod(data.shape) == 0:  # and nothing will read what is written
            y = self._like_view(data).array if wanted is None else wanted.array
        else:
            plan, (data, target) = self._fitted("normalize", [data], axis, wanted)
            views |= {"x": data, "y": target}
            wide_ones = rows is None and next(iter(statistics.values())).dtype == "float64"
            if rows is None:
                views |= zip(("mean", "var"), statistics.values(), strict=True)
            if written is not None:
                views["statistics"] = self._library.view(written, "statistics")
            self._launch(plan, data, views, eps=eps, wide_statistics=wide_ones)
            y = self._result(wanted, target)
        return y, data, axis, written

    def backward(
        self, dy: Any, x: Any, saved: Any, weight: Any, out: Any, plain: bool = False
    ) -> tuple[Any, Any, Any]:
        """As `_core.backward`."""
        if plain:
            return self._plain("backward", dy, x, saved, weight)  # type: ignore[no-any-return]
        if self._calls is not None:
            done: tuple[Any, Any, Any] | None = self._calls.backward(dy, x, saved, weight, out)
            if done is not None:
                self._count_writes(out)
                return done
        views, axis = self._taken_back("backward", dy, x, saved, weight, out)
        data, gradient, wanted = views["x"], views["dy"], views.pop("out", None)
        channels = data.shape[axis]
        if math.prod(data.shape) == 0:
            zeros = np.zeros(channels, parameter_dtype(data.dtype))
            dweight, dbias = (self._library.from_numpy(zeros, data.array) for _ in range(2))
            dx = self._like_view(data).array if wanted is None else wanted.array
            return dx, dweight, dbias
        operation = "backward" if saved.batch_statistics else "backward_fixed"
        plan, (data, gradient, target) = self._fitted(operation, [data, gradient], axis, wanted)
        of_parameters = [
            self._empty((channels,), parameter_dtype(data.dtype), data) for _ in range(2)
        ]
        dweight, dbias = (self._library.view(array, "out") for array in of_parameters)
        views |= {"x": data, "dy": gradient, "dx": target, "dweight": dweight, "dbias": dbias}
        views["statistics"] = self._library.view(saved._statistics, "saved")
        self._launch(plan, data, views, eps=saved.eps)
        return self._result(wanted, target), *of_parameters

    def backward_constant(
        self, dy: Any, saved: Any, weight: Any, out: Any, plain: bool = False
    ) -> Any:
        """As `_core.backward_constant`: dy is normalized about 0."""
        if plain:
            return self._plain("backward_constant", dy, saved, weight)
        if self._calls is not None:
            dx = self._calls.backward_constant(dy, saved, weight, out)
            if dx is not None:
                self._count_writes(out)
                return dx
        self._check_saved(saved, "dy")
        arrays = {"dy": dy, "weight": weight, "out": out}
        views, axis = self._taken("backward_constant", arrays, saved)
        gradient, wanted = views.pop("dy"), views.pop("out", None)
        if math.prod(gradient.shape) == 0:
            return self._like_view(gradient).array if wanted is None else wanted.array
        plan, (gradient, target) = self._fitted("normalize", [gradient], axis, wanted)
        zero = self._library.zeros((gradient.shape[axis],), "float64", gradient.array)
        views |= {"x": gradient, "y": target, "mean": self._library.view(zero, "mean")}
        views["var"] = self._library.view(saved.var, "saved")
        self._launch(plan, gradient, views, eps=saved.eps, wide_statistics=True)
        return self._result(wanted, target)

    def moments(self, x: Any, channel_axis: Any) -> tuple[int, Any, Any]:
        """As `_core.moments`."""
        views, axis = self._taken("moments", {"x": x}, channel_axis=channel_axis)
        data = views["x"]
        if math.prod(data.shape) == 0:
            zeros = np.zeros((len(ROW), data.shape[axis]))
            statistics = self._library.from_numpy(zeros, data.array)
        else:
            statistics = self._collected(data, axis)
        return count_of(data.shape, axis), statistics[ROW.mean, :], statistics[ROW.m2, :]

    def _collected(self, data: View, axis: int) -> Any:
        plan, (data,) = self._fitted("collect_stats", [data], axis, writes=False)
        statistics = self._empty((len(ROW), data.shape[axis]), "float64", data)
        written = self._library.view(statistics, "statistics")
        self._launch(plan, data, {"x": data, "statistics": written}, eps=1.0)
        return statistics

    def restored(self, x: Any, rows: Any, eps: Any, channel_axis: Any) -> DeviceSaved:
        """As `_core.restored`; `rows` are on the device, and are kept."""
        arrays = {"x": x, "rows": rows}
        views, axis = self._taken("restored", arrays, eps=eps, channel_axis=channel_axis)
        data = views["x"]
        return self._saved(rows, data, axis, float(eps), count=count_of(data.shape, axis))

    # --- the phases by themselves -----------------------------------------------------------------

    # What is exchanged is copied to the host, for which the stream of x is waited for, and comes
    # back before anything else is put on that stream.

    def collect_stats(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, eps: Any, channel_axis: Any, out: Any,
    ) -> tuple[int, Any, Any, Any, str]:  # fmt: skip
        """As `_core.collect_stats`."""
        views, axis = self._taken(
            "collect_stats", {
                "x": x, "weight": weight, "bias": bias, "running_mean": running_mean,
                "running_var": running_var, "out": out,
            },
            momentum=momentum, num_batches_tracked=num_batches_tracked, eps=eps,
            channel_axis=channel_axis,
        )  # fmt: skip
        data = views["x"]
        if math.prod(data.shape) == 0:
            rows = np.zeros((len(ROW), data.shape[axis]))
        else:
            rows = self._library.to_numpy(self._collected(data, axis))
        of = unbound(rows)
        return count_of(data.shape, axis), of.mean, of.mean_low, of.m2, data.dtype

    def apply_norm(
        self, x: Any, count: int, mean: Any, mean_low: Any, m2: Any, weight: Any, bias: Any,
        eps: Any, channel_axis: Any, out: Any,
    ) -> tuple[Any, DeviceSaved]:  # fmt: skip
        """As `_core.apply_norm`."""
        data = self._view(x, "x")
        # Var and rstd from the same code as on the CPU, for members there have them as well.
        nothing = np.empty((0, len(mean)), parameter_dtype(data.dtype))
        _, of_group = _core.apply_norm(
            x=nothing, count=count, mean=mean, mean_low=mean_low, m2=m2, weight=None, bias=None,
            eps=eps, channel_axis=1, out=None,
        )  # fmt: skip
        statistics = self._library.from_numpy(of_group.rows, data.array)
        y, data, axis, _ = self._normalize(
            x, {"mean": statistics[ROW.mean, :], "m2": statistics[ROW.m2, :]}, False, weight, bias,
            eps, channel_axis, out, statistics,
        )  # fmt: skip
        return y, self._saved(statistics, data, axis, of_group.eps, count=count, of_group=of_group)

    def move_running(
        self, saved: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, bessel: bool = True,
    ) -> None:  # fmt: skip
        """As `_core.move_running`; on the device, without waiting for it."""
        running, _ = self._taken(
            "move_running", {"running_mean": running_mean, "running_var": running_var}, saved,
            momentum=momentum, num_batches_tracked=num_batches_tracked,
        )  # fmt: skip
        if running and saved.count >= 2:
            momentum = float(momentum)
            self._library.blend(running_mean, momentum, saved.mean, 1)
            self._library.blend(running_var, momentum, saved.m2, saved.count - bessel)
        if num_batches_tracked is not None:
            num_batches_tracked += 1

    def backward_reduce(
        self, dy: Any, x: Any, saved: Any, weight: Any = None, out: Any = None
    ) -> tuple[Any, Any]:
        """As `_core.backward_reduce`."""
        views, axis = self._taken_back("backward_reduce", dy, x, saved, weight, out)
        data, gradient = views["x"], views["dy"]
        channels = data.shape[axis]
        if math.prod(data.shape) == 0:
            sum_dy, sum_dy_xmu = np.zeros((2, channels))
            return sum_dy, sum_dy_xmu
        operands = [data, gradient]
        plan, (data, gradient) = self._fitted("backward_reduce", operands, axis, writes=False)
        sums = self._empty((2, channels), "float64", data)
        arrays = {"statistics": saved._statistics, "sums": sums}
        views = {name: self._library.view(array, name) for name, array in arrays.items()}
        self._launch(plan, data, views | {"x": data, "dy": gradient}, eps=saved.eps)
        sum_dy, sum_dy_xmu = self._library.to_numpy(sums)
        return sum_dy, sum_dy_xmu

    def backward_apply(
        self, dy: Any, x: Any, saved: Any, weight: Any, sum_dy: Any, sum_dy_xmu: Any, count: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        """As `_core.backward_apply`."""
        sums = {"sum_dy": sum_dy, "sum_dy_xmu": sum_dy_xmu}
        views, axis = self._taken_back("backward_apply", dy, x, saved, weight, out, **sums)
        data, gradient, wanted = views["x"], views["dy"], views.pop("out", None)
        if math.prod(data.shape) == 0:
            return self._like_view(data).array if wanted is None else wanted.array
        both = self._library.from_numpy(np.stack([sum_dy, sum_dy_xmu]), data.array)
        operands = [data, gradient]
        plan, (data, gradient, target) = self._fitted("backward_apply", operands, axis, wanted)
        arrays = {"statistics": saved._statistics, "sums": both}
        views |= {name: self._library.view(array, name) for name, array in arrays.items()}
        views |= {"x": data, "dy": gradient, "dx": target}
        self._launch(plan, data, views, eps=saved.eps, count=float(count))
        return self._result(wanted, target)

    def parameter_gradients(
        self, saved: Any, weight: Any, sum_dy: Any, sum_dy_xmu: Any, like: Any = None
    ) -> tuple[Any, ...]:
        """As `_core.parameter_gradients`, of what `apply_norm` has saved; computed on the host."""
        gradients = _core.parameter_gradients(saved._of_group, None, sum_dy, sum_dy_xmu)
        return tuple(self._library.from_numpy(each, saved._statistics) for each in gradients)


_ENGINES: dict[Any, CudaEngine] = {}


def engine_on(library: Library, x: Any, where: Where, name: str) -> CudaEngine:
    """Give the engine of a library's arrays on one GPU, where `x` is, which errors call `name`."""
    if where.index < 0:  # only the address of x tells on which
        return CudaEngine(library, x, where, name)
    try:
        key = library, where.index, cuda._load()
    except ImportError:
        return CudaEngine(library, x, where, name)  # whose error says why not
    engine = _ENGINES.get(key)
    if engine is None:
        engine = _ENGINES.setdefault(key, CudaEngine(library, x, where, name))
    return engine


def _of_nothing(shape: tuple[int, ...], axis: int, eps: float) -> _core.Saved:
    """Give what is saved of an empty input on the CPU."""
    x = np.empty(shape, np.float32)
    saved: _core.Saved = _core.forward(x, None, None, None, None, None, None, eps, axis, None)[1]
    return saved
