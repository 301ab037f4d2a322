"""What was found in a file, before anybody says which arrays are a layer's."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

__all__ = ["Contents", "Facts", "library"]


@dataclass(frozen=True)
class Facts:
    """What a file says of one layer, besides its arrays."""

    numbers: dict[str, Any] = field(default_factory=dict)  # hyperparameters, by the library's names
    bessel: bool | None = None
    channel_axis: int | None = None


@dataclass(frozen=True)
class Contents:
    """Arrays by their full names; what the format, or the file itself, says of them."""

    arrays: dict[str, npt.NDArray[Any]]
    conventions: tuple[str, ...] = ()  # that the format leaves possible; empty: all
    facts: dict[str, Facts] = field(default_factory=dict)  # by the prefix of the layer's names
    writer: str = ""


def library(name: str, files: str) -> Any:
    """Import the package that reads some files; ImportError that names it where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = {"orbax.checkpoint": "orbax-checkpoint"}.get(name, name.partition(".")[0])
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise
        raise ImportError(
            f"path: expected the package {package}, which reads {files}, not installed here: "
            f"pip install {package}"
        ) from None
