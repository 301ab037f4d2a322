"""Fixtures of the tests of arrays on a GPU, with and without one."""

import contextlib

import numpy as np
import pytest

import bnext

from .. import compare, tolerances
from ..fake_cuda import Array, InterfaceArray
from ..optional import import_emulated
from . import compare_there, gpu
from .stand_in import StandIn


@pytest.fixture(autouse=True)
def tolerances_there(monkeypatch):
    """What the CUDA kernels may differ by, in the comparisons that all tests share."""
    bound = compare_there.PARAMETER_GRADIENT
    monkeypatch.setitem(tolerances.PARAMETER_GRADIENT, np.float32, bound)
    monkeypatch.setattr(compare, "mean_units", compare_there.mean_units)


@pytest.fixture(params=gpu.LIBRARIES)
def library(request):
    """Each library with arrays on the GPU, where there is one."""
    return gpu.with_a_gpu(request.param)


@pytest.fixture
def tensors():
    """PyTorch's, for what only it has."""
    return gpu.with_a_gpu("tensor")


@pytest.fixture(params=["stand-in", "emulated"])
def kernels(request, monkeypatch):
    """What is loaded in place of `bnext._cuda`."""
    module = StandIn() if request.param == "stand-in" else import_emulated()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    return module


@pytest.fixture
def emulated(monkeypatch):
    """The emulated kernels, loaded in place of `bnext._cuda`."""
    module = import_emulated()
    monkeypatch.setattr(bnext.cuda, "_load", lambda: module)
    return module


@pytest.fixture(params=[False, True], ids=["chosen", "cells"])
def by_cells(request, emulated):
    """Whether cells are the channels of kernels also where a team of threads could hold a slab."""
    with bnext.cuda._forced_path("two_kernels") if request.param else contextlib.nullcontext():
        yield


@pytest.fixture(params=[Array, InterfaceArray], ids=["dlpack", "interface"])
def make(request):
    """Makes an array that is on a GPU, of the one or the other kind."""
    return request.param


@pytest.fixture(scope="module")
def pretended():
    """The emulated kernels, on a GPU that all of PyTorch's tensors are on (`roads`)."""
    module = import_emulated()
    from benchmarks.pretended_gpu import pretended_gpu

    with pretended_gpu(module):
        yield module


@pytest.fixture
def roads(monkeypatch):
    """Lets calls take the one road or the other."""
    from .roads import Roads

    return Roads(monkeypatch)


@pytest.fixture
def seeded(torch):
    """PyTorch's random numbers, the same in every run of a test."""
    torch.manual_seed(7)
