"""How much memory training takes: each network in a process of its own."""

import re
from pathlib import Path

import torch

from benchmarks.kit.processes import alone
from benchmarks.models.training import Training
from bnext.bench.measure import threads_set_to

STEPS = 3
STATUS = Path("/proc/self/status")


def measure(case, layers, threads):
    """Bytes before the first step, and at most; None where the system does not tell.

    On the CPU those of the process that are in memory, on a GPU those that PyTorch has allocated.
    """
    return alone(of_this_process, case, layers, threads)


def of_this_process(case, layers, threads):
    """The same, here."""
    with threads_set_to(threads):
        training = Training(case, layers)
        before = _now(case.device)
        for _ in range(STEPS):
            training.finished_step()
        after = _most(case.device)
    return None if before is None or after is None else {"before": before, "most": after}


def _now(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return None
    return _of_status("VmRSS")


def _most(device):
    return torch.cuda.max_memory_allocated() if device == "cuda" else _of_status("VmHWM")


def _of_status(name):
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
