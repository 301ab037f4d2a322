"""Threads, instruction sets, and what the build and the machine are."""

from __future__ import annotations

import os
import platform
import sys
from types import TracebackType
from typing import Any

import numpy as np

from bnext import _core, cuda

__all__ = ["get_num_threads", "set_num_threads", "show_config", "use_isa"]

ENVIRONMENT_VARIABLE = "BNEXT_ISA"
_forced_by: str | None = None


def set_num_threads(n: int) -> None:
    """Let each call use at most `n` threads, in the whole process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it, to the bit.

    Raises
    ------
    ValueError
        `n` is below 1.
    TypeError
        `n` is not an integer.
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """How many threads a call may use.

    Returns
    -------
    int
        What `set_num_threads` said, else OpenMP's default (``OMP_NUM_THREADS``, or the processors
        that the process may run on). 1 without OpenMP, and in a process forked from one that had
        used several.
    """
    return _core.get_num_threads()


class use_isa:  # noqa: N801  (reads as a function at the place of use)
    """Force an instruction set, in the whole process, until the block ends.

    Parameters
    ----------
    name : str
        ``"baseline"``, ``"avx2"`` or ``"avx512"``, if this machine has it;
        ``show_config(mode="dicts")["isa"]["available"]`` lists them.

    Raises
    ------
    ValueError
        This machine, or this build, does not have it.

    Notes
    -----
    The environment variable ``BNEXT_ISA`` forces one from the start. All sets with fused
    multiply-add (all but the baseline on x86-64) give the same bits.
    """

    def __init__(self, name: str) -> None:
        if name not in _core.build_config()["available_isas"]:
            known = ", ".join(_core.build_config()["available_isas"])
            raise ValueError(f"name: expected one of {known}, got {name!r}")
        self.name = name
        self._before: list[tuple[str, str | None]] = []

    def __enter__(self) -> use_isa:
        """Force the set."""
        global _forced_by
        self._before.append((_core.active_isa(), _forced_by))
        _core.set_isa(self.name)
        _forced_by = "use_isa"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Return to what was in force before."""
        global _forced_by
        isa, _forced_by = self._before.pop()
        _core.set_isa(isa)


def apply_environment() -> None:
    """Force the instruction set that ``BNEXT_ISA`` names; called once, at import.

    Raises
    ------
    ImportError
        This machine, or this build, does not have it.
    """
    global _forced_by
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if not name:
        return
    try:
        _core.set_isa(name)
    except ValueError as error:
        raise ImportError(f"{ENVIRONMENT_VARIABLE}: {str(error).removeprefix('name: ')}") from None
    _forced_by = ENVIRONMENT_VARIABLE


def _config() -> dict[str, Any]:
    build = _core.build_config()
    return {
        "version": _core.__version__,
        "isa": {
            "active": build["active_isa"],
            "available": build["available_isas"],
            "compiled": build["compiled_isas"],
            "forced_by": _forced_by,
            "vector_bytes": build["vector_bytes"],
        },
        "threads": {"number": _core.get_num_threads(), "openmp": build["openmp"]},
        "cpu": {
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "l2_bytes": build["l2_bytes"],
            "l3_bytes": build["l3_bytes"],
        },
        "compiler": {"name": build["compiler"], "build_type": build["build_type"]},
        "cuda": {"available": cuda.is_available(), "reason": cuda.reason()},
        "python": {"version": platform.python_version(), "numpy": np.__version__},
    }


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print how bnext was built and what it found on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print, or to return a dictionary.

    Returns
    -------
    dict or None
        With the keys ``version``, ``isa``, ``threads``, ``cpu``, ``compiler``, ``cuda`` and
        ``python``; None if printed.

    Raises
    ------
    ValueError
        `mode` is neither.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {mode!r}")
    config = _config()
    if mode == "dicts":
        return config
    lines = [f"bnext {config.pop('version')}"]
    for section, values in config.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            text = ", ".join(value) if isinstance(value, list) else value
            lines.append(f"  {key}: {text}")
    sys.stdout.write("\n".join(lines) + "\n")
    return None
