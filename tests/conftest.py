"""Fixtures: every instruction set, several numbers of threads, both dtypes, every case."""

import zlib

import numpy as np
import pytest

import bnext

from . import optional
from .cases import CASES, EMPTY

AVAILABLE_ISAS = bnext.show_config(mode="dicts")["isa"]["available"]
needs_openmp = pytest.mark.skipif(
    bnext.show_config(mode="dicts")["threads"]["openmp"] is None, reason="built without OpenMP"
)

SCHEDULES = ("serial", "channels", "split")
THREADS = (1, 2, 3, 7)


def runtimes():
    """Every instruction set, with one or several threads in turn; the best one with both.

    Threads change no bit under any of them (test_determinism.py), so not every pair has to be run.
    """
    best, *others = AVAILABLE_ISAS
    return [(best, 1), (best, 3), *((isa, (3, 1)[i % 2]) for i, isa in enumerate(others))]


@pytest.fixture
def fixed_team():
    """As many threads as a test asks for, whatever waits for them.

    Elsewhere teams adapt, as users have them: on a machine that is busy, tests would wait for most
    of their time. BNEXT_TEAM=fixed makes all of them so.
    """
    before = bnext._core.team_figures()["fixed"]
    bnext._core.fix_team(True)
    yield
    bnext._core.fix_team(before)


# What cannot be run here is told in one line, and not test by test.


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if optional.not_here(report, getattr(report, "call", None)):
        report.outcome, report.longrepr, report.result = "passed", None, []
        optional.count(collector.config, *report.not_here, "file")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if optional.not_here(report, call):
        optional.count(item.config, *report.not_here, "test")
    return report


def pytest_report_teststatus(report):
    return ("", "", "NOT HERE") if hasattr(report, "not_here") else None


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if line := optional.line_of(config):
        terminalreporter.write_line(line)


@pytest.fixture
def rng(request):
    """Random numbers of the test's own, the same in every run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(params=AVAILABLE_ISAS)
def isa(request):
    """Each instruction set that this machine has, forced for the test."""
    with bnext.use_isa(request.param):
        yield request.param


@pytest.fixture(params=runtimes(), ids="{0[0]}-{0[1]}".format)
def runtime(request):
    """An instruction set and a number of threads, forced for the test."""
    isa, threads = request.param
    before = bnext.get_num_threads()
    bnext.set_num_threads(threads)
    with bnext.use_isa(isa):
        yield request.param
    bnext.set_num_threads(before)


@pytest.fixture
def restore_threads():
    """For tests that set the number of threads themselves."""
    before = bnext.get_num_threads()
    yield
    bnext.set_num_threads(before)


@pytest.fixture(params=SCHEDULES)
def schedule(request, fixed_team):
    """Each way to divide the work among threads, forced for the test."""
    bnext._core.force_schedule(request.param)
    yield request.param
    bnext._core.force_schedule(None)


@pytest.fixture(params=[np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    """A scalar type, to index the tolerances with."""
    return request.param


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=EMPTY, ids=str)
def empty_case(request):
    return request.param
