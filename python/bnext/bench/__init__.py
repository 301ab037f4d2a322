"""``python -m bnext bench``: the kernels beside NumPy, PyTorch and a plain copy."""

from bnext.bench.command import main

__all__ = ["main"]
