"""Fixtures of the tests of `bnext.torch`: random numbers, and proof that the kernels ran."""

import zlib
from collections import Counter

import pytest

import bnext

PASSES = {  # of each function of the kernels, by its arguments
    "forward": lambda x, weight, bias, eps, given=None, *_: "inference" if given else "forward",
    "evaluate_layer": lambda *_: "inference",
    "statistics": lambda *_: "forward",
    "backward": lambda dy, x, *_: "backward_constant" if x is None else "backward",
    "backward_by_rows": lambda *_: "backward",
    "backward_of_parameters": lambda *_: "backward_of_parameters",
}


def pytest_itemcollected(item):
    """Everything here needs PyTorch."""
    item.add_marker("torch")


@pytest.fixture(autouse=True)
def seeded(request, torch):
    """PyTorch's random numbers, the same in every run of a test."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def one_thread(restore_threads, torch):
    """Most data here is tiny: teams of threads that wait for each other would take all the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    bnext.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler(torch):
    """Nothing that was compiled before."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def small_by_kernels(monkeypatch, torch):
    """Small calls that a compiler traces are the kernels' too; code from before is not taken."""
    from torch._functorch import config

    from bnext.torch import small_calls

    monkeypatch.setattr(small_calls, "LEAST_VALUES", 0)
    with config.patch(enable_autograd_cache=False):
        yield


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often each pass of the kernels was run to its end, by name.

    Without it a layer that left everything to PyTorch would pass the other tests.
    """
    from bnext.torch import kernels

    calls = Counter()

    def counted(name_of, run):
        def call(*arguments):
            name = name_of(*arguments)
            before = calls[name]
            result = run(*arguments)
            if result is not None:  # as for tensors that go another way
                calls[name] = before + 1  # a pass may call itself with wider parameters
            return result

        return call

    for function, name_of in PASSES.items():
        monkeypatch.setattr(kernels, function, counted(name_of, getattr(kernels, function)))
    return calls
