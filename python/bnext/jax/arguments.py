"""Arguments of functions, as arrays, and as the check of all calls takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

__all__ = ["array_of", "arrays_of", "described"]


def arrays_of(**given: Any) -> list[Any]:
    """Give each argument as an array; None stays None."""
    return [each if each is None else array_of(each, name) for name, each in given.items()]


def array_of(given: Any, name: str) -> Any:
    """Give an argument as an array; a TypeError names it."""
    try:
        return jnp.asarray(given)
    except TypeError as error:
        got = type(given).__name__
        raise TypeError(f"{name}: expected an array, got {got}: {error}") from error


def described(arrays: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Give name, shape and dtype of each array that is not None."""
    return [
        (name, array.shape, str(array.dtype)) for name, array in arrays.items() if array is not None
    ]
