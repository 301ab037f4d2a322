"""The compiled kernels, for tests of what needs no GPU."""

import importlib

import pytest


def import_kernels():
    """`bnext._cuda`, or the same made for the CPU; skips the tests where a build has neither."""
    for name in ("bnext._cuda", "bnext._cuda_emulated"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    pytest.skip("this build has no CUDA kernels, emulated ones neither", allow_module_level=True)
