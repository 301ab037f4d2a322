"""Threads, instruction sets, the pool of memory, and the configuration of build and machine."""

from __future__ import annotations

import operator
import os
import platform
import re
import sys
import warnings
from typing import Any, Literal, overload

import numpy as np

from bnext import _core, cuda

__all__ = ["empty_cache", "get_num_threads", "set_num_threads", "show_config", "use_isa"]

ISA_VARIABLE = "BNEXT_ISA"
POOL_VARIABLE = "BNEXT_POOL_LIMIT"
TEAM_VARIABLE = "BNEXT_TEAM"
TEAMS = ("adaptive", "fixed")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
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

    Warns
    -----
    RuntimeWarning
        `n` is above 1 and bnext was built without OpenMP: calls keep to one thread.

    Notes
    -----
    A small call takes fewer threads, and so does a call while fewer processors are free: by the
    affinity mask of the calling thread, the quota of control groups, other calls of this process,
    and the time that earlier calls waited for threads that other processes kept from running.
    Waiting then costs about a fiftieth of the time. ``show_config()`` has the figures. The
    environment variable ``BNEXT_TEAM=fixed``, read at import, turns this off; the default is
    ``adaptive``.
    """
    _core.set_num_threads(n)
    if operator.index(n) > 1 and (without := without_openmp()):
        warnings.warn(f"n: got {n}, but bnext was {without}", RuntimeWarning, stacklevel=2)


def get_num_threads() -> int:
    """How many threads a call may use.

    Returns
    -------
    int
        The number given to `set_num_threads`, else OpenMP's default (``OMP_NUM_THREADS``, or the
        processors that the process may run on). 1 without OpenMP, and in a forked process that may
        lack OpenMP threads of its parent: bnext had used several, or another library with the same
        OpenMP runtime was loaded.
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
    The environment variable ``BNEXT_ISA`` forces a set from the start. All sets with fused
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

    def __exit__(self, *error: object) -> None:
        """Restore the set that was active before."""
        global _forced_by
        isa, _forced_by = self._before.pop()
        _core.set_isa(isa)


def empty_cache() -> None:
    """Give back to the system the memory that is kept for the results of later calls.

    Results of 64 KiB and more get their memory from a pool, and return it when the array and its
    last view are gone. The pool keeps at most ``BNEXT_POOL_LIMIT`` bytes: an environment variable,
    read at import, such as ``300000000``, ``512M`` or ``2G``; ``0`` keeps nothing. The default is
    the lesser of 1 GiB and an eighth of the memory that the process may have. Arrays in use do not
    count, and are not touched.

    Notes
    -----
    ``show_config(mode="dicts")["pool"]`` has the figures: ``limit_bytes``, ``cached_bytes`` (kept),
    ``in_use_bytes`` (of live arrays), ``hits`` and ``misses`` (results with and without memory from
    the pool).
    """
    _core.pool_empty_cache()


def apply_environment() -> None:
    """Apply ``BNEXT_ISA``, ``BNEXT_POOL_LIMIT`` and ``BNEXT_TEAM``, or raise ImportError.

    Called once, at import.
    """
    global _forced_by
    if limit := os.environ.get(POOL_VARIABLE):
        _core.pool_set_limit(_bytes(limit))
    if team := os.environ.get(TEAM_VARIABLE):
        if team not in TEAMS:
            raise ImportError(f"{TEAM_VARIABLE}: expected adaptive or fixed, got {team!r}")
        _core.fix_team(team == "fixed")
    if name := os.environ.get(ISA_VARIABLE):
        try:
            _core.set_isa(name)
        except ValueError as error:
            raise ImportError(f"{ISA_VARIABLE}: {str(error).removeprefix('name: ')}") from None
        _forced_by = ISA_VARIABLE


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMG]?)", text, re.IGNORECASE)
    number = int(match[1]) * UNITS[match[2].upper()] if match else sys.maxsize
    if number >= sys.maxsize:
        raise ImportError(
            f"{POOL_VARIABLE}: expected a number of bytes, such as 0, 300000000, 512M or 2G, "
            f"got {text!r}"
        )
    return number


def without_openmp() -> str | None:
    """Explain a build without OpenMP, and its remedy; None for a build with OpenMP."""
    remedy = _core.build_config()["openmp_remedy"]
    if remedy is None:
        return None
    return (
        "built without OpenMP, so that every call runs on one thread; "
        f"to use more threads, {remedy}"
    )


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
        "threads": {
            **_core.team_figures(),
            "openmp": build["openmp"],
            "openmp_file": build["openmp_file"],
            "openmp_remedy": build["openmp_remedy"],
        },
        "cpu": {
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "l2_bytes": build["l2_bytes"],
            "l3_bytes": build["l3_bytes"],
            "zen": build["zen"],
        },
        "pool": _core.pool_figures(),
        "compiler": {"name": build["compiler"], "build_type": build["build_type"]},
        "cuda": cuda._config(),
        "python": {"version": platform.python_version(), "numpy": np.__version__},
    }


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print how bnext was built, and the properties of this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Whether to print, or to return a dictionary.

    Returns
    -------
    dict or None
        With the keys ``version``, ``isa``, ``threads``, ``cpu``, ``pool``, ``compiler``, ``cuda``
        and ``python``; None if printed.

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
    del config["threads"]["openmp_remedy"]
    if without := without_openmp():
        config["threads"]["openmp"] = f"none ({without})"
    lines = [f"bnext {config.pop('version')}"]
    for section, values in config.items():
        lines.append(f"{section}:")
        for key, value in values.items():
            text = ", ".join(value) if isinstance(value, list) else value
            lines.append(f"  {key}: {text}")
    print("\n".join(lines))
    return None
