"""How much memory training takes: each network in a process of its own."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.models.cases import Case
from benchmarks.models.training import Training
from bnext.bench.measure import threads_set_to

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 3
STATUS = Path("/proc/self/status")


def measure(case, layers, threads):
    """Bytes before the first step, and at most; None where the system does not tell.

    On the CPU those of the process that are in memory, on a GPU those that PyTorch has allocated.
    """
    words = [json.dumps(dataclasses.asdict(case)), layers, str(threads)]
    command = [sys.executable, "-m", "benchmarks.models.memory", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memory of {case.title}, {layers}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


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


if __name__ == "__main__":
    fields, layers, threads = sys.argv[1:]
    print(json.dumps(of_this_process(Case(**json.loads(fields)), layers, int(threads))))
