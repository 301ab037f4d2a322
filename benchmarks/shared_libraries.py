"""The shared libraries of native/, built on demand by one call of the compiler each."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "suite"
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fopenmp"]
ONEDNN_HEADERS, ONEDNN_LIBRARY = "onednn-devel-cpu-gomp", "onednn-cpu-gomp"  # distributions
HANDOVERS = 2000


class UnavailableError(Exception):
    """A measurement is impossible here; the message has the reason."""


def compiler():
    """The C++ compiler: $CXX, or the usual names."""
    for name in (*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise UnavailableError("no C++ compiler was found (set CXX)")


def compiler_version():
    """The compiler's name and version, or None."""
    try:
        command = [compiler(), "--version"]
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (UnavailableError, OSError, IndexError):
        return None


def build(name, sources, headers=(), flags=()):
    """Compile `sources` to a shared library, unless it exists; return its path."""
    paths = [ROOT / source for source in sources]
    command = [compiler(), *FLAGS, *map(str, paths), *flags]
    read = [path.read_text() for path in (*paths, *(ROOT / header for header in headers))]
    content = "\0".join([*command, *read])
    library = BUILD / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
    if done.returncode != 0:
        first = (done.stderr.strip() or "no message").splitlines()[0]
        raise UnavailableError(f"{name} does not compile: {first}")
    unfinished.replace(library)
    return library


@functools.cache
def machine():
    """The library for properties of the machine: copies, and the distance of two threads."""
    sources = (
        *("benchmarks/cpp/copy.cpp", "benchmarks/native/handover.cpp"),
        *(f"csrc/cpu/{name}.cpp" for name in ("control_group", "openmp", "team_size")),
    )
    headers = (
        *("benchmarks/cpp/copy.hpp", "csrc/core/dtype.hpp", "csrc/core/float_mode.hpp"),
        *(f"csrc/cpu/{name}.hpp" for name in ("control_group", "openmp", "parallel")),
        *(f"csrc/cpu/{name}.hpp" for name in ("team_size", "waiting")),
    )
    library = ctypes.CDLL(str(build("machine", sources, headers, [f"-I{ROOT / 'csrc'}"])))
    for function in (library.copy_with_memcpy, library.copy_streaming):
        function.restype = None
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    library.handover_seconds.restype = ctypes.c_double
    library.handover_seconds.argtypes = [ctypes.c_int]
    return library


def handover_nanoseconds():
    """The time to hand a word from one thread to another now; None if unknown.

    Virtual machines move: two processors may share a cache in one minute and not in the next, which
    changes every time.
    """
    if _processors() < 2:  # the threads would wait for each other's time slice
        return None
    try:
        seconds = machine().handover_seconds(HANDOVERS)
    except (UnavailableError, OSError):
        return None
    return round(seconds * 1e9, 1) or None


def _processors():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def onednn_folders():
    """The folders of the headers and the library in the installed distributions."""

    def folder_of(distribution, ending):
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            raise UnavailableError(f"{distribution} is not installed") from None
        for file in files:
            if str(file).endswith(ending):
                return Path(file.locate()).resolve().parent
        raise UnavailableError(f"{distribution} lacks {ending}")

    headers = folder_of(ONEDNN_HEADERS, "oneapi/dnnl/dnnl.hpp")
    return headers.parents[1], folder_of(ONEDNN_LIBRARY, "libdnnl.so")


@functools.cache
def onednn():
    """oneDNN behind the C interface of native/onednn.cpp."""
    include, folder = onednn_folders()
    flags = ["-isystem", str(include), f"-L{folder}", f"-Wl,-rpath,{folder}", "-ldnnl"]
    library = ctypes.CDLL(str(build("onednn", ("benchmarks/native/onednn.cpp",), (), flags)))
    layer, pointer = ctypes.c_void_p, ctypes.c_void_p
    integer, text = ctypes.c_int, ctypes.c_char_p
    for name, result, arguments in (
        ("error", text, []),
        ("version", text, []),
        ("set_threads", integer, [integer]),
        ("create", layer, [pointer, integer, text, text, ctypes.c_float, integer]),
        ("destroy", None, [layer]),
        ("bytes", ctypes.c_size_t, [layer]),
        ("implementation", text, [layer, integer]),
        ("bind", integer, [layer, pointer]),
        ("run", integer, [layer, integer]),
        ("run_fresh", integer, [layer, integer]),
        ("reorder", integer, [layer, pointer, pointer, integer, integer]),
    ):
        function = getattr(library, f"onednn_{name}")
        function.restype, function.argtypes = result, arguments
    return library
