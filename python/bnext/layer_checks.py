"""What a layer looks at before a call: rank, dtype, channels and place of its input."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext import _core

__all__ = ["ARRAYS", "ChecksMixin"]

Array = npt.NDArray[Any]

ARRAYS = ("weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var")


class ChecksMixin:
    """Checks of a layer that has `num_features`, `channel_axis`, `dtype` and the `ARRAYS`."""

    _ranks: ClassVar[tuple[int, ...]] = ()  # which ranks of input are taken; empty: any
    num_features: int
    channel_axis: int
    dtype: np.dtype[Any]

    def _checked(self, x: npt.ArrayLike) -> Array:
        # Subclasses of ndarray go through: _core refuses masks, which asarray would drop.
        array = x if isinstance(x, np.ndarray) else _core.as_array(x, "x")
        shape, dtype, ranks, axis = array.shape, array.dtype, self._ranks, self.channel_axis
        rank = len(shape)
        if ranks and rank not in ranks:
            raise self._wrong_rank(rank)
        # Usually there is one object for each dtype; to compare what they say takes longer.
        if dtype is not self.dtype and dtype != self.dtype and not self._takes(dtype):
            raise self._wrong_dtype(dtype)
        if -rank <= axis < rank and shape[axis] != self.num_features:
            raise self._wrong_channels(shape)
        return array

    def _checked_elsewhere(self, x: Any, engine: Any) -> Any:
        """Check an array of another library."""
        shape, dtype = engine.inspect(x)
        rank, axis = len(shape), self.channel_axis
        if self._ranks and rank not in self._ranks:
            raise self._wrong_rank(rank)
        is_wide = self.dtype == np.float32
        if dtype != self.dtype.name and not (is_wide and dtype in ("float16", "bfloat16")):
            raise self._wrong_dtype(dtype)
        if -rank <= axis < rank and shape[axis] != self.num_features:
            raise self._wrong_channels(shape)
        return x

    def _check_places(self, engine: Any) -> None:
        """Say which of the layer's arrays is not where x is, if a call has failed for that."""
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None and (problem := engine.misplaced(array)):
                raise TypeError(f"{name}: {problem}; the layer's to(x) moves it")

    def _wrong_rank(self, rank: int) -> ValueError:
        expected = " or ".join(f"{n}D" for n in self._ranks)
        return ValueError(f"expected {expected} input (got {rank}D input)")

    def _wrong_dtype(self, dtype: Any) -> TypeError:
        also = ", float16 or bfloat16" if self.dtype == np.float32 else ""
        remedy = f"convert x to {self.dtype}, as x.astype(np.{self.dtype})"
        if str(dtype) in ("float32", "float64"):
            remedy += f", or make the layer with dtype=np.{dtype}"
        return TypeError(f"x: expected dtype {self.dtype}{also}, got {dtype} ({remedy})")

    def _wrong_channels(self, shape: tuple[int, ...]) -> ValueError:
        expected, axis = self.num_features, self.channel_axis
        text = f"x: expected {expected} channels at axis {axis}, got {shape[axis]}"
        for other in (-1, 1):  # where libraries have them
            if -len(shape) <= other < len(shape) and shape[other] == expected:
                text += (
                    f" (axis {other} has {expected}: a layer for that order is made with "
                    f"channel_axis={other})"
                )
                break
        return ValueError(text)

    def _takes(self, dtype: np.dtype[Any]) -> bool:
        """Whether x may be of a dtype other than the layer's: 16 bits under float32 parameters."""
        return self.dtype == np.float32 and dtype.itemsize == 2 and _core.is_data_dtype(dtype)
