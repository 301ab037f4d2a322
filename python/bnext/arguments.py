"""Arguments that are not input data: counts, indices, values of state dicts; errors name them."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.arrays.libraries import to_numpy

__all__ = [
    "amount_of",
    "chosen_names",
    "count_of",
    "counter_of",
    "has_mask",
    "index_of",
    "refuse_mask",
    "values_of",
]

LARGEST_COUNTER = int(np.iinfo(np.int64).max)


def index_of(value: Any, name: str) -> int:
    """Give an integer of any type as Python's; TypeError for anything else, also True and 2.0."""
    refuse_mask(value, name)
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None


def count_of(value: Any, name: str, least: int = 0) -> int:
    """Give a count as Python's integer, which never overflows; ValueError below `least`."""
    try:
        count = index_of(value, name)
    except TypeError:
        refuse_mask(value, name)
        raise TypeError(f"{name}: expected an integer >= {least}, got {_text(value)}") from None
    if count < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {count}")
    return count


def amount_of(value: Any, name: str) -> int | float:
    """Give a count that may be a sum of weights: an integer where it is whole, else a float.

    ValueError if it is negative or not finite, TypeError if it is no number.
    """
    refuse_mask(value, name)
    if isinstance(value, float | np.floating):
        if math.isfinite(value) and value >= 0:
            return int(value) if float(value).is_integer() else float(value)
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return count_of(value, name)


def counter_of(value: Any, name: str) -> int:
    """Give a layer's counter, from an integer or a whole number of any library and dtype.

    ValueError if it is not one whole number from 0 that int64 holds.
    """
    array = values_of(value, name)
    if array.size != 1:
        raise ValueError(f"{name}: expected one count of batches, got an array of {array.shape}")
    number = array.reshape(()).item()
    expected = f"{name}: expected a count of batches, an integer from 0 to {LARGEST_COUNTER}"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{expected}, got {_text(number)}")
    # NaN and infinity are no integers either.
    if isinstance(number, float) and not number.is_integer():
        raise ValueError(f"{expected}, got {number}")
    if not 0 <= number <= LARGEST_COUNTER:
        raise ValueError(f"{expected}, got {number}")
    return int(number)


def has_mask(value: Any) -> bool:
    """Whether it is a masked array, or a list with one in it: NumPy would drop the mask."""
    if isinstance(value, list | tuple):
        return any(map(has_mask, value))
    return isinstance(value, np.ma.MaskedArray)


def refuse_mask(value: Any, name: str) -> None:
    """TypeError for a masked array."""
    if has_mask(value):
        raise TypeError(
            f"{name}: expected an array without a mask, got a MaskedArray ({name}.filled(value) "
            "has none)"
        )


def values_of(value: Any, name: str) -> npt.NDArray[Any]:
    """Copy an array of any library, from wherever it lies, to NumPy's; no mask is dropped."""
    refuse_mask(value, name)
    return to_numpy(value)


def chosen_names(given: str | Collection[str], name: str, known: Collection[str]) -> frozenset[str]:
    """Give names as a set: of "all", every one, of another string, itself."""
    if given == "all":
        return frozenset(known)
    try:
        chosen = frozenset((given,) if isinstance(given, str) else given)
    except TypeError:
        chosen = frozenset([given])  # type: ignore[list-item]
    for each in sorted(chosen, key=str):
        if each not in known:
            names = ", ".join(map(repr, known))
            raise ValueError(
                f"{name}: expected 'all' or names among {names}, alone or in a collection, got "
                f"{each!r}"
            )
    return chosen


def _text(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    is_number = isinstance(value, int | float | complex | np.generic)
    return f"{value}" if is_number else type(value).__name__
