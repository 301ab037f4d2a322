"""Masks and norms of examples on several devices, in a process that asks for them beforehand."""

import pathlib
import subprocess
import sys

import pytest

from ..limits import WIDE
from . import support  # noqa: F401 - where JAX is missing, the test is not run

PROGRAM = pathlib.Path(__file__).with_name("sharded_norms.py")
CHECKS = [
    "masks", "masks_of_second_derivatives", "masks_have_the_bits_of_a_group",
    "moments_and_running_statistics", "shards_of_jit", "norms_of_examples",
]  # fmt: skip


@pytest.mark.timeout(WIDE)
def test_jax_norms_and_masks_on_eight_devices():
    done = subprocess.run(
        [sys.executable, PROGRAM], capture_output=True, text=True, check=False, timeout=WIDE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS
