"""Arrays of other libraries on the CPU: the CPU's kernels on their memory, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bnext import _core
from bnext.devices.libraries import Library, library_of

__all__ = ["HostEngine"]


class HostEngine:
    """The calls of `_core` on arrays of one library; NumPy's may stand among them.

    Nothing is copied: inputs are seen through DLPack, results are memory of bnext's pool that the
    library takes over. Statistics (`Saved`, `Moments`) are NumPy's float64 arrays.
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    def inspect(self, x: Any) -> tuple[tuple[int, ...], str]:
        """Give shape and name of the dtype."""
        array = self._taken(x, "x")
        return array.shape, array.dtype.name

    def misplaced(self, array: Any) -> str:
        """Say what is wrong with another array of such a call; empty if nothing is."""
        library = library_of(array)
        if library is None:
            return ""
        if library is not self._library:
            name = self._library.name
            return f"expected an array of {name}, like x, or of NumPy, got one of {library.name}"
        where = library.where(array)
        return (
            ""
            if where.kind == "cpu"
            else f"expected an array on the CPU, like x, got one on {where}"
        )

    def _taken(self, array: Any, name: str) -> Any:
        if type(array) is np.ndarray or array is None:
            return array
        if problem := self.misplaced(array):
            raise TypeError(f"{name}: {problem}")
        return array if library_of(array) is None else self._library.adopt(array, name)

    def _taken_to_write(self, array: Any, name: str) -> Any:
        taken = self._taken(array, name)
        if taken is not array:
            self._library.check_writable(array, name)
        return taken

    def _count_writes(self, *arrays: Any) -> None:
        """Tell the library which of its arrays have been written."""
        for array in arrays:
            if array is not None and library_of(array) is self._library:
                self._library.count_write(array)

    def _result(self, array: Any, out: Any) -> Any:
        if out is None:
            return self._library.wrap(array)
        self._count_writes(out)
        return out

    def forward(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, eps: Any, channel_axis: Any, out: Any, bessel: bool = True,
    ) -> tuple[Any, _core.Saved]:  # fmt: skip
        """As `_core.forward`."""
        y, saved = _core.forward(
            self._taken(x, "x"), self._taken(weight, "weight"), self._taken(bias, "bias"),
            self._taken_to_write(running_mean, "running_mean"),
            self._taken_to_write(running_var, "running_var"),
            momentum, num_batches_tracked, eps, channel_axis, self._taken_to_write(out, "out"),
            bessel,
        )  # fmt: skip
        self._count_writes(running_mean, running_var)
        return self._result(y, out), saved

    def backward(self, dy: Any, x: Any, saved: Any, weight: Any, out: Any) -> tuple[Any, Any, Any]:
        """As `_core.backward`; gradients of parameters are of the library of `weight`, if given."""
        dx, *of_parameters = _core.backward(
            self._taken(dy, "dy"), self._taken(x, "x"), saved, self._taken(weight, "weight"),
            self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(dx, out), *self._like_weight(weight, of_parameters)

    def _like_weight(self, weight: Any, arrays: Iterable[Any]) -> tuple[Any, ...]:
        if weight is None or library_of(weight) is not None:
            arrays = map(self._library.wrap, arrays)
        return tuple(arrays)

    def backward_constant(self, dy: Any, saved: Any, weight: Any, out: Any) -> Any:
        """As `_core.backward_constant`."""
        dx = _core.backward_constant(
            self._taken(dy, "dy"), saved, self._taken(weight, "weight"),
            self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(dx, out)

    def normalize(
        self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any,
        out: Any,
    ) -> tuple[Any, _core.Saved]:  # fmt: skip
        """As `_core.normalize`."""
        y, saved = _core.normalize(
            self._taken(x, "x"), self._taken(mean, "mean"), self._taken(var, "var"),
            self._taken(weight, "weight"), self._taken(bias, "bias"), eps, channel_axis,
            self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(y, out), saved

    def normalize_by_running(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: Any,
        channel_axis: Any, out: Any,
    ) -> tuple[Any, _core.Saved]:  # fmt: skip
        """As `_core.normalize_by_running`."""
        y, saved = _core.normalize_by_running(
            self._taken(x, "x"), self._taken(running_mean, "running_mean"),
            self._taken(running_var, "running_var"), self._taken(weight, "weight"),
            self._taken(bias, "bias"), eps, channel_axis, self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(y, out), saved

    def moments(self, x: Any, channel_axis: Any) -> tuple[int, Any, Any]:
        """As `_core.moments`."""
        return _core.moments(self._taken(x, "x"), channel_axis)

    def restored(self, x: Any, rows: Any, eps: Any, channel_axis: Any) -> _core.Saved:
        """As `_core.restored`."""
        return _core.restored(self._taken(x, "x"), self._taken(rows, "rows"), eps, channel_axis)

    # --- the phases by themselves -----------------------------------------------------------------

    def collect_stats(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, eps: Any, channel_axis: Any, out: Any,
    ) -> tuple[int, Any, Any, Any, str]:  # fmt: skip
        """As `_core.collect_stats`."""
        return _core.collect_stats(
            self._taken(x, "x"), self._taken(weight, "weight"), self._taken(bias, "bias"),
            self._taken_to_write(running_mean, "running_mean"),
            self._taken_to_write(running_var, "running_var"),
            momentum, num_batches_tracked, eps, channel_axis, self._taken_to_write(out, "out"),
        )  # fmt: skip

    def apply_norm(
        self, x: Any, count: int, mean: Any, mean_low: Any, m2: Any, weight: Any, bias: Any,
        eps: Any, channel_axis: Any, out: Any,
    ) -> tuple[Any, _core.Saved]:  # fmt: skip
        """As `_core.apply_norm`."""
        y, saved = _core.apply_norm(
            self._taken(x, "x"), count, mean, mean_low, m2, self._taken(weight, "weight"),
            self._taken(bias, "bias"), eps, channel_axis, self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(y, out), saved

    def move_running(
        self, saved: Any, running_mean: Any, running_var: Any, momentum: Any,
        num_batches_tracked: Any, bessel: bool = True,
    ) -> None:  # fmt: skip
        """As `_core.move_running`."""
        _core.move_running(
            saved, self._taken_to_write(running_mean, "running_mean"),
            self._taken_to_write(running_var, "running_var"), momentum, num_batches_tracked,
            bessel,
        )  # fmt: skip
        self._count_writes(running_mean, running_var)

    def backward_reduce(
        self, dy: Any, x: Any, saved: Any, weight: Any = None, out: Any = None
    ) -> tuple[Any, Any]:
        """As `_core.backward_reduce`."""
        return _core.backward_reduce(
            self._taken(dy, "dy"), self._taken(x, "x"), saved, self._taken(weight, "weight"),
            self._taken_to_write(out, "out"),
        )  # fmt: skip

    def backward_apply(
        self, dy: Any, x: Any, saved: Any, weight: Any, sum_dy: Any, sum_dy_xmu: Any, count: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        """As `_core.backward_apply`."""
        dx = _core.backward_apply(
            self._taken(dy, "dy"), self._taken(x, "x"), saved, self._taken(weight, "weight"),
            sum_dy, sum_dy_xmu, count, self._taken_to_write(out, "out"),
        )  # fmt: skip
        return self._result(dx, out)

    def parameter_gradients(
        self, saved: Any, weight: Any, sum_dy: Any, sum_dy_xmu: Any
    ) -> tuple[Any, ...]:
        """As `_core.parameter_gradients`; of the library that `backward` gives them in."""
        gradients = _core.parameter_gradients(saved, None, sum_dy, sum_dy_xmu)
        return self._like_weight(weight, gradients)
