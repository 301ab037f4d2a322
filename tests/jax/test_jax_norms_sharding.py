"""Masks and norms of examples on several devices, in a process that asks for them beforehand."""

import pathlib
import subprocess
import sys

import pytest

from ..limits import WIDE
from . import support  # noqa: F401 - where JAX is missing, the test is not run

CHECKS = {
    "sharded_norms": [
        "masks", "masks_of_second_derivatives", "masks_have_the_bits_of_a_group",
        "moments_and_running_statistics", "shards_of_jit", "norms_of_examples",
    ],
    "sharded_jit_norms": [
        "masks", "masks_channels_first", "masks_have_the_bits_of_shard_map",
        "masks_of_second_derivatives", "masks_mapped", "masks_by_given_statistics",
        "statistics_alone", "norms_of_examples", "norms_of_examples_mapped",
        "norms_of_second_derivatives", "by_gspmd",
    ],
}  # fmt: skip


@pytest.mark.timeout(WIDE)
@pytest.mark.parametrize("program", CHECKS)
def test_jax_norms_and_masks_on_eight_devices(program):
    command = [sys.executable, "-m", f"{__package__}.{program}"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=WIDE, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS[program]
