"""Fixtures: every instruction set, several numbers of threads, both dtypes, every case."""

import gc
import os
import zlib

import numpy as np
import pytest

import bnext
from bnext.bench.timing import FEWEST_TURNS
from bnext.demo.options import EXTRA

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


def pytest_collection_finish():
    """Tests that collect garbage do not look through all tests each time."""
    gc.collect()
    gc.freeze()


# The whole suite takes a process for each processor, up to four; chosen files take one. Most tests
# keep one processor busy. `-n` of pytest-xdist says otherwise.

MOST_PROCESSES = 4


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    if (
        getattr(config.option, "numprocesses", 0) is None  # pytest-xdist is there, and no -n given
        and not hasattr(config, "workerinput")
        and not config.option.usepdb
        and config.args_source is not config.ArgsSource.ARGS
    ):
        processors = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        if processors > 1:
            config.option.numprocesses = min(processors, MOST_PROCESSES)


# A test runs where its markers find what they say; what cannot be run here is told in one line.


def pytest_itemcollected(item):
    optional.mark_by_fixtures(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    optional.require_what_is_marked(item)


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


def pytest_sessionfinish(session):
    optional.hand_over(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    optional.take_over(node.config, node)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if line := optional.line_of(config):
        terminalreporter.write_line(line)


@pytest.fixture
def place():
    """Where arrays are; tests/cuda runs tests with this fixture elsewhere."""
    from .norms import HERE

    return HERE


@pytest.fixture
def collected():
    """For tests that count memory in use: earlier tests leave none to be collected meanwhile."""
    gc.collect()


def generator_of(item):
    return np.random.default_rng(zlib.crc32(item.nodeid.encode()))


@pytest.fixture
def rng(request):
    """Random numbers of the test's own, the same in every run."""
    return generator_of(request.node)


class Environments(list):
    """What `pytest_pyfunc_call` runs the body of a test in, one after the other."""


@pytest.fixture
def isa(request):
    """Each instruction set that this machine has, forced in turn; or one, as a parameter."""
    return Environments([request.param] if hasattr(request, "param") else AVAILABLE_ISAS)


@pytest.fixture
def runtime(restore_threads):
    """An instruction set and a number of threads, forced in turn."""
    return Environments(runtimes())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test with `isa` or `runtime` is one test: its body draws the same numbers in each."""
    arguments = dict(pyfuncitem.funcargs)
    name = next((name for name, v in arguments.items() if isinstance(v, Environments)), None)
    if name is None:
        return None
    for environment in arguments[name]:
        given = arguments | {name: environment}
        if "rng" in given:
            given["rng"] = generator_of(pyfuncitem)
        isa = environment
        if name == "runtime":
            isa, threads = environment
            bnext.set_num_threads(threads)
        try:
            with bnext.use_isa(isa):
                pyfuncitem.obj(**{each: given[each] for each in pyfuncitem._fixtureinfo.argnames})
        except BaseException:
            pyfuncitem.add_report_section("call", name, f"{environment}")
            raise
    return True


@pytest.fixture
def short_turns(monkeypatch):
    """For benchmarks whose form is looked at, and not what they find."""
    monkeypatch.setattr("bnext.bench.timing.SHORTEST_TURN", 1e-5)
    monkeypatch.setattr("bnext.bench.timing.MOST_TURNS", FEWEST_TURNS)


@pytest.fixture(scope="session")
def torch():
    """PyTorch; a test that takes it has its marker."""
    import torch

    return torch


@pytest.fixture(scope="session")
def jax():
    """JAX; a test that takes it has its marker."""
    import jax

    return jax


@pytest.fixture
def extra():
    """For what needs the extra `demo`: it runs where that is installed."""
    for module in EXTRA.values():
        optional.import_extra(module)


@pytest.fixture(scope="session")
def digits():
    optional.import_extra("sklearn")
    from bnext.demo.data import split_digits

    return split_digits(seed=0)


@pytest.fixture
def restore_threads():
    """For tests that set the number of threads, or the schedule, themselves."""
    before = bnext.get_num_threads()
    yield
    bnext.set_num_threads(before)
    bnext._core.force_schedule(None)


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
