"""Fixtures of the tests of `bnext.jax`."""

import pytest


@pytest.fixture
def x64():
    """JAX with float64, for the test alone."""
    from .support import jax

    with jax.enable_x64(True):
        yield
