"""Warm pages for outputs that a library always allocates itself."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

# From glibc's <malloc.h> and Linux's <sys/mman.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536
LARGEST_INT = 2**31 - 1
MADV_HUGEPAGE = 14

ROOM_FOR_SMALL_OBJECTS = 4 << 20


@contextlib.contextmanager
def recycled_pages(nbytes: int) -> Iterator[None]:
    """Let malloc take large arrays from `nbytes` of memory whose pages are mapped.

    Usually each allocation of a large array gets fresh memory from the system, and the first touch
    of every page is a fault. Inside this context its memory comes from the heap, which has been
    touched, does not shrink, and asks for huge pages, like NumPy's own arrays. `nbytes` are at
    least twice the size of the arrays alive at a time: small objects get between them, and the next
    array needs another place.

    Does nothing without glibc. Leaving the context restores glibc's initial thresholds, but glibc
    no longer adjusts them: measurements that depend on that come before.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
    fence = None
    try:
        fence = _make_room(libc, nbytes)
        yield
    finally:
        libc.free(fence)
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def _make_room(libc: ctypes.CDLL, nbytes: int) -> int | None:
    """Leave a small hole, a fence and a large hole at the end of the heap; return the fence.

    malloc prefers the smallest hole that fits, so most small objects go to the small hole.
    """
    small = libc.malloc(ROOM_FOR_SMALL_OBJECTS)
    fence: int | None = libc.malloc(64)
    large = libc.malloc(nbytes)
    if large is not None:
        begin = -(-large // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (large + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        libc.madvise(begin, max(end - begin, 0), MADV_HUGEPAGE)
        ctypes.memset(large, 0, nbytes)
    libc.free(small)
    libc.free(large)
    return fence


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
