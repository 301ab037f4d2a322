"""Whether bnext can compute on a GPU, and if not, why.

The compiled kernels are the extension module `bnext._cuda`. A build has it where it found a GPU, or
with BNEXT_CUDA=ON. The first array on a GPU loads it, or the first call of this module.

It then reads two environment variables; `bnext.show_config` shows them.

``BNEXT_CUDA_SYNC=1``
    Calls wait for their launches, unless a CUDA graph captures them, so that the call whose kernel
    fails raises the error, with the kernel's name. With the default, 0, calls are asynchronous, and
    a later call raises the error.
``BNEXT_CUDA_RESERVE=n``
    Kernels whose blocks wait for each other leave `n` multiprocessors free (they use at least one),
    so that kernels of other streams, such as NCCL's in `DistributedDataParallel`, run beside them.
    The default is 0.
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
        for any of the GPUs. Empty if `is_available()`.
    """
    try:
        kernels = _load()
    except ImportError as error:
        return str(error)
    first = ""
    # Stops at the first that works: a query makes a context, which takes memory of the device.
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
        GPUs that the process sees, even if the build has no code for them; 0 without kernels,
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
    """Say why kernels cannot run on that device; empty if they can."""
    count = kernels.device_count()
    if count == 0:
        return str(kernels.unavailable_reason()) or "no GPU was found"
    if device < 0:
        return "its memory is the host's"
    if device >= count:
        return f"the CUDA runtime sees {count} devices"
    return str(kernels.device_problem(device))


def _config() -> dict[str, Any]:
    """Collect the section of `bnext.show_config`."""
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
    """Force a path, for tests, on the operations that have it.

    If the path cannot run a problem, the operation raises the ValueError of `_cuda.plan`.
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
