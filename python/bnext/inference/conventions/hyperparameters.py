"""The numbers beside the arrays: checked, and in the meaning of the library that they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnext.arguments import count_of, values_of
from bnext.estimators import Exponential
from bnext.inference.conventions.record import Convention
from bnext.inference.conventions.rules import Steps

__all__ = ["axes_of", "bessel_of", "checked", "epsilon_of", "momentum_of", "text_of"]

MOST_STEPS = int(np.iinfo(np.int64).max)  # that a layer's counter holds
MOST_AXES = 32


def checked(count: Any, steps: Any) -> tuple[int | None, Steps | None]:
    """Check the values per channel of a batch, and the number of batches."""
    if isinstance(count, list | tuple | np.ndarray):
        raise TypeError(
            "count: expected one integer, the size of every batch, got "
            f"{type(count).__name__}: batches of unequal sizes have no exact conversion"
        )
    if count is not None:
        count = count_of(count, "count")
        if count < 2:
            raise ValueError(f"count: expected at least 2 values per channel, got {count}")
    if steps is not None and not (isinstance(steps, float) and steps == math.inf):
        steps = count_of(steps, "steps")
        if steps > MOST_STEPS:
            raise ValueError(f"steps: expected at most {MOST_STEPS}, or math.inf, got {steps}")
    return count, steps


def text_of(value: Any, name: str) -> str:
    """Check what goes before names, or is one."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    return value


def axes_of(ndim: Any, channel_axis: int, default: int) -> int:
    """Check the number of axes of an input; ValueError where it has no axis of channels."""
    axes = default if ndim is None else count_of(ndim, "ndim", 2)
    if axes > MOST_AXES:
        raise ValueError(f"ndim: expected at most {MOST_AXES} axes, got {axes}")
    if not -axes <= channel_axis < axes:
        raise ValueError(
            f"ndim: expected the axes of an input with channels at axis {channel_axis}, got {axes}"
        )
    return axes


def bessel_of(record: Convention, bessel: bool | None) -> bool:
    """Whether the variance that the library stores has Bessel's correction."""
    if bessel is None:
        bessel = record.bessel
    if bessel is None:
        raise ValueError(
            f"bessel: expected True or False for {record.title}, got None; it depends on "
            f"{record.bessel_depends}"
        )
    if not isinstance(bessel, bool | np.bool_):
        raise TypeError(f"bessel: expected True or False, got {type(bessel).__name__}")
    return bool(bessel)


def epsilon_of(record: Convention, numbers: Mapping[str, Any], eps: float | None) -> float:
    """Give eps: as it is passed, as it is stored, or the library's default."""
    value = numbers.get(record.eps_name, record.eps) if eps is None else eps
    if value is None:
        raise ValueError(f"eps: expected a number, which {record.title} does not imply, got None")
    return _number(value, record.eps_name if eps is None else "eps")


def _number(value: Any, name: str) -> float:
    """Give a number of any type, an array of one value among them; TypeError for anything else."""
    found = value
    if hasattr(value, "dtype"):
        array = values_of(value, name)
        found = array.item() if array.size == 1 else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        got = f"an array of {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise TypeError(f"{name}: expected a number, got {got}")
    return float(found)


def momentum_of(
    record: Convention, numbers: Mapping[str, Any], decay: float | None, convention: str
) -> float | None:
    """Give the weight of a new batch; None for the cumulative average."""
    if decay is not None:
        return Exponential(decay=decay).momentum
    name = record.momentum_name
    value = numbers.get(name, record.momentum)
    if value is None:
        if name in numbers and record.cumulative:
            return None
        reason = "" if record.momentum else f", as {convention} has no default"
        raise ValueError(f"{name}: expected a number{reason}, got None (or pass decay=)")
    number = _number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    if record.momentum_weighs == "new":
        return Exponential(number).momentum
    return Exponential(decay=number).momentum
