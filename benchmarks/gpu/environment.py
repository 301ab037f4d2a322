"""What the results depend on: the device, its driver, the versions, the build."""

import platform
import subprocess

import bnext
from benchmarks.environment import commit, hash_of, now, version_of
from bnext.bench.libraries import import_torch

PACKAGES = ("numpy", "torch", "triton", "ml_dtypes", "array-api-compat", "cupy-cuda13x")


def environment(run):
    """A dictionary that JSON can hold; `run` is the number that the data was drawn with."""
    return {
        "date": now(),
        "device": device(),
        "versions": versions(),
        "commit": commit(),
        "build": hash_of(bnext.cuda._load()),
        "run": run,
        "system": platform.platform(),
    }


def device():
    """The first GPU, as launches and readers want to know it."""
    torch = import_torch()
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": [found.major, found.minor],
        "multiprocessors": found.multi_processor_count,
        "shared_per_block": found.shared_memory_per_block_optin,
        "l2_bytes": found.L2_cache_size,
        "memory_bytes": found.total_memory,
        "driver": _asked("driver_version"),
        "clocks": _asked("clocks.max.sm,clocks.max.memory"),
    }


def versions():
    """Versions of what takes part."""
    torch = import_torch()
    return {
        "bnext": bnext.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def _asked(query):
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
