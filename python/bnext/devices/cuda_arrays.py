"""What every call on a GPU does with its arrays: takes and checks them, finds room, launches.

Nothing here waits for the device, and no values come to the host. Results are made by the library
of `x` on the device of `x`, and written on the stream on which the library works at the time; so
is the workspace, which that stream-ordered allocator may hand on as soon as the call returns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from bnext import _core, cuda
from bnext.devices.libraries import Library, View, Where, library_of
from bnext.devices.memory import SIZES, is_contiguous, overlap, overlaps_itself
from bnext.devices.saved import DeviceSaved

__all__ = ["CudaArrays", "check_dtype", "check_shape", "count_of", "parameter_dtype"]

WORKSPACE_ALIGNMENT = 256


@functools.cache
def _limits(kernels: Any, device: int) -> Any:
    return kernels.limits(device)


class CudaArrays:
    """Arrays of one library on one GPU, for kernels; RuntimeError if that has none.

    All arrays of a call are of that library and on that device.
    """

    def __init__(self, library: Library, x: Any, where: Where, name: str) -> None:
        try:
            self._kernels = cuda._load()
            if where.index < 0 and self._kernels.device_count():
                where = Where("cuda", self._kernels.device_of(library.view(x, name).address))
            problem = cuda._problem_of(self._kernels, where.index)
        except ImportError as error:
            problem = str(error)
        if problem:
            raise RuntimeError(
                f"{name}: got an array on {where}, and bnext cannot compute there: {problem}"
            )
        self._library = library
        self._where = where
        self._device = where.index
        self._calls: Any = library.usual_calls(self._kernels)

    # --- what layers ask --------------------------------------------------------------------------

    def inspect(self, x: Any) -> tuple[tuple[int, ...], str]:
        """Give shape and name of the dtype."""
        view = self._library.view(x, "x")
        return view.shape, view.dtype

    def misplaced(self, array: Any) -> str:
        """Say what is wrong with another array of such a call; empty if nothing is."""
        library = library_of(array)
        if library is self._library:
            where = library.where(array)
            if where == self._where or where == Where("cuda", -1):
                return ""
        elif library is None:
            where = Where("cpu")
        elif (where := library.where(array)) == self._where:
            name = self._library.name
            return f"expected an array of {name}, like x, got one of {library.name}"
        return f"expected an array on {self._where}, like x, got one on {where}"

    # --- taking arguments -------------------------------------------------------------------------

    def _view(self, array: Any, name: str) -> View:
        if problem := self.misplaced(array):
            raise TypeError(f"{name}: {problem}")
        view = self._library.view(array, name)
        if not view.address and 0 not in view.shape:
            raise TypeError(
                f"{name}: expected an array whose memory holds its values, got one without memory"
            )
        if view.address and self._library.where(array).index < 0:  # only its address tells
            where = Where("cuda", self._kernels.device_of(view.address))
            if where != self._where:
                raise TypeError(
                    f"{name}: expected an array on {self._where}, like x, got one on {where}"
                )
        if view.dtype in SIZES and view.address % SIZES[view.dtype]:
            raise ValueError(f"{name}: expected an address that is a multiple of its elements'")
        return view

    def _data(self, array: Any) -> View:
        view = self._view(array, "x")
        if view.dtype not in SIZES:
            raise TypeError(
                f"x: expected dtype float16, bfloat16, float32 or float64, got {view.dtype}"
            )
        if not view.shape:
            raise ValueError("x: expected at least 1 dimension, got 0")
        return view

    def _like(self, array: Any, name: str, x: View) -> View:
        view = self._view(array, name)
        check_dtype(view, name, x.dtype)
        check_shape(view, name, x.shape)
        return view

    def _parameters(self, x: View, channels: int, **arrays: Any) -> dict[str, View]:
        """View the parameters that are given, contiguous."""
        views = {}
        for name, array in arrays.items():
            if array is None:
                continue
            view = self._view(array, name)
            check_dtype(view, name, parameter_dtype(x.dtype))
            check_shape(view, name, (channels,), x.shape)
            views[name] = view if is_contiguous(view) else self._copied(view)
        return views

    def _statistics(self, x: View, channels: int, wide: bool, **arrays: Any) -> dict[str, View]:
        """View given statistics: of the parameters' dtype, or if `wide` of float64; both of one."""
        expected = dict.fromkeys((parameter_dtype(x.dtype), *(("float64",) if wide else ())))
        views = {}
        for name, array in arrays.items():
            if array is None:
                raise TypeError(f"{name}: expected an array of shape ({channels},), got None")
            view = self._view(array, name)
            check_dtype(view, name, *expected)
            check_shape(view, name, (channels,), x.shape)
            views[name] = view if is_contiguous(view) else self._copied(view)
        if len({view.dtype for view in views.values()}) > 1:
            for name, view in views.items():
                if view.dtype != "float64":
                    views[name] = self._library.view(
                        self._library.converted(view.array, "float64"), name
                    )
        return views

    def _running(self, x_dtype: str, channels: int, **arrays: Any) -> dict[str, View]:
        """View the running statistics, which are written in place: both or neither."""
        if all(array is None for array in arrays.values()):
            return {}
        views = {}
        for name, array in arrays.items():
            if array is None:
                raise TypeError(f"{name}: expected an array of shape ({channels},), got None")
            view = self._view(array, name)
            self._library.check_writable(array, name)
            check_dtype(view, name, parameter_dtype(x_dtype))
            check_shape(view, name, (channels,))
            if view.read_only or not is_contiguous(view):
                raise ValueError(
                    f"{name}: expected a writeable, contiguous array, got one that is not"
                )
            views[name] = view._replace(array=array)
        return views

    def _out(self, out: Any, x: View, inputs: Mapping[str, View]) -> View | None:
        if out is None:
            return None
        view = self._like(out, "out", x)
        self._library.check_writable(out, "out")
        if view.read_only:
            raise ValueError("out: expected a writeable array, got a read-only one")
        overlapping = "itself" if overlaps_itself(view) else ""
        for name, other in inputs.items():
            if not overlapping and overlap(view, other):
                overlapping = name
        if overlapping:
            raise ValueError(
                f"out: expected memory of its own, got an array that overlaps {overlapping}"
            )
        return view._replace(array=out)

    def _taken_back(self, dy: Any, x: Any, saved: Any) -> tuple[View, View, int]:
        """View x and dy, both as `saved` says; with the axis of the channels."""
        self._check_saved(saved, "x")
        data = self._data(x)
        if saved.shape != data.shape:
            raise ValueError(
                f"saved: made from an input of shape {saved.shape}, got x of shape {data.shape}"
            )
        if saved._dtype_name != data.dtype:
            raise ValueError(f"saved: made from a {saved._dtype_name} input, got x of {data.dtype}")
        return data, self._like(dy, "dy", data), saved.channel_axis

    def _check_saved(self, saved: Any, name: str) -> None:
        """TypeError unless `saved` is of this library and device, as the array `name` is."""
        if isinstance(saved, _core.Saved):
            raise TypeError(f"saved: made from an input on the CPU, got {name} on {self._where}")
        if not isinstance(saved, DeviceSaved):
            got = type(saved).__name__
            raise TypeError(f"saved: expected what batch_norm_forward returned, got {got}")
        if problem := self.misplaced(saved._statistics):
            raise TypeError(f"saved: {problem}")

    # --- memory -----------------------------------------------------------------------------------

    def _empty(self, shape: tuple[int, ...], dtype: str, x: View) -> Any:
        return self._library.empty(shape, dtype, x.array)

    def _like_view(self, x: View) -> View:
        return self._library.view(self._library.empty_like(x.array), "out")

    def _copied(self, view: View, into: View | None = None) -> View:
        """Copy in C order, or where a view is given, into that."""
        if into is None:
            into = self._library.view(self._empty(view.shape, view.dtype, view), "out")
        self._library.copy_into(into.array, view.array)
        return into

    # --- launching --------------------------------------------------------------------------------

    def _fitted(
        self, operation: str, inputs: list[View], axis: int, out: View | None = None,
        *, writes: bool = True,
    ) -> tuple[Any, list[View]]:  # fmt: skip
        """Plan, for the inputs or copies of them and a target; returns those operands as well."""
        refusal: Exception | None = None
        for candidates in self._walkable(inputs, axis):
            for target in self._targets(candidates[0], out) if writes else (None,):
                operands = candidates if target is None else [*candidates, target]
                try:
                    return self._plan(operation, operands, axis), operands
                except ValueError as error:
                    if not str(error).startswith("layout:"):
                        raise
                    refusal = error
        assert refusal is not None
        raise refusal

    def _targets(self, x: View, out: View | None) -> Iterator[View]:
        if out is not None:
            yield out
        yield self._like_view(x)

    def _walkable(self, inputs: list[View], axis: int) -> Iterator[list[View]]:
        """Offer the inputs, then copies of what is in the way: in x's memory order, in C order."""
        yield inputs
        x, *others = inputs
        try:
            self._plan("collect_stats", [x], axis)
        except ValueError:
            x = self._copied(x, into=self._like_view(x))
        yield [x, *(self._copied(other, into=self._like_view(x)) for other in others)]
        yield [self._copied(view) for view in inputs]

    def _plan(self, operation: str, operands: list[View], axis: int) -> Any:
        x = operands[0]
        return self._kernels.plan(
            operation, x.dtype, x.shape, [view.strides for view in operands],
            [view.address for view in operands], axis, _limits(self._kernels, self._device),
        )  # fmt: skip

    def _launch(self, plan: Any, x: View, views: Mapping[str, View], **numbers: Any) -> None:
        if plan.workspace_bytes:
            floats = -(-(plan.workspace_bytes + WORKSPACE_ALIGNMENT) // SIZES["float32"])
            workspace = self._library.view(self._empty((floats,), "float32", x), "workspace")
            numbers["workspace"] = -(-workspace.address // WORKSPACE_ALIGNMENT)
            numbers["workspace"] *= WORKSPACE_ALIGNMENT
        stream = self._library.stream(x, self._device)
        for name, view in views.items():
            if view.stream not in (None, stream):
                raise ValueError(
                    f"{name}: expected an array on the stream of x ({stream}), got one on stream "
                    f"{view.stream}"
                )
        addresses = {name: view.address for name, view in views.items()}
        self._kernels.launch(plan, self._device, stream, **addresses, **numbers)

    def _count_writes(self, *arrays: Any) -> None:
        for array in arrays:
            if array is not None:
                self._library.count_write(array)

    def _result(self, out: View | None, target: View) -> Any:
        if out is None:
            return target.array
        if out is not target:
            self._library.copy_into(out.array, target.array)
        self._library.count_write(out.array)
        return out.array

    def _saved(
        self, statistics: Any, x: View, axis: int, eps: float, *, count: int | None,
        of_group: _core.Saved | None = None,
    ) -> DeviceSaved:  # fmt: skip
        """Make what backward needs; a count of None says that the statistics are constants."""
        return DeviceSaved(
            statistics, str(self._where), count=count or 0, eps=eps, shape=x.shape,
            dtype=x.array.dtype, dtype_name=x.dtype, channel_axis=axis,
            batch_statistics=count is not None, of_group=of_group,
        )  # fmt: skip


def parameter_dtype(x_dtype: str) -> str:
    """Name the dtype of parameters beside data of that dtype."""
    return "float64" if x_dtype == "float64" else "float32"


def count_of(shape: tuple[int, ...], axis: int) -> int:
    """Count the values of one channel."""
    return math.prod(shape[:axis] + shape[axis + 1 :])


def check_dtype(view: View, name: str, *expected: str) -> None:
    """Refuse other dtypes."""
    if view.dtype not in expected:
        raise TypeError(f"{name}: expected dtype {' or '.join(expected)}, got {view.dtype}")


def check_shape(view: View, name: str, expected: tuple[int, ...], x: tuple[int, ...] = ()) -> None:
    """Refuse other shapes; for a vector of channels, name the axis of `x` that it would fit."""
    if view.shape == expected:
        return
    text = f"{name}: expected shape {expected}, got {view.shape}"
    for axis in (-1, 1):
        if x[axis : axis + 1 or None] == view.shape:
            text += f" (axis {axis} of x has {view.shape[0]}: channel_axis={axis})"
            break
    raise ValueError(text)
