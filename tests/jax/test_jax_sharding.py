"""One batch on several devices, in a process that asks for them before it starts."""

import pathlib
import subprocess
import sys

import pytest

from ..limits import WIDE
from . import support  # noqa: F401 - where JAX is missing, the test is not run

PROGRAM = pathlib.Path(__file__).with_name("sharded.py")
CHECKS = [
    "values_and_gradients", "gradients_inside", "second_derivatives", "shards_of_jit",
    "the_same_bits_as_a_group", "more_devices_than_cores",
]  # fmt: skip


@pytest.mark.timeout(WIDE)
def test_jax_eight_devices():
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, check=False, timeout=WIDE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS
