"""The programs of the folder .ci as modules, for tests of what they find."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / ".ci"

needs_the_folder = pytest.mark.skipif(
    not FOLDER.exists(), reason="source distributions come without the folder .ci"
)


@contextmanager
def imported(name):
    """Let a program be a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
