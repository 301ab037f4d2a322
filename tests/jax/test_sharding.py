"""Batches, masks, norms of examples on several devices: programs that ask for them beforehand."""

import pathlib
import re
import subprocess
import sys

import pytest

from ..limits import WIDE
from . import support  # noqa: F401 - where JAX is missing, the test is not run

HERE = pathlib.Path(__file__).parent
CHECKS = {
    path.stem: re.findall(r"^def (\w+)\(\):", path.read_text(), re.MULTILINE)
    for path in sorted(HERE.glob("sharded*.py"))
}


@pytest.mark.timeout(WIDE)
@pytest.mark.parametrize("program", CHECKS)
def test_eight_devices(program):
    """Each function of a program that takes nothing is a check, whose name it prints."""
    assert len(CHECKS[program]) > 6
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{program}"], capture_output=True, text=True,
        check=False, timeout=WIDE, cwd=HERE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS[program]
