"""A dry run: the emulated kernels and the host's clock in place of a GPU.

Every step of the programs for a GPU then runs on a machine without one, on tiny shapes: what is
tested is the programs. Times mean nothing. PyTorch's tensors are on the CPU, and bnext is told that
they are not.
"""

import contextlib
import importlib
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import bnext
from benchmarks.gpu import peers, timing
from benchmarks.kit.command import flag
from bnext.arrays.library import Where
from bnext.arrays.pytorch import Torch
from bnext.bench.libraries import import_torch
from bnext.command_line import CommandError

OPTION = flag("--dry", "try the program without a GPU, on the emulated kernels")
LONGEST_PLANES = (2, 6, 5, 3, 2)  # extents that are left of a shape
LONGEST_ROWS = (20, 6)
DEVICE = {
    "name": "no GPU (a dry run)",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "shared_memory_per_block_optin": 227 * 1024,
    "L2_cache_size": 256,
    "total_memory": 1 << 20,
}


class _Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, later):
        return max(later.at - self.at, 1e-6) * 1e3


class _Stream:
    cuda_stream = 0

    def wait_stream(self, other):
        assert isinstance(other, _Stream)


class _Graph:
    """Nothing is captured: a replay takes no time."""

    def capture_begin(self):
        pass

    def capture_end(self):
        pass

    def replay(self):
        pass


CUDA = {
    "is_available": lambda: True,
    "Event": _Event,
    "Stream": _Stream,
    "CUDAGraph": _Graph,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda index=0: _Stream(),
    "synchronize": lambda: None,
    "empty_cache": lambda: None,
    "_sleep": lambda cycles: None,
    "get_device_properties": lambda index: SimpleNamespace(**DEVICE),
    "profiler": SimpleNamespace(start=lambda: None, stop=lambda: None),
}


def emulated():
    """The kernels compiled for the CPU."""
    try:
        return importlib.import_module("bnext._cuda_emulated")
    except ImportError:
        raise CommandError(
            "--dry: needs the emulated kernels, a build with BNEXT_CUDA_EMULATION=ON"
        ) from None


def smaller(case):
    """The case under its name, with a shape that the emulated kernels do at once."""
    longest = LONGEST_ROWS if len(case.shape) == 2 else LONGEST_PLANES
    return replace(case, shape=tuple(map(min, case.shape, longest)))


@contextlib.contextmanager
def run():
    """In here, the programs find a GPU."""
    from benchmarks.gpu import measure

    torch, kernels = import_torch(), emulated()
    with contextlib.ExitStack() as stack:

        def put(owner, name, value):
            stack.enter_context(mock.patch.object(owner, name, value))

        # On a busy machine threads that wait for each other cost more than the work.
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        for name, value in CUDA.items():
            put(torch.cuda, name, value)
        put(Torch, "where", lambda self, array: Where("cuda", 0))
        put(Torch, "stream", lambda self, view, index: 0)
        put(bnext.cuda, "_load", lambda: kernels)
        put(peers, "DEVICE", "cpu")
        put(timing, "WARM_UP", 0.0)
        put(timing, "CALLS", 1)
        put(measure, "WALL_SECONDS", 0.0)
        yield
