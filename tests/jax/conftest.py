"""Fixtures of the tests of `bnext.jax`."""

import pytest


def pytest_itemcollected(item):
    """Everything here needs JAX."""
    item.add_marker("jax")


@pytest.fixture
def x64(jax):
    """JAX with float64, for the test alone."""
    with jax.enable_x64(True):
        yield
