"""What a layer looks at before a call: rank, dtype, channels and place of its input."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bnext import _core

__all__ = ["ARRAYS", "ChecksMixin"]

ARRAYS = ("weight", "bias", "weight_grad", "bias_grad", "running_mean", "running_var")


class ChecksMixin:
    """Checks of a layer that has `num_features`, `channel_axis`, `dtype` and the `ARRAYS`."""

    _ranks: ClassVar[tuple[int, ...]] = ()  # which ranks of input are taken; empty: any
    num_features: int
    channel_axis: int
    dtype: np.dtype[Any]

    def _checked(self, x: Any, engine: Any) -> Any:
        # Subclasses of ndarray go through: _core refuses masks, which asarray would drop.
        array = x if isinstance(x, np.ndarray) else engine.as_array(x, "x")
        ranks, axis = self._ranks, self.channel_axis
        if isinstance(array, np.ndarray):
            shape, dtype = array.shape, array.dtype
            # Usually there is one object for each dtype; to compare what they say takes longer.
            fits = dtype is self.dtype or dtype == self.dtype or self._takes(dtype)
        else:
            shape, dtype = engine.inspect(array)
            is_wide = self.dtype == np.float32
            fits = dtype == self.dtype.name or (is_wide and dtype in ("float16", "bfloat16"))
        rank = len(shape)
        if ranks and rank not in ranks:
            raise self._wrong_rank(rank)
        if not fits:
            raise self._wrong_dtype(dtype)
        if -rank <= axis < rank and shape[axis] != self.num_features:
            raise self._wrong_channels(shape)
        return array

    def _check_places(self, x: Any, engine: Any) -> None:
        """Say which of the layer's arrays is not where x is, if a call has failed for that."""
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None and (problem := engine.misplaced(array, x)):
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
