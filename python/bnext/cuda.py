"""Whether bnext can compute on a GPU, and if not, why.

The compiled kernels are the extension module `bnext._cuda`, which a build has only where it was
asked for or found a GPU. It is loaded when an array on a GPU comes, or when this module is asked.

Two environment variables are read when it is loaded; `bnext.show_config` tells them.

``BNEXT_CUDA_SYNC=1``
    Every launch is waited for, so that the call whose kernel fails raises the error, with the
    kernel's name. Launches that a CUDA graph captures are not waited for. For finding faults: the
    default, 0, leaves calls asynchronous, and an error is raised by a later one.
``BNEXT_CUDA_RESERVE=n``
    Kernels whose blocks wait for each other occupy all multiprocessors but `n` (at least one), so
    that kernels of other streams, such as NCCL's in `DistributedDataParallel`, run beside them. The
    default is 0.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["device_count", "is_available", "reason"]

NOT_BUILT = (
    "this build of bnext has no CUDA kernels; build with BNEXT_CUDA=ON: "
    "pip install . -C cmake.define.BNEXT_CUDA=ON"
)


def is_available() -> bool:
    """Whether arrays on a GPU can be normalized.

    Returns
    -------
    bool
        True if this build has kernels for a GPU that the process sees.
    """
    return not reason()


def reason() -> str:
    """Why arrays on a GPU cannot be normalized.

    Returns
    -------
    str
        One line: the build has no kernels, there is no driver or no GPU, or the build has no code
        for any that there is. Empty if `is_available()`.
    """
    try:
        kernels = _load()
    except ImportError as error:
        return str(error)
    first = ""
    # Not all of them: to be asked, a device gets a context, which takes its memory.
    for device in range(kernels.device_count()):
        problem = _problem_of(kernels, device)
        if not problem:
            return ""
        first = first or problem
    return first or str(kernels.unavailable_reason()) or "no GPU was found"


def device_count() -> int:
    """How many GPUs there are.

    Returns
    -------
    int
        Those that the process sees, also ones that the build has no code for; 0 without kernels,
        without a driver, and without a GPU.
    """
    try:
        return int(_load().device_count())
    except ImportError:
        return 0


@functools.cache
def _load() -> Any:
    """Load the module of kernels; ImportError with the reason if there is none."""
    try:
        return importlib.import_module("bnext._cuda")
    except ModuleNotFoundError as error:
        if error.name != "bnext._cuda":
            raise
        raise ImportError(NOT_BUILT) from None
    except ImportError as error:
        raise ImportError(f"the CUDA kernels of bnext cannot be loaded: {error}") from error


@functools.cache
def _problem_of(kernels: Any, device: int) -> str:
    """Say why nothing can be computed on that device; empty if it can."""
    count = kernels.device_count()
    if count == 0:
        return str(kernels.unavailable_reason()) or "no GPU was found"
    if device < 0:
        return "its memory is the host's"
    if device >= count:
        return f"the CUDA runtime sees {count} devices"
    return str(kernels.device_problem(device))


def _config() -> dict[str, Any]:
    """Collect what `bnext.show_config` tells."""
    try:
        kernels = _load()
    except ImportError as error:
        return {
            "available": False, "reason": str(error), "devices": [], "architectures": [],
            "synchronous": False, "reserved_multiprocessors": 0,
        }  # fmt: skip
    return {
        "available": is_available(),
        "reason": reason(),
        "devices": [kernels.device_name(device) for device in range(kernels.device_count())],
        "architectures": list(kernels.architectures()),
        **kernels.environment(),
    }


@contextmanager
def _forced_path(name: str) -> Iterator[None]:
    """Plan with a path, for tests: inside, the operations that have it.

    An operation whose problem the path cannot do raises the ValueError of `_cuda.plan`.
    """
    kernels = _load()
    known = {path for operation in kernels.operations() for path in kernels.paths(operation)}
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(sorted(known))}, got {name!r}")
    before = kernels.force_path(name)
    try:
        yield
    finally:
        kernels.force_path(before)
