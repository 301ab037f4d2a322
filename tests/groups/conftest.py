"""Engines of groups of processes."""

import pytest

from ..optional import require_engine
from .test_processes import ENGINES


@pytest.fixture
def needs_mpi():
    """mpi4py and mpiexec."""
    require_engine("mpi", ENGINES["mpi"])


@pytest.fixture
def needs_gloo():
    """PyTorch."""
    require_engine("gloo", ENGINES["gloo"])
