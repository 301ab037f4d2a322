"""Subclasses in place of a user's class: another forward, and the name and pickles of the class."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

__all__ = ["Disguise", "disguised", "reduced"]


class Disguise:
    """Base of what stands before a user's class in the bases of such a subclass."""

    def __init_subclass__(cls, **named: Any) -> None:
        pass  # of no concern to the user's class, a registry say


def disguised(
    kind: Any, base: type[Disguise], forward: Callable[..., Any], **attributes: Any
) -> type:
    """Make a subclass of `base` and `kind` that has the name of `kind`."""
    body = {name: getattr(kind, name) for name in ("__doc__", "__module__", "__qualname__")}
    body |= {"forward": forward, **attributes}
    return types.new_class(kind.__name__, (base, kind), {}, lambda new: new.update(body))


def reduced(how: Any, disguise: type, kind: type, remake: Any, *more: Any) -> Any:
    """Give what ``__reduce_ex__`` gives, of the class that can be found by its name.

    `how` is what the classes behind `disguise` give. ``remake(function, arguments, *more)`` makes
    the object, and disguises it again.
    """
    if isinstance(how, str):
        return how
    function, arguments, *rest = how
    plain = tuple(kind if each is disguise else each for each in arguments)
    return remake, (function, plain, *more), *rest
