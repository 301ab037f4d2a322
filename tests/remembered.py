"""Expectations are computed once for all that is compared with them: they are known by their bits.

A test whose body runs in every environment (conftest.py) draws the same data in each.
"""

import functools

import numpy as np

LATEST = 16  # results of a function that are kept
LARGEST = 1 << 22  # bytes of an array beyond which nothing is


class Known:
    """An argument to look results up by: arrays are equal where dtype, shape and bits are."""

    def __init__(self, value):
        self.value = value
        self.key = (value.shape, value.dtype, value.tobytes()) if is_array(value) else value
        self.hash = hash(self.key)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return self.key == other.key


def is_array(value):
    return isinstance(value, np.ndarray)


def can_be_known(value):
    if is_array(value):
        return value.nbytes <= LARGEST
    return value is None or isinstance(value, int | float | str | type | np.generic)


def frozen(result):
    """Arrays that several tests are given; an assignment to one of them is an error."""
    for each in result if isinstance(result, tuple) else (result,):
        if is_array(each):
            each.flags.writeable = False
    return result


def remembered(function):
    """`function`, which returns new arrays, and the same ones again for arguments of equal bits."""

    @functools.lru_cache(maxsize=LATEST)
    def of_known(*given, **options):
        options = {name: each.value for name, each in options.items()}
        return frozen(function(*(each.value for each in given), **options))

    @functools.wraps(function)
    def wrapper(*given, **options):
        if not all(map(can_be_known, (*given, *options.values()))):
            return function(*given, **options)
        options = {name: Known(each) for name, each in options.items()}
        return of_known(*map(Known, given), **options)

    return wrapper
