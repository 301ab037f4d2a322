"""The environment of a measurement: versions, threads, the machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

import bnext
from bnext.bench.libraries import import_torch
from bnext.runtime import without_openmp


def environment(threads: int) -> dict[str, Any]:
    """Versions of the libraries, the instruction set, the processor and its threads."""
    torch = import_torch()
    config = bnext.show_config(mode="dicts") or {}
    return {
        "threads": threads,
        "without_openmp": without_openmp(),
        "isa": config["isa"]["active"],
        "processor": processor(),
        "processors": config["cpu"]["processors"],
        "l3_bytes": config["cpu"]["l3_bytes"],
        "versions": {
            "bnext": bnext.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__ if torch else None,
        },
    }


def processor() -> str:
    """Name the model, from a file of Linux or from the platform module."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
