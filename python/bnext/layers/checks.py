"""Checks of a layer before a call: rank, dtype, channels and place of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from bnext import _core
from bnext.arrays import engine_of
from bnext.groups.group import ALONE, Part
from bnext.row_passes import check_place

if TYPE_CHECKING:
    from bnext.layers.cells import CellNormalization
    from bnext.layers.holder import Holder
    from bnext.layers.normalization import Normalization

__all__ = ["ARRAYS", "check_places", "check_residual_grad", "taken", "taken_by_rows"]

ARRAYS = ("weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var")
SIXTEEN_BITS = ("float16", "bfloat16")


def taken(
    layer: Normalization | CellNormalization, x: Any, *, any_channels: bool = False
) -> tuple[Any, Any]:
    """Check that the layer takes `x`; give it as an array, and the engine that computes on it."""
    engine: Any = _core
    if type(x) is not ndarray:
        engine = engine_of(x)
        if not isinstance(x, ndarray):  # whose subclasses go through: as_array would drop masks
            x = engine.as_array(x=x, name="x")
    if layer.in_place and engine is not _core:
        raise ValueError("in_place: expected False for an input on a GPU, got True")
    if isinstance(x, ndarray):
        shape, dtype = x.shape, x.dtype
        # Usually there is one object for each dtype; to compare what they say takes longer.
        fits = dtype is layer.dtype or _fits(layer, dtype)
    else:
        shape, dtype = engine.inspect(x=x)
        fits = dtype == layer.dtype.name or (layer.dtype == np.float32 and dtype in SIXTEEN_BITS)
    rank, ranks, axis = len(shape), layer.ranks, layer.channel_axis
    if ranks and rank not in ranks:
        expected = " or ".join(f"{n}D" for n in ranks)
        raise ValueError(f"expected {expected} input (got {rank}D input)")
    if not fits:
        raise _wrong_dtype(layer, dtype)
    if -rank <= axis < rank and shape[axis] != layer.num_features and not any_channels:
        raise _wrong_channels(layer, shape)
    return x, engine


def taken_by_rows(layer: Holder, x: Any, part: Part) -> tuple[Any, Any]:
    """Check that a layer that normalizes rows takes `x`; give it, and the engine as `taken` does.

    In a group, `x` has to be on the CPU.
    """
    engine: Any = _core
    if type(x) is not ndarray:
        if part is not ALONE:
            check_place(x)
        engine = engine_of(x)
        if not isinstance(x, ndarray):
            x = engine.as_array(x=x, name="x")
    if isinstance(x, ndarray):
        fits, dtype = _fits(layer, x.dtype), x.dtype
    else:
        _, dtype = engine.inspect(x=x)
        fits = dtype == layer.dtype.name or (layer.dtype == np.float32 and dtype in SIXTEEN_BITS)
    if not fits:
        raise _wrong_dtype(layer, dtype)
    if engine is not _core:
        check_places(layer, x, engine)
    return x, engine


def check_places(layer: Holder, x: Any, engine: Any) -> None:
    """TypeError that names the array of the layer that is not where x is, if there is one."""
    for name in ARRAYS:
        array = getattr(layer, name, None)  # rows have no running statistics
        if array is not None and (problem := engine.misplaced(array=array, like=x)):
            raise TypeError(f"{name}: {problem}; the layer's to(x) moves it")


def check_residual_grad(expected: bool, saved: Any) -> None:
    """ValueError unless the forward call had a residual, or none, as a backward call expects it."""
    had = getattr(saved, "residual", False)
    if bool(expected) is not had:
        which = "a" if had else "no"
        raise ValueError(
            f"residual_grad: expected {had} or None, since the forward call had {which} "
            f"residual, got {expected!r}"
        )


def _fits(layer: Holder, dtype: np.dtype[Any]) -> bool:
    """Whether x may be of this dtype: the layer's, or 16 bits under float32 parameters."""
    is_wide = layer.dtype == np.float32
    return dtype == layer.dtype or (
        is_wide and dtype.itemsize == 2 and _core.is_data_dtype(dtype=dtype)
    )


def _wrong_dtype(layer: Holder, dtype: Any) -> TypeError:
    also = ", float16 or bfloat16" if layer.dtype == np.float32 else ""
    remedy = f"convert x to {layer.dtype}, as x.astype(np.{layer.dtype})"
    if str(dtype) in ("float32", "float64"):
        remedy += f", or make the layer with dtype=np.{dtype}"
    return TypeError(f"x: expected dtype {layer.dtype}{also}, got {dtype} ({remedy})")


def _wrong_channels(layer: Normalization | CellNormalization, shape: tuple[int, ...]) -> ValueError:
    expected, axis = layer.num_features, layer.channel_axis
    text = f"x: expected {expected} channels at axis {axis}, got {shape[axis]}"
    for other in (-1, 1):  # where libraries have them
        if -len(shape) <= other < len(shape) and shape[other] == expected:
            text += (
                f" (axis {other} has {expected}: a layer for that order is made with "
                f"channel_axis={other})"
            )
            break
    return ValueError(text)
