"""Fixtures of the tests of `bnext.torch`: random numbers, and proof that the kernels ran."""

import zlib
from collections import Counter

import pytest

import bnext

from ..optional import import_torch

PASSES = {
    "forward": "forward",
    "statistics": "forward",
    "inference": "inference",
    "evaluate": "inference",
    "backward": "backward",
    "backward_by_rows": "backward",
    "backward_constant": "backward_constant",
    "backward_of_parameters": "backward_of_parameters",
}


@pytest.fixture(autouse=True)
def seeded(request):
    """PyTorch's random numbers, the same in every run of a test."""
    import_torch().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def one_thread(restore_threads):
    """Most data here is tiny: teams of threads that wait for each other would take all the time."""
    torch = import_torch()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bnext.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often each pass of the kernels was run to its end, by name.

    Without it a layer that left everything to PyTorch would pass the other tests.
    """
    from bnext.torch import kernels

    calls = Counter()

    def counted(name, run):
        def call(*arguments):
            before = calls[name]
            result = run(*arguments)
            calls[name] = before + 1  # a pass may call itself with wider parameters
            return result

        return call

    for function, name in PASSES.items():
        monkeypatch.setattr(kernels, function, counted(name, getattr(kernels, function)))
    return calls
