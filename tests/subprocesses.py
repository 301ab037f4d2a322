"""Python programs that need an interpreter of their own."""

import os
import subprocess
import sys
import textwrap

from .limits import WIDE


def run_python(program, *, timeout=WIDE, **environment):
    """Runs `program`; variables set to None are taken out of its environment."""
    variables = os.environ | {name: value for name, value in environment.items() if value}
    for name in (name for name, value in environment.items() if value is None):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env=variables, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def output_of(program, **options):
    """What `program` prints; it must end well and say nothing on its standard error."""
    result = run_python(program, **options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.strip()
