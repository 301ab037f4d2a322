"""Moments: the statistics of a batch as a value that can be merged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.arguments import amount_of, count_of, refuse_mask
from bnext.arrays.libraries import library_of
from bnext.rows import two_sum

__all__ = ["Moments"]

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each channel.

    Parameters
    ----------
    count : int or float
        Values per channel, the same for all channels; or the sum of their weights. A number of any
        type; a whole one is kept as Python's int, which never overflows, any other as a float.
    mean : array, shape (C,)
        Mean of each channel. Real numbers, kept as float64.
    m2 : array, shape (C,)
        Sum of squared deviations from the mean, of each channel. Real numbers, kept as float64.
    mean_low : array, shape (C,), optional
        Low part of the mean: the exact mean is ``mean + mean_low``. The union of two moments with
        low parts has one.

    On the CPU they become NumPy arrays. Those on a GPU stay as they are, and what is computed
    from them is there too.

    Raises
    ------
    ValueError
        `count` is negative or not finite, or `mean`, `m2` and `mean_low` are not vectors of one
        length.
    TypeError
        `count` is not a number; one of them is not of real numbers, or has a mask.

    Notes
    -----
    Two of them merge into the moments of both batches together (Chan, Golub, LeVeque 1979,
    eq. 2.1): with ``delta = mean_b - mean_a``,

        mean = mean_a + delta * n_b / (n_a + n_b)
        m2 = m2_a + m2_b + delta**2 * n_a * n_b / (n_a + n_b)

    Nothing cancels, as ``E[x**2] - mean**2`` would.
    """

    count: int | float
    mean: Float64Array
    m2: Float64Array
    mean_low: Float64Array | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", amount_of(self.count, "count"))
        object.__setattr__(self, "mean", _float64(self.mean, "mean"))
        shape = tuple(self.mean.shape)
        if len(shape) != 1:
            raise ValueError(f"mean: expected shape (C,), got {shape}")
        for name, given in (("m2", self.m2), ("mean_low", self.mean_low)):
            if name == "m2" or given is not None:
                row = _float64(given, name)
                if row.shape != shape:
                    raise ValueError(f"{name}: expected shape {shape}, got {tuple(row.shape)}")
                object.__setattr__(self, name, row)

    @classmethod
    def empty(cls, channels: int) -> Moments:
        """Moments of no values: what merging starts from.

        Parameters
        ----------
        channels : int
            How many channels.

        Returns
        -------
        Moments
            With count 0, and zeros of shape (C,).
        """
        channels = count_of(channels, "channels")
        return cls(0, np.zeros(channels), np.zeros(channels))

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return int(self.mean.shape[0])

    @property
    def var(self) -> Float64Array:
        """Biased variance ``m2 / count``, shape (C,); NaN of an empty batch."""
        return self._over(self.count)

    @property
    def unbiased_var(self) -> Float64Array:
        """Variance with Bessel's correction, ``m2 / (count - 1)``, shape (C,); NaN up to one."""
        return self._over(self.count - 1)

    def _over(self, divisor: float) -> Float64Array:
        with np.errstate(all="ignore"):  # NaN and infinity are values like others
            return self.m2 / divisor if divisor > 0 else self.m2 * math.nan

    def merge(self, other: Moments) -> Moments:
        """Moments of both batches together.

        Parameters
        ----------
        other : Moments
            Of as many channels.

        Returns
        -------
        Moments
            Neither operand changes.

        Raises
        ------
        ValueError
            `other` has another number of channels.
        TypeError
            `other` lies elsewhere, and neither is of no values.
        """
        if other.channels != self.channels:
            raise ValueError(f"other: expected {self.channels} channels, got {other.channels}")
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        if _place(other.mean) != _place(self.mean):
            mine, others = _place(self.mean), _place(other.mean)
            raise TypeError(f"other: expected moments in arrays of {mine}, got {others}")
        count = self.count + other.count
        share = other.count / count
        with np.errstate(all="ignore"):  # as the kernels, which say nothing of NaN and overflow
            delta = other.mean - self.mean
            low: Any = None
            if self.mean_low is not None and other.mean_low is not None:
                delta = delta + (other.mean_low - self.mean_low)
                mean, low = two_sum(self.mean, delta * share + self.mean_low)
            else:
                mean = self.mean + delta * share
            m2 = self.m2 + (other.m2 + delta * delta * (self.count * share))
        return Moments(count, mean, m2, low)

    def __add__(self, other: Moments) -> Moments:
        """Merge, as an operator; `sum` works with ``start=Moments.empty(C)``."""
        if not isinstance(other, Moments):
            return NotImplemented
        return self.merge(other)

    def __eq__(self, other: object) -> bool:
        """Compare counts, means and sums of squares, to the bit; waits for a GPU that has them."""
        if not isinstance(other, Moments):
            return NotImplemented
        mine, others = (self.mean, self.m2, self.mean_low), (other.mean, other.m2, other.mean_low)
        return self.count == other.count and all(map(_equal, mine, others))

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # holds arrays

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle through the constructor, so that the arrays stay read-only."""
        return (Moments, (self.count, self.mean, self.m2, self.mean_low))


def _float64(values: Any, name: str) -> Any:
    """Copy, read-only, on the CPU; what is on a GPU stays as it is, or is converted there."""
    refuse_mask(values, name)
    library = library_of(values)
    if library is None or library.where(values).kind == "cpu":
        given = np.asarray(values if library is None else library.adopt(values, name))
        if given.dtype.kind not in "fiu" and not _core.is_data_dtype(given.dtype):
            raise TypeError(f"{name}: expected an array of real numbers, got {given.dtype}")
        with np.errstate(all="ignore"):
            array = np.array(given, np.float64)
        array.flags.writeable = False
        return array
    wide = library.view(values, name).dtype == "float64"
    return values if wide else library.converted(values, "float64")


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    library = library_of(one)
    if library is not library_of(other) or one.shape != other.shape:
        return False
    if library is None:
        return np.array_equal(one, other)
    return library.where(one) == library.where(other) and bool((one == other).all())


def _place(array: Any) -> str:
    library = library_of(array)
    return "NumPy" if library is None else f"{library.name} on {library.where(array)}"
