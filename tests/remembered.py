"""Expectations are computed once for all that is compared with them: they are known by their bits.

A test whose body runs in every environment (conftest.py) draws the same data in each.
"""

import functools
import sys

import numpy as np

LATEST = 64  # results of a function that are kept
MOST_BYTES = 1 << 26  # that arguments and results of a function may have together
LARGEST = 1 << 22  # bytes of an array beyond which nothing is


def known(value):
    """What stands for an argument: arrays are equal where dtype, shape and bits are."""
    if isinstance(value, np.ndarray) and value.nbytes <= LARGEST:
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, int | float | str | type | np.generic | None):
        return value
    raise TypeError


def size_of(value):
    """Bytes of an array or of what stands for it, or of several."""
    if isinstance(value, tuple):
        return sum(map(size_of, value))
    return value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)


def remembered(function):
    """`function`, which returns new arrays, and the same ones again for arguments of equal bits."""
    latest = {}
    sizes = {}

    @functools.wraps(function)
    def wrapper(*given, **options):
        try:
            key = tuple(map(known, (*given, *options, *options.values())))
        except TypeError:
            return function(*given, **options)
        if (result := latest.get(key)) is None:
            result = latest[key] = function(*given, **options)
            arrays = result if isinstance(result, tuple) else (result,)
            for each in arrays:
                np.asarray(each).flags.writeable = False  # several tests are given it
            sizes[key] = size_of((key, arrays))
            while len(sizes) > LATEST or sum(list(sizes.values())) > MOST_BYTES:
                oldest = next(iter(list(sizes)), None)
                latest.pop(oldest, None)
                sizes.pop(oldest, None)
        return result

    return wrapper
