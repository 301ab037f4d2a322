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
from bnext.arrays.libraries import Library, View, Where, library_of
from bnext.arrays.saved import DeviceSaved

__all__ = ["CudaArrays", "count_of", "parameter_dtype"]

WORKSPACE_ALIGNMENT = 256
BYTES_OF_FLOAT32 = 4
RUNNING = ("running_mean", "running_var")
MOVES = ("forward", "collect_stats", "move_running")  # what writes the running statistics
REQUIRED = ("x", "dy", "rows")
ON_HOST = ("sum_dy", "sum_dy_xmu")  # what a group has merged
VECTORS = ("weight", "bias", "mean", "var", *RUNNING)


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
        self._calls_of_layers: Any = library.calls_of_layers(self._kernels)

    # --- what layers ask --------------------------------------------------------------------------

    def inspect(self, x: Any) -> tuple[tuple[int, ...], str]:
        """Give shape and name of the dtype."""
        view = self._library.view(x, "x")
        return view.shape, view.dtype

    def as_array(self, x: Any, name: str) -> Any:
        """Give x as an array, which it is."""
        return x

    def misplaced(self, array: Any, like: Any = None) -> str:
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
        if view.address and self._library.where(array).index < 0:  # only its address tells
            where = Where("cuda", self._kernels.device_of(view.address))
            if where != self._where:
                raise TypeError(
                    f"{name}: expected an array on {self._where}, like x, got one on {where}"
                )
        return view

    def _taken(
        self, call: str, arrays: Mapping[str, Any], saved: DeviceSaved | None = None,
        **others: Any,
    ) -> tuple[dict[str, View], int]:  # fmt: skip
        """View and check the arrays of a call that are given; with the axis of the channels.

        Vectors of channels are made contiguous, and those that are written are so already.
        """
        views = {
            name: self._view(array, name)
            for name, array in arrays.items()
            if name in REQUIRED or (array is not None and name not in ON_HOST)
        }
        may_be_written = ("out", *RUNNING) if call in MOVES else ("out",)
        written = [name for name in may_be_written if name in views]
        for name in written:
            self._library.check_writable(arrays[name], name)
        made_from = None
        if saved is not None:
            axis, by_batch = saved.channel_axis, saved.batch_statistics
            made_from = (saved._dtype_name, saved.shape, axis, by_batch)
        all_of_them = views | {name: arrays[name] for name in ON_HOST if name in arrays}
        axis = _core.check_call(call, all_of_them, made_from, **others)
        for name, view in views.items():
            if name in written:
                views[name] = view._replace(array=arrays[name])
            elif name in VECTORS and not is_contiguous(view):
                views[name] = self._copied(view)
        return views, axis

    def _taken_back(
        self, call: str, dy: Any, x: Any, saved: Any, weight: Any, out: Any, **sums: Any
    ) -> tuple[dict[str, View], int]:
        """View and check what a backward pass takes; see `_taken`."""
        self._check_saved(saved, "x")
        return self._taken(call, {"dy": dy, "x": x, "weight": weight, "out": out} | sums, saved)

    def _of_one_dtype(self, statistics: dict[str, View]) -> dict[str, View]:
        """Make both float64, if one is."""
        if len({view.dtype for view in statistics.values()}) > 1:
            for name, view in statistics.items():
                if view.dtype != "float64":
                    wide = self._library.converted(view.array, "float64")
                    statistics[name] = self._library.view(wide, name)
        return statistics

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
                except self._kernels.LayoutError as error:
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
            floats = -(-(plan.workspace_bytes + WORKSPACE_ALIGNMENT) // BYTES_OF_FLOAT32)
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
        self._library.count_writes(tuple(array for array in arrays if array is not None))

    def _result(self, out: View | None, target: View) -> Any:
        if out is None:
            return target.array
        if out is not target:
            self._library.copy_into(out.array, target.array)
        self._library.count_writes((out.array,))
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


def is_contiguous(view: View) -> bool:
    """Whether the elements follow each other in C order."""
    if view.strides == (1,):  # what nearly every parameter has
        return True
    expected = 1
    for extent, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True
