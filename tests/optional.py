"""What the tests use where it is installed."""

import importlib
import os

import pytest


def import_torch():
    """torch, or a skipped test; with BNEXT_REQUIRE_TORCH=1 its absence is a failure."""
    return _imported("torch", "BNEXT_REQUIRE_TORCH")


def import_jax():
    """jax, or a skipped test; with BNEXT_REQUIRE_JAX=1 its absence is a failure."""
    return _imported("jax", "BNEXT_REQUIRE_JAX")


def _imported(name, required):
    if os.environ.get(required) == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)
