"""The calls of `_core` on arrays of a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnext import _core
from bnext.devices.checks import axis_of, check_count, check_more_than_one
from bnext.devices.cuda_arrays import (
    CudaArrays,
    check_dtype,
    check_shape,
    count_of,
    parameter_dtype,
)
from bnext.devices.libraries import View
from bnext.devices.saved import DeviceSaved

__all__ = ["CudaEngine"]


class CudaEngine(CudaArrays):
    """The calls of `_core`, with the same arguments, checks and messages.

    All arrays of a call are of one library and on one device.
    """

    def forward(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, eps: Any, channel_axis: Any, out: Any, bessel: bool = True,
    ) -> tuple[Any, DeviceSaved]:  # fmt: skip
        """As `_core.forward`."""
        data = self._data(x)
        axis = axis_of(channel_axis, len(data.shape))
        eps = _core.check_eps(eps)
        channels = data.shape[axis]
        views = self._parameters(data, channels, weight=weight, bias=bias)
        views |= self._running(data, channels, running_mean=running_mean, running_var=running_var)
        if "running_mean" in views:
            momentum = _core.check_momentum(momentum)
        check_count(num_batches_tracked)
        check_more_than_one(data.shape, count_of(data.shape, axis))
        wanted = self._out(out, data, {"x": data, **views})
        if math.prod(data.shape) == 0:
            statistics = self._library.from_numpy(_of_nothing(data.shape, axis, eps), data.array)
            y = self._like_view(data).array if wanted is None else wanted.array
        else:
            plan, (data, target) = self._fitted("forward", [data], axis, wanted)
            statistics = self._empty((4, channels), "float64", data)
            views |= {"x": data, "y": target}
            views["statistics"] = self._library.view(statistics, "statistics")
            moves = {"momentum": momentum or 0.0, "correction": float(bessel)}
            self._launch(plan, data, views, eps=eps, **moves)
            y = self._result(wanted, target)
        if num_batches_tracked is not None:
            num_batches_tracked += 1  # the layer's array, in place
        return y, self._saved(statistics, data, axis, eps, of_batch=True)

    def normalize(
        self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any,
        out: Any,
    ) -> tuple[Any, None]:  # fmt: skip
        """As `_core.normalize`, but for what backward would need."""
        statistics = {"mean": mean, "var": var}
        y, *_ = self._normalize(x, statistics, True, weight, bias, eps, channel_axis, out)
        return y, None

    def normalize_by_running(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, out: Any,
    ) -> tuple[Any, DeviceSaved]:  # fmt: skip
        """As `_core.normalize_by_running`."""
        statistics = {"running_mean": running_mean, "running_var": running_var}
        y, data, axis, written = self._normalize(
            x, statistics, False, weight, bias, eps, channel_axis, out
        )
        return y, self._saved(written, data, axis, eps, of_batch=False)

    def _normalize(
        self, x: Any, given: Mapping[str, Any], wide: bool, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, out: Any,
    ) -> tuple[Any, View, int, Any]:  # fmt: skip
        """Give y, x, the axis, and unless statistics may be `wide` those that backward needs."""
        data = self._data(x)
        axis = axis_of(channel_axis, len(data.shape))
        eps = _core.check_eps(eps)
        channels = data.shape[axis]
        statistics = self._statistics(data, channels, wide, **given)
        views = self._parameters(data, channels, weight=weight, bias=bias)
        wanted = self._out(out, data, {"x": data, **statistics, **views})
        written = None if wide else self._empty((4, channels), "float64", data)
        if math.prod(data.shape) == 0:  # and nothing will read what is written
            y = self._like_view(data).array if wanted is None else wanted.array
        else:
            plan, (data, target) = self._fitted("normalize", [data], axis, wanted)
            views |= {"x": data, "y": target}
            views |= zip(("mean", "var"), statistics.values(), strict=True)
            if written is not None:
                views["statistics"] = self._library.view(written, "statistics")
            wide_ones = views["mean"].dtype == "float64"
            self._launch(plan, data, views, eps=eps, wide_statistics=wide_ones)
            y = self._result(wanted, target)
        return y, data, axis, written

    def backward(self, dy: Any, x: Any, saved: Any, weight: Any, out: Any) -> tuple[Any, Any, Any]:
        """As `_core.backward`."""
        data, gradient, axis = self._taken_back(dy, x, saved)
        channels = data.shape[axis]
        views = self._parameters(data, channels, weight=weight)
        wanted = self._out(out, data, {"dy": gradient, "x": data, **views})
        if math.prod(data.shape) == 0:
            zeros = np.zeros(channels, parameter_dtype(data))
            dweight, dbias = (self._library.from_numpy(zeros, data.array) for _ in range(2))
            dx = self._like_view(data).array if wanted is None else wanted.array
            return dx, dweight, dbias
        operation = "backward" if saved.batch_statistics else "backward_fixed"
        plan, (data, gradient, target) = self._fitted(operation, [data, gradient], axis, wanted)
        of_parameters = [self._empty((channels,), parameter_dtype(data), data) for _ in range(2)]
        dweight, dbias = (self._library.view(array, "out") for array in of_parameters)
        views |= {"x": data, "dy": gradient, "dx": target, "dweight": dweight, "dbias": dbias}
        views["statistics"] = self._library.view(saved._statistics, "saved")
        self._launch(plan, data, views, eps=saved.eps)
        return self._result(wanted, target), *of_parameters

    def backward_constant(self, dy: Any, saved: Any, weight: Any, out: Any) -> Any:
        """As `_core.backward_constant`: dy is normalized about 0."""
        self._check_saved(saved, "dy")
        if saved.batch_statistics:
            raise ValueError("saved: expected given statistics, which are constants, got a batch's")
        gradient = self._view(dy, "dy")
        check_dtype(gradient, "dy", saved._dtype_name)
        check_shape(gradient, "dy", saved.shape)
        axis = saved.channel_axis
        channels = gradient.shape[axis]
        views = self._parameters(gradient, channels, weight=weight)
        wanted = self._out(out, gradient, {"dy": gradient, **views})
        if math.prod(gradient.shape) == 0:
            return self._like_view(gradient).array if wanted is None else wanted.array
        plan, (gradient, target) = self._fitted("normalize", [gradient], axis, wanted)
        zero = self._library.zeros((channels,), "float64", gradient.array)
        views |= {"x": gradient, "y": target, "mean": self._library.view(zero, "mean")}
        views["var"] = self._library.view(saved.var, "saved")
        self._launch(plan, gradient, views, eps=saved.eps, wide_statistics=True)
        return self._result(wanted, target)

    def moments(self, x: Any, channel_axis: Any) -> tuple[int, Any, Any]:
        """As `_core.moments`."""
        data = self._data(x)
        axis = axis_of(channel_axis, len(data.shape))
        channels = data.shape[axis]
        if math.prod(data.shape) == 0:
            statistics = self._library.from_numpy(np.zeros((4, channels)), data.array)
        else:
            plan, (data,) = self._fitted("collect_stats", [data], axis, writes=False)
            statistics = self._empty((4, channels), "float64", data)
            written = self._library.view(statistics, "statistics")
            self._launch(plan, data, {"x": data, "statistics": written}, eps=1.0)
        return count_of(data.shape, axis), statistics[0, :], statistics[1, :]

    def backward_reduce(self, dy: Any, x: Any, saved: Any) -> tuple[Any, Any]:
        """As `_core.backward_reduce`."""
        data, gradient, axis = self._taken_back(dy, x, saved)
        channels = data.shape[axis]
        if math.prod(data.shape) == 0:
            sums = self._library.from_numpy(np.zeros((2, channels)), data.array)
            return sums[0, :], sums[1, :]
        operands = [data, gradient]
        plan, (data, gradient) = self._fitted("backward_reduce", operands, axis, writes=False)
        sums = self._empty((2, channels), "float64", data)
        arrays = {"statistics": saved._statistics, "sums": sums}
        views = {name: self._library.view(array, name) for name, array in arrays.items()}
        self._launch(plan, data, views | {"x": data, "dy": gradient}, eps=saved.eps)
        return sums[0, :], sums[1, :]

    def backward_apply(
        self, dy: Any, x: Any, saved: Any, weight: Any, sum_dy: Any, sum_dy_xmu: Any, count: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        """As `_core.backward_apply`."""
        data, gradient, axis = self._taken_back(dy, x, saved)
        channels = data.shape[axis]
        both = {"sum_dy": sum_dy, "sum_dy_xmu": sum_dy_xmu}
        for name, array in both.items():
            view = self._view(array, name)
            check_dtype(view, name, "float64")
            check_shape(view, name, (channels,))
        views = self._parameters(data, channels, weight=weight)
        wanted = self._out(out, data, {"dy": gradient, "x": data, **views})
        if math.prod(data.shape) == 0:
            return self._like_view(data).array if wanted is None else wanted.array
        operands = [data, gradient]
        plan, (data, gradient, target) = self._fitted("backward_apply", operands, axis, wanted)
        arrays = {"statistics": saved._statistics, "sums": self._library.stacked([*both.values()])}
        views |= {name: self._library.view(array, name) for name, array in arrays.items()}
        views |= {"x": data, "dy": gradient, "dx": target}
        self._launch(plan, data, views, eps=saved.eps, count=float(count))
        return self._result(wanted, target)


def _of_nothing(shape: tuple[int, ...], axis: int, eps: float) -> Any:
    """Give the statistics of an empty input, as the CPU has them."""
    x = np.empty(shape, np.float32)
    saved = _core.forward(x, None, None, None, None, None, None, eps, axis, None)[1]
    return np.stack([saved.mean, saved.m2, saved.var, saved.rstd])
