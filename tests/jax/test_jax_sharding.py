"""One batch on several devices, in processes that ask for them before they start."""

import pathlib
import subprocess
import sys

import pytest

from ..limits import WIDE
from . import support  # noqa: F401 - where JAX is missing, the test is not run

CHECKS = {
    "sharded.py": [
        "values_and_gradients", "gradients_inside", "second_derivatives", "shards_of_jit",
        "the_same_bits_as_a_group", "more_devices_than_cores",
        "a_thousand_calls_from_eight_threads",
    ],
    "sharded_jit.py": [
        "values_and_gradients", "channels_first", "the_same_bits_as_shard_map",
        "second_derivatives", "mapped", "mapped_twice", "the_batch_along_an_axis_of_vmap",
        "inference", "statistics_alone", "loops", "shards_that_do_not_come_out_even", "by_gspmd",
        "one_device_of_eight",
    ],
}  # fmt: skip


@pytest.mark.timeout(WIDE)
@pytest.mark.parametrize("program", CHECKS)
def test_jax_eight_devices(program):
    path = pathlib.Path(__file__).with_name(program)
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, check=False, timeout=WIDE
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS[program]
