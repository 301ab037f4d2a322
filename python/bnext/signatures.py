"""Arguments that are given by name only, at the price of positional ones.

CPython looks the default of each keyword-only argument up in a dict when a call leaves it out: ten
of them take a twentieth of a small call. Defaults of other arguments are copied.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn, TypeVar

__all__ = ["BY_NAME", "by_name", "given_by_position"]

Function = TypeVar("Function", bound=Any)

# The default of the argument `_by_name`, behind which arguments are given by name only.
BY_NAME: Any = object()


def by_name(function: Function) -> Function:
    """Give a function the signature in which the arguments behind `_by_name` are keyword-only.

    The function itself raises by `given_by_position` where `_by_name` is not `BY_NAME`.
    """
    signature = inspect.signature(function)
    parameters, kind = [], None
    for each in signature.parameters.values():
        if each.name == "_by_name":
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            parameters.append(each if kind is None else each.replace(kind=kind))
    function.__signature__ = signature.replace(parameters=parameters)
    return function


def given_by_position(function: Any) -> NoReturn:
    """TypeError for a call with more positional arguments than the function takes."""
    parameters = inspect.signature(function).parameters.values()
    positional = [each for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    required = sum(each.default is inspect.Parameter.empty for each in positional)
    most = len(positional)
    number = f"{most}" if required == most else f"from {required} to {most}"
    named = next(each.name for each in parameters if each not in positional)
    raise TypeError(
        f"{function.__qualname__}() takes {number} positional arguments; {named} and what follows "
        "it are given by name"
    )
