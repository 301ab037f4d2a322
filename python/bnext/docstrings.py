"""Docstrings of classes that differ from another one in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

__all__ = ["with_sections_of"]

Class = TypeVar("Class", bound=type)
FIRST = "Parameters\n----------\n"


def with_sections_of(other: type) -> Callable[[Class], Class]:
    """Decorate a class: append the docstring of `other`, from its parameters on."""

    def decorate(kind: Class) -> Class:
        sections = inspect.cleandoc(other.__doc__ or "").partition(FIRST)
        if kind.__doc__ and sections[2]:  # Python may have been told to drop docstrings
            kind.__doc__ = f"{inspect.cleandoc(kind.__doc__)}\n\n{sections[1]}{sections[2]}\n"
        return kind

    return decorate
