"""Fixtures of the tests of arrays on a GPU, with and without one."""

import numpy as np
import pytest

from .. import compare, tolerances
from . import compare_there, gpu


@pytest.fixture(autouse=True)
def tolerances_there(monkeypatch):
    """What the CUDA kernels may differ by, in the comparisons that all tests share."""
    bound = compare_there.PARAMETER_GRADIENT
    monkeypatch.setitem(tolerances.PARAMETER_GRADIENT, np.float32, bound)
    monkeypatch.setattr(compare, "mean_units", compare_there.mean_units)


@pytest.fixture(params=gpu.LIBRARIES)
def library(request):
    """Each library with arrays on the GPU; skipped with the reason where there is none."""
    return gpu.with_a_gpu(request.param)


@pytest.fixture
def tensors():
    """PyTorch's, for what only it has."""
    return gpu.with_a_gpu("tensor")
