"""Docstrings of classes that differ from another one in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

__all__ = ["with_sections_of"]

Class = TypeVar("Class", bound=type)
FIRST = "Parameters\n----------\n"


def with_sections_of(other: type) -> Callable[[Class], Class]:
    """Add to a class's docstring the sections of another class's, from its parameters on.

    Parameters
    ----------
    other : type
        Has the sections, and the same parameters.

    Returns
    -------
    callable
        A decorator of classes.
    """

    def decorate(kind: Class) -> Class:
        sections = inspect.cleandoc(other.__doc__ or "").partition(FIRST)
        if kind.__doc__ and sections[2]:  # Python may have been told to drop docstrings
            kind.__doc__ = f"{inspect.cleandoc(kind.__doc__)}\n\n{sections[1]}{sections[2]}\n"
        return kind

    return decorate
