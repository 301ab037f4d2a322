"""One pool of threads for PyTorch and bnext.

Where both come from packages that brought an OpenMP runtime along, a process has two, and their
threads take each other's cores (`csrc/cpu/parallel.hpp` says how much that costs). bnext then uses
PyTorch's, for all of its calls.
"""

from __future__ import annotations

import torch

from bnext import _core

__all__ = ["share_threads"]


def share_threads() -> None:
    """Run on PyTorch's threads, if it has any of OpenMP; called once, at import."""
    _core.share_openmp(torch._C.__file__)
