"""How many threads a call gets: what is allowed, what is free, and what waiting has cost."""

import ctypes
import ctypes.util
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import bnext
from bnext import _core

from .compare import assert_same_bits
from .conftest import needs_openmp
from .subprocesses import output_of

LARGE = (16, 64, 56, 56)
"""12.8 MB of float32: two threads halve its time."""

processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
needs_two_processors = pytest.mark.skipif(len(processors) < 2, reason="needs two processors")
pytestmark = needs_openmp


@pytest.fixture
def adaptive():
    """Teams as users have them, of two threads at most."""
    before, fixed = bnext.get_num_threads(), _core.team_figures()["fixed"]
    bnext.set_num_threads(2)
    _core.fix_team(False)
    yield
    _core.fix_team(fixed)
    bnext.set_num_threads(before)


@pytest.fixture
def affinity():
    """For tests that change where the calling thread may run."""
    yield
    os.sched_setaffinity(0, processors)


def regions_of(call):
    """How many regions of several threads a call takes."""
    before = _core.team_figures()["regions"]
    call()
    return _core.team_figures()["regions"] - before


def until(condition):
    """Wait for something that must come, however slow the machine is."""
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it does not come"


@needs_two_processors
@pytest.mark.usefixtures("adaptive", "affinity")
def test_the_affinity_mask_as_it_is_now(rng):
    x = rng.normal(size=LARGE).astype(np.float32)
    _, saved = bnext.batch_norm_forward(x)
    operations = {
        "forward": lambda: bnext.batch_norm_forward(x),
        "backward": lambda: bnext.batch_norm_backward(x, x, saved),
        "moments": lambda: bnext.moments(x),
        "normalize": lambda: bnext.normalize(x, saved.mean, saved.var),
    }
    for name, call in operations.items():
        os.sched_setaffinity(0, processors[:1])
        assert _core.team_figures()["now"] == 1
        assert regions_of(call) == 0, name
        os.sched_setaffinity(0, processors)
        until(lambda call=call: regions_of(call) == 1)


@pytest.mark.usefixtures("adaptive")
def test_small_calls_take_one_thread(rng):
    for shape in ((64, 20), (64, 16, 8, 8), (256, 64)):
        x = rng.normal(size=shape).astype(np.float32)
        assert regions_of(lambda x=x: bnext.batch_norm_forward(x)) == 0


BUSY = """
    import os, subprocess, sys, time
    import numpy as np
    import bnext

    figures = bnext._core.team_figures
    bnext.set_num_threads(2)
    x = np.random.default_rng(0).normal(size=(64, 32, 8, 8)).astype(np.float32)
    out = np.empty_like(x)

    def spin(processor):
        program = f"import os; os.sched_setaffinity(0, [{processor}]); print(flush=True)\\n"
        program += f"while os.getppid() == {os.getpid()}: pass"  # no longer than this process
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    neighbours = [spin(processor) for processor in sorted(os.sched_getaffinity(0))]
    try:
        for neighbour in neighbours:
            neighbour.stdout.readline()
        before, begin = figures(), time.monotonic()
        end, sizes = begin + 300, set()
        while (len(sizes) < 2 or time.monotonic() < begin + 1) and time.monotonic() < end:
            bnext.batch_norm_forward(x, out=out)
            figures_now = figures()
            sizes.add(figures_now["now"])
        after, took = figures(), time.monotonic() - begin
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
            neighbour.stdout.close()
    lost = after["lost_seconds"] - before["lost_seconds"]
    print(len(sizes) == 2, lost, took)
    # The neighbours are gone: the team grows again.
    regions, end = figures()["regions"], time.monotonic() + 300
    while figures()["regions"] < regions + 20 and time.monotonic() < end:
        bnext.batch_norm_forward(x, out=out)
    print(figures()["regions"] >= regions + 20)
"""


# Teams that adapt, whose threads wait by the runtime's own policy, whatever the tests have.
AS_USERS_HAVE_THEM = {"BNEXT_TEAM": "adaptive", "OMP_WAIT_POLICY": None}


@needs_two_processors
def test_taken_cores_cost_a_fraction_of_the_time():
    """Neighbours on all cores: the team shrinks, tries again at times, and grows when they go."""
    if len(processors) > 8:
        pytest.skip("too many processors to be taken all")
    shrank, lost, took, grew = output_of(BUSY, **AS_USERS_HAVE_THEM).split()
    assert (shrank, grew) == ("True", "True")
    # A fiftieth of the time, what is forgotten at once, and what the last attempt lost: at most a
    # few time slices, in every account.
    assert float(lost) < 0.05 * float(took) + 0.2


QUOTA = """
    import numpy as np
    import bnext

    bnext.set_num_threads(2)
    x = np.random.default_rng(0).normal(size=(32, 64, 14, 14)).astype(np.float32)
    for _ in range(200):
        bnext.batch_norm_forward(x)
    figures = bnext._core.team_figures()
    print(figures["quota"], figures["now"], figures["regions"])
"""


@needs_two_processors
@pytest.mark.parametrize(("quota", "threads"), [(50_000, 1), (100_000, 1), (150_000, 2)])
def test_a_quota_of_processor_time(quota, threads):
    """By a control group of this machine's, if the tests may make one."""
    group = make_control_group(quota)
    if group is None:
        pytest.skip("no control group for processor time may be made here")
    try:
        program = f"with open({group + '/cgroup.procs'!r}, 'w') as file: file.write('0')\n"
        found, now, regions = output_of(
            program + textwrap.dedent(QUOTA), **AS_USERS_HAVE_THEM
        ).split()
    finally:
        os.rmdir(group)
    assert float(found) == quota / 100_000
    assert int(now) == threads
    assert (int(regions) == 0) == (threads == 1)


SPENT = """
    import time
    import numpy as np
    import bnext

    bnext.set_num_threads(2)
    x = np.random.default_rng(0).normal(size=(64, 64, 39, 39)).astype(np.float32)
    out = np.empty_like(x)

    def teams(seconds, pause):
        before, calls, end = bnext._core.team_figures()["regions"], 0, time.monotonic() + seconds
        while time.monotonic() < end:
            bnext.batch_norm_forward(x, out=out)
            calls += 1
            time.sleep(pause)
        return (bnext._core.team_figures()["regions"] - before) / calls

    teams(2.5, 0)
    print(teams(1.5, 0))
    teams(2.5, 0.4)
    print(teams(2.5, 0.4))
"""


@needs_two_processors
def test_a_quota_that_is_spent_bounds_long_calls_too():
    """Calls in a row lack processor time; calls now and then are bursts, and take all threads."""
    group = make_control_group(50_000)
    if group is None:
        pytest.skip("no control group for processor time may be made here")
    try:
        program = f"with open({group + '/cgroup.procs'!r}, 'w') as file: file.write('0')\n"
        in_a_row, now_and_then = output_of(
            program + textwrap.dedent(SPENT), **AS_USERS_HAVE_THEM
        ).split()
    finally:
        os.rmdir(group)
    assert float(in_a_row) == 0
    # (On a machine that is busy otherwise, neighbours make teams smaller.)
    assert float(now_and_then) > 0


def make_control_group(quota):
    """Make a group of that many microseconds in 100,000; None if none can be made."""
    for root, files in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(quota)}),
        ("/sys/fs/cgroup", {"cpu.max": f"{quota} 100000"}),
    ):
        group = f"{root}/bnext-test-{os.getpid()}"
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            for name, text in files.items():
                with open(f"{group}/{name}", "w") as file:
                    file.write(text)
            return group
        except OSError:
            os.rmdir(group)
    return None


def test_the_environment_can_fix_the_team():
    program = "import bnext; print(bnext.show_config(mode='dicts')['threads']['fixed'])"
    assert output_of(program, BNEXT_TEAM="fixed") == "True"
    assert output_of(program, **AS_USERS_HAVE_THEM) == "False"
    assert output_of(program, BNEXT_TEAM=None) == "False"
    environment = {**os.environ, "BNEXT_TEAM": "large"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert "BNEXT_TEAM: expected adaptive or fixed, got 'large'" in done.stderr


@pytest.mark.usefixtures("restore_threads", "fixed_team")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_rounding_mode_of_a_thread_changes_no_bit(rng, threads):
    """Each thread has modes of its own, which libraries set; so have OpenMP's threads."""
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("no library of mathematics to set the rounding mode with")
    maths = ctypes.CDLL(name)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(os.uname().machine)
    if upward is None:
        pytest.skip("the number of the rounding mode is not known here")
    bnext.set_num_threads(threads)
    arguments = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in ((64, 20), LARGE)]

    def compute():
        for x, dy in arguments:
            bn = bnext.BatchNorm(x.shape[1])
            yield bn(x)
            yield bn.backward(dy)
            yield from (bn.weight_grad, bn.running_mean, bn.running_var)
            yield bnext.moments(x).m2
            yield bnext.normalize(x, bn.running_mean, bn.running_var)

    expected = list(compute())
    try:
        assert maths.fesetround(upward) == 0
        results = list(compute())
        assert maths.fegetround() == upward  # as it was
    finally:
        maths.fesetround(0)
    for result, value in zip(results, expected, strict=True):
        assert_same_bits(result, value)
