"""Keeping the memory of large tensors in the process, for all of it: PyTorch's tensors included.

glibc maps each block beyond a threshold (32 MiB at most) anew and gives it back when it is freed;
the top of its heap goes back as well. Each page is then zeroed again on its first use, by a page
fault. With two settings of ``mallopt`` freed memory stays, and the next tensor gets warm pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

__all__ = ["KeptMemory", "keep_memory"]

# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER, NO_MAPPINGS = -1, 0
MMAP_MAX, TRIM_THRESHOLD = 65536, 128 * 1024  # what glibc begins with


class KeptMemory:
    """What `keep_memory` did; a context that undoes it at its end. ``str`` of it is a sentence.

    Attributes
    ----------
    active : bool
        Whether freed memory stays in the process.
    reason : str or None
        Why it does not.
    """

    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        self.active: bool = reason is None

    def undo(self) -> None:
        """Give freed memory back again: what is free now, and what will be.

        glibc has the settings that it began with, or what MALLOC_MMAP_MAX_ and
        MALLOC_TRIM_THRESHOLD_ say; but its threshold for mappings no longer follows what a program
        frees, which it stops doing once any of these has been set.
        """
        if not self.active:
            return
        libc = _libc()
        libc.mallopt(M_MMAP_MAX, _from_environment("MALLOC_MMAP_MAX_", MMAP_MAX))
        libc.mallopt(M_TRIM_THRESHOLD, _from_environment("MALLOC_TRIM_THRESHOLD_", TRIM_THRESHOLD))
        libc.malloc_trim(0)
        self.active, self.reason = False, "it was undone"

    def __enter__(self) -> KeptMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        if not self.active:
            return f"keep_memory does nothing: {self.reason}"
        return (
            "freed memory stays in the process (mallopt: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1); "
            "undo() gives it back"
        )

    __repr__ = __str__


def keep_memory() -> KeptMemory:
    """Have freed memory stay in the process, so that large tensors get warm pages.

    It holds for everything in the process that glibc's ``malloc`` serves, tensors of PyTorch on a
    CPU included, and takes effect with the next allocation. The process keeps the largest amount of
    memory that it has used at one time, and what gaps between live blocks add to it; other
    processes cannot have it. bnext's own results come from a pool that keeps memory anyway.

    Returns
    -------
    KeptMemory
        What was done. ``undo()``, or the end of a ``with`` block, reverses it. Where there is
        nothing that it could do (not Linux, no glibc, another allocator in place of glibc's), it
        says why, and nothing has changed.

    Notes
    -----
    Whole huge pages help further and cannot be had later: start the process with
    ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1``.

    Examples
    --------
    >>> with bnext.torch.keep_memory() as kept:                            # doctest: +SKIP
    ...     print(kept)
    ...     train(model)
    """
    reason = _reason()
    if reason is None:
        libc = _libc()
        if not (libc.mallopt(M_MMAP_MAX, NO_MAPPINGS) and libc.mallopt(M_TRIM_THRESHOLD, NEVER)):
            reason = "mallopt refused the settings"
    return KeptMemory(reason)


def _libc() -> Any:
    return ctypes.CDLL(None)


def _reason() -> str | None:
    """Why there is nothing to set; None if there is."""
    if not sys.platform.startswith("linux"):
        return f"it sets glibc's malloc, and this is {sys.platform}"
    libc = _libc()
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return "the C library is not glibc"
    provider = _file_of(libc.malloc)
    if provider is not None and not _is_glibc(provider):
        return f"malloc is {provider}'s, not glibc's"
    return None


def _is_glibc(file: str) -> bool:
    """Whether a file may be glibc's: it is, or is the program's own, which has a jump to it."""
    name = os.path.basename(file).partition(".")[0].partition("-")[0]
    return name == "libc" or os.path.realpath(file) == os.path.realpath("/proc/self/exe")


class _Found(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )  # fmt: skip


def _file_of(function: Any) -> str | None:
    """Name the file that a C function is in; None if it cannot be told."""
    found = _Found()
    address = ctypes.cast(function, ctypes.c_void_p)
    with contextlib.suppress(AttributeError):
        if _libc().dladdr(address, ctypes.byref(found)) and found.file:
            return os.fsdecode(found.file)
    return None


def _from_environment(name: str, otherwise: int) -> int:
    try:
        return int(os.environ[name], 0)
    except (KeyError, ValueError):
        return otherwise
