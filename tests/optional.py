"""What the tests use where it is installed."""

import os

import pytest


def import_torch():
    """torch, or a skipped test; with BNEXT_REQUIRE_TORCH=1 its absence is a failure."""
    if os.environ.get("BNEXT_REQUIRE_TORCH") == "1":
        import torch

        return torch
    return pytest.importorskip("torch")
