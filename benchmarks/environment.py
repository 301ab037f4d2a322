"""The environment of results: the machine, the versions, the compiler, the OpenMP runtimes."""

import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import bnext
from benchmarks import shared_libraries
from bnext.bench.environment import environment as basic_environment
from bnext.bench.libraries import import_torch


def environment(threads):
    """A dictionary in types of JSON; call it when all libraries are loaded."""
    found = basic_environment(max(threads, default=1))
    config = bnext.show_config(mode="dicts")
    torch = import_torch()
    versions = found["versions"]
    versions["onednn"] = _onednn_version()
    versions["ml_dtypes"] = version_of("ml_dtypes")
    for key in ("threads", "l3_bytes"):
        found.pop(key)
    return {
        "date": now(),
        **found,
        "caches": caches(),
        "caches_as_bnext_has_them": {k: config["cpu"][k] for k in ("l2_bytes", "l3_bytes")},
        "threads": list(threads),
        "commit": commit(),
        "build": build(),
        "system": platform.platform(),
        "compiler": config["compiler"]["name"],
        "compiler_of_the_suite": shared_libraries.compiler_version(),
        "openmp_runtimes": openmp_runtimes(),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "torch_config": _torch_config(torch) if torch else None,
        "torch_parallel": torch.__config__.parallel_info() if torch else None,
    }


def _torch_config(torch):
    """PyTorch's build configuration, without flags and folders."""
    lines = torch.__config__.show().splitlines()
    return "\n".join(line for line in lines if "Build settings" not in line)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def version_of(package):
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def build():
    """The identity of a build of the kernels."""
    return hash_of(bnext._core)


def hash_of(module):
    """A hash of an extension module, which tells one build from another."""
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]


def commit():
    """The commit of the checkout, with a mark if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=shared_libraries.ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def caches():
    """Bytes of the data caches by level, from Linux's list for the first processor."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(folder / name) for name in ("level", "type", "size"))
        if kind in ("Data", "Unified") and size and size.endswith("K"):
            found[f"l{level}"] = int(size[:-1]) * 1024
    return found


def openmp_runtimes():
    """Files of the OpenMP runtimes in this process; two would compete for the cores."""
    maps = _read("/proc/self/maps") or ""
    names = ("libgomp", "libomp", "libiomp")
    paths = {line.split()[-1] for line in maps.splitlines() if "/" in line}
    return sorted(Path(p).name for p in paths if Path(p).name.startswith(names))


def _onednn_version():
    try:
        return shared_libraries.onednn().onednn_version().decode()
    except (shared_libraries.UnavailableError, OSError):
        return None


def _read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
