"""Expectations are computed once for all that is compared with them: they are known by their bits.

A test whose body runs in every environment (conftest.py) draws the same data in each.
"""

import functools

import numpy as np

LATEST = 16  # results of a function that are kept
LARGEST = 1 << 22  # bytes of an array beyond which nothing is


def known(value):
    """What stands for an argument: arrays are equal where dtype, shape and bits are."""
    if isinstance(value, np.ndarray) and value.nbytes <= LARGEST:
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, int | float | str | type | np.generic | None):
        return value
    raise TypeError


def remembered(function):
    """`function`, which returns new arrays, and the same ones again for arguments of equal bits."""
    latest = {}

    @functools.wraps(function)
    def wrapper(*given, **options):
        try:
            key = tuple(map(known, (*given, *options, *options.values())))
        except TypeError:
            return function(*given, **options)
        if (result := latest.get(key)) is None:
            result = latest[key] = function(*given, **options)
            for each in result if isinstance(result, tuple) else (result,):
                np.asarray(each).flags.writeable = False  # several tests are given it
            for oldest in list(latest)[:-LATEST]:
                latest.pop(oldest, None)
        return result

    return wrapper
