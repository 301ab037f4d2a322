"""What cannot be run is neither passed nor skipped, and the end of a run says so in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

import bnext

from . import limits, optional

ROOT = pathlib.Path(__file__).parents[1]
CONFTEST = """
from tests.conftest import (
    pytest_cmdline_main, pytest_itemcollected, pytest_make_collect_report,
    pytest_report_teststatus, pytest_runtest_makereport, pytest_runtest_setup,
    pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown, torch,
)
"""
SOME = """
import pytest
from tests.optional import NotHere

@pytest.fixture
def ring():
    raise NotHere("a ring", "pip install ring")

@pytest.mark.parametrize("n", range(1200))
def test_with_a_ring(ring, n):
    assert False

def test_with_a_rope():
    raise NotHere("a rope", "pip install rope")

def test_with_nothing():
    pass

@pytest.mark.skipif(True, reason="to be looked at")
def test_skipped():
    assert False
"""
FILE = """
from tests.optional import NotHere

raise NotHere("a ring", "pip install ring")
"""


def pytest_in(folder, *options, **files):
    for name, text in ({"conftest": CONFTEST} | files).items():
        (folder / f"{name}.py").write_text(text)
    package = pathlib.Path(bnext.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "--rootdir", folder, *options],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=limits.WIDE,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("processes", [0, 2])
def test_one_line_says_what_was_not_run(tmp_path, processes):
    optional.import_extra("xdist")
    result = pytest_in(tmp_path, f"-n{processes}", test_some=SOME, test_file=FILE)
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("not run here: ")]
    assert line == (
        "not run here: 1,200 tests and 1 file that need a ring (pip install ring); "
        "1 test that need a rope (pip install rope)"
    )
    assert "1 passed, 1 skipped" in lines[-1]
    assert sum("SKIPPED" in line for line in lines) == 1


MARKED = """
import sys
import pytest

sys.modules["torch"] = None

@pytest.mark.torch
def test_marked():
    assert False

def test_that_takes_the_fixture(torch):
    assert False

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.torch)])
def test_of_one_parameter(n):
    assert n == 1

@pytest.mark.libraries("no_such_library", "sys")
def test_of_libraries():
    assert False
"""


@pytest.mark.parametrize("words", [[], ["-m", "torch"], ["-m", "not torch"]])
def test_a_marker_selects_a_test_and_asks_for_what_it_needs(tmp_path, words):
    result = pytest_in(tmp_path, "-n0", "-W", "ignore::pytest.PytestUnknownMarkWarning", *words,
                       test_marked=MARKED)  # fmt: skip
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("not run here: ")]
    of_torch = "3 tests that need PyTorch (pip install torch; " in line
    of_libraries = "1 test that need no_such_library (pip install no_such_library)" in line
    assert (of_torch, of_libraries) == (words != ["-m", "not torch"], words != ["-m", "torch"])
    assert ("1 passed" in lines[-1]) == (words != ["-m", "torch"])


def test_the_whole_suite_takes_a_process_for_each_processor(tmp_path):
    optional.import_extra("xdist")
    count = """
import os
import pytest

@pytest.mark.parametrize("n", range(20))
def test_process(n, record_property):
    print("process", os.getpid())
"""
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    for arguments, expected in (([], min(processors, 4)), (["test_count.py"], 1)):
        result = pytest_in(tmp_path, "-rP", *arguments, test_count=count)
        assert result.returncode == 0, result.stdout
        used = {line for line in result.stdout.splitlines() if line.startswith("process ")}
        assert len(used) == expected, arguments


def test_nothing_is_said_where_all_was_run(tmp_path):
    result = pytest_in(tmp_path, test_good="def test_good():\n    pass\n")
    assert result.returncode == 0, result.stdout
    assert "not run here" not in result.stdout
    assert "1 passed in" in result.stdout.splitlines()[-1]


def test_what_is_required_fails(tmp_path):
    program = """
def test_one(monkeypatch):
    import sys
    from tests import optional
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("BNEXT_REQUIRE_TORCH", "1")
    optional.import_torch()

def test_other(monkeypatch):
    import sys
    from tests import optional
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("BNEXT_REQUIRE_TORCH", raising=False)
    optional.import_torch()
"""
    result = pytest_in(tmp_path, test_required=program)
    assert result.returncode == 1, result.stdout
    assert "1 failed in" in result.stdout.splitlines()[-1]
    assert "not run here: 1 test that need PyTorch (pip install torch; " in result.stdout


def test_the_limit_of_a_test_is_above_that_of_what_it_waits_for(pytestconfig):
    assert float(pytestconfig.getini("timeout")) == limits.TEST > limits.WIDE
    assert limits.NEVER > limits.WIDE
