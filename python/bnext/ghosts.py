"""Ghost batches: consecutive parts of a training batch that are normalized each by itself.

The noise of small batches' statistics is then there also where batches are large (Hoffer, Hubara
and Soudry 2017, "Train longer, generalize better", algorithm 1). Each ghost is a batch to the
layer: it moves the running statistics by the estimator's weight, one after the other, and is
counted. `bnext.spine` performs both passes, over views along the first axis.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnext import _core, spine
from bnext.arguments import count_of
from bnext.arrays.libraries import library_of

__all__ = ["GhostSaved", "check_size", "cuts_of", "forward"]


def check_size(value: Any) -> int | None:
    """Give `ghost_batch_size` as a number of examples, or None."""
    return None if value is None else count_of(value, "ghost_batch_size", 1)


def cuts_of(examples: int, size: int, values: int) -> list[slice]:
    """Cut a batch into ghosts of `size` examples, the last one of what remains.

    Parameters
    ----------
    examples : int
        In the batch.
    size : int
        Examples in a ghost.
    values : int
        Values per channel in an example. A last ghost of one value per channel, which has no
        variance, is joined to the ghost before it.

    Returns
    -------
    list of slice
        Of the first axis; one, of the whole batch, if it is no larger than a ghost.
    """
    if examples <= size:
        return [slice(0, examples)]
    if size * values == 1:
        raise ValueError(
            "ghost_batch_size: expected ghosts of more than 1 value per channel, got ghosts of 1 "
            "example that has 1"
        )
    starts = [*range(0, examples, size)]
    if (examples - starts[-1]) * values == 1:
        del starts[-1]
    return [slice(*pair) for pair in zip(starts, [*starts[1:], examples], strict=True)]


class GhostSaved:
    """What a forward call over ghosts leaves for its backward call."""

    batch_statistics = True

    def __init__(self, cuts: list[slice], parts: list[Any], shape: tuple[int, ...]) -> None:
        self.cuts: list[slice] = cuts
        self.parts: list[Any] = parts
        self.shape: tuple[int, ...] = shape
        self.dtype: Any = parts[0].dtype
        self.reads_residual: bool = parts[0].reads_residual
        self.residual: bool = parts[0].residual
        self.in_place: bool = parts[0].in_place

    def backward(
        self, dy: Any, x: Any, weight: Any, out: Any, sums: str, residual: Any
    ) -> tuple[Any, ...]:
        """Do `spine.backward`, ghost by ghost; gradients of parameters add up in float64."""
        gradient = _on_the_cpu(dy, "dy")
        _check_shape("dy", gradient, self.shape)
        given, added = _on_the_cpu(x, "x"), _on_the_cpu(residual, "residual")
        dx = _target(out, gradient, ("dy", gradient), ("x", given))
        makes_dresidual = self.residual and self.parts[0].activation is not None
        dresidual = np.empty_like(gradient) if makes_dresidual else None
        totals: list[Any] = [None, None]
        for cut, saved in zip(self.cuts, self.parts, strict=True):
            _, *found = spine.backward(
                gradient[cut], given[cut], saved, weight, dx[cut],
                residual=None if added is None else added[cut],
            )  # fmt: skip
            if dresidual is not None:
                dresidual[cut] = found[2]
            for place, (total, more) in enumerate(zip(totals, found[:2], strict=True)):
                totals[place] = _sum(total, more)
        gradients = [_like(total, more) for total, more in zip(totals, found[:2], strict=True)]
        result = _given_back(dx, out, dy), *gradients
        if not self.residual:
            return result
        return *result, dy if dresidual is None else _given_back(dresidual, None, dy)

    def recompute(self, x: Any, residual: Any, out: Any) -> Any:
        """Do `spine.recompute`, ghost by ghost."""
        given, added = _on_the_cpu(x, "x"), _on_the_cpu(residual, "residual")
        _check_shape("x", given, self.shape)
        y = _target(out, given, ("x", given), ("residual", added))
        for cut, saved in zip(self.cuts, self.parts, strict=True):
            spine.recompute(given[cut], saved, None if added is None else added[cut], y[cut])
        return _given_back(y, out, x)


def forward(
    x: Any, weight: Any, bias: Any, eps: Any, channel_axis: Any, out: Any, moved: Any,
    epilogue: Any, size: int,
) -> tuple[Any, GhostSaved] | None:  # fmt: skip
    """Do `spine.forward` by the statistics of ghosts of `size` examples; None for one ghost.

    Parameters
    ----------
    x, weight, bias, eps, channel_axis, out, moved, epilogue
        As `spine.forward` takes them; `x` on the CPU.
    size : int
        Examples in a ghost.

    Returns
    -------
    tuple
        y, and a `GhostSaved`.
    """
    given = _on_the_cpu(x, "x")
    axis = _core.check_axis(channel_axis, given.ndim)
    if axis == 0:
        raise ValueError(
            "ghost_batch_size: expected None for channels at axis 0, where examples would be, got "
            f"{size}"
        )
    channels = given.shape[axis]
    values = math.prod(given.shape[1:]) // channels if channels else 1
    cuts = cuts_of(given.shape[0], size, values)
    if len(cuts) == 1:
        return None
    residual, *after = epilogue or (None, None, 0.0)
    added = _on_the_cpu(residual, "residual")
    if added is not None:
        _check_shape("residual", added, given.shape)
    y = _target(out, given, ("x", given), ("residual", added), ("weight", weight), ("bias", bias))
    parts = []
    for cut in cuts:
        then = epilogue and (None if added is None else added[cut], *after)
        saved = spine.forward(
            given[cut], weight, bias, eps, channel_axis, y[cut], moved=moved, epilogue=then
        )[1]
        parts.append(saved)
    return _given_back(y, out, x), GhostSaved(cuts, parts, given.shape)


# --- arrays ---------------------------------------------------------------------------------------


def _on_the_cpu(array: Any, name: str) -> Any:
    """Give an array of any library as one of NumPy's on the same memory."""
    if array is None or type(array) is np.ndarray:
        return array
    library = library_of(array)
    if library is None:
        return _core.as_array(array, name)
    if library.where(array).kind != "cpu":
        raise ValueError(
            f"ghost_batch_size: expected None for arrays on a GPU, got {name} on "
            f"{library.where(array)}"
        )
    return library.adopt(array, name)


def _target(out: Any, values: Any, *inputs: tuple[str, Any]) -> Any:
    """Make an array for a result, or take `out`, which may be the first of the inputs itself."""
    if out is None:
        return np.empty_like(values)
    library = library_of(out)
    if library is not None:
        library.check_writable(out, "out")
    elif not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a numpy array, got {type(out).__name__}")
    target = _on_the_cpu(out, "out")
    _check_shape("out", target, values.shape)
    if target.dtype != values.dtype:
        raise TypeError(f"out: expected dtype {values.dtype}, got {target.dtype}")
    for place, (name, array) in enumerate(inputs):
        if not isinstance(array, np.ndarray) or not np.may_share_memory(target, array):
            continue
        is_itself = place == 0 and (
            target.__array_interface__["data"][0] == array.__array_interface__["data"][0]
            and target.strides == array.strides
        )
        if not is_itself and np.shares_memory(target, array):
            raise ValueError(f"out: expected memory of its own, got an array that overlaps {name}")
    return target


def _check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")


def _given_back(values: Any, out: Any, like: Any) -> Any:
    """Give a result as an array of the library of `like`, or as `out`."""
    library = library_of(like if out is None else out)
    if out is not None:
        if library is not None:
            library.count_writes((out,))
        return out
    return values if library is None else library.wrap(values)


def _sum(total: Any, more: Any) -> Any:
    if more is None:
        return None
    values = np.asarray(more, np.float64)
    return values if total is None else total + values


def _like(total: Any, more: Any) -> Any:
    """Give sums in float64 as an array like `more`."""
    if total is None:
        return None
    values = total.astype(np.asarray(more).dtype)
    library = library_of(more)
    return values if library is None else library.from_numpy(values, more)
