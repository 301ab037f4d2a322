"""The layer for Keras on each of its backends, which a process has one of."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from ..limits import WIDE
from ..optional import marks_of, require_foreign_functions
from ..subprocesses import output_of

require_foreign_functions()
pytestmark = marks_of(["keras", "jax", "torch"])  # the NumPy backend needs JAX as well

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "keras.md"
CHECKS = [
    "values", "integers_and_no_parameters", "frozen", "gradients", "activations_and_residuals",
    "masks", "by_keras_itself", "training", "files", "conversion", "errors",
]  # fmt: skip


def run(backend, *command, **variables):
    environment = {**os.environ, "KERAS_BACKEND": backend, **variables}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=WIDE,
        env=environment,
    )  # fmt: skip


@pytest.mark.timeout(WIDE)
@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_each_backend(backend):
    done = run(backend, HERE / "program.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == CHECKS


@pytest.mark.timeout(WIDE)
def test_batches_on_eight_devices():
    """What `keras.distribution` divides among devices is one batch."""
    flags = "--xla_force_host_platform_device_count=8"
    done = run("jax", HERE / "distributed.py", XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(WIDE)
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_page_runs(backend, tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 3
    done = run(backend, "-c", "\n".join(["import os", f"os.chdir({str(tmp_path)!r})", *blocks]))
    assert done.returncode == 0, done.stderr


def test_another_backend_is_refused():
    program = """
        import keras

        keras.backend.backend = lambda: "tensorflow"
        try:
            import bnext.keras
        except ImportError as error:
            print(error)
    """
    expected = (
        "expected one of jax, torch, numpy as Keras's backend (KERAS_BACKEND), got tensorflow"
    )
    assert expected in output_of(program, KERAS_BACKEND="jax")


def test_its_absence_is_named():
    program = """
        import sys

        sys.modules["keras"] = None
        try:
            import bnext.keras
        except ModuleNotFoundError as error:
            print(error)
    """
    assert "expected Keras 3 to be installed (pip install keras), found none" in output_of(program)


def test_everything_public_is_explained():
    program = """
        import importlib
        import bnext.keras
        from tests.test_docs import assert_is_explained, public

        found = public({"bnext.keras": bnext.keras})
        assert len(found) == 3
        for name, value in found:
            assert_is_explained(name, value)
        print("explained")
    """
    done = run("jax", "-c", textwrap.dedent(program), PYTHONPATH=os.pathsep.join(sys.path))
    assert done.stdout.strip() == "explained", done.stderr
