"""Whether a busy machine is noticed, and what the benchmark makes of one."""

import dataclasses
import subprocess
import sys

import pytest

from bnext.bench import cases, command, load, measure, report
from bnext.bench.load import Load, LoadMeter
from bnext.bench.timing import Timing

STAT = """\
cpu  100 0 0 0 0 0 0 0 0 0
cpu0 {0} 0 0 1000 0 0 0 {1} {0} 0
cpu1 {2} 0 0 1000 50 0 0 0 0 0
intr 5
"""


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A clock, this process's time and the system's counts, all set by the test."""

    class Machine:
        now = ours = average = 0.0

        def worked(self, first, second, stolen=0):
            file = tmp_path / "stat"
            file.write_text(
                STAT.format(round(100 * first), round(100 * stolen), round(100 * second))
            )

    machine = Machine()
    machine.worked(1, 1)
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(load, "usable_processors", lambda: [0, 1])
    monkeypatch.setattr(load.time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(load.time, "process_time", lambda: machine.ours)
    monkeypatch.setattr(load, "_load_average", lambda: machine.average)
    return machine


@pytest.mark.parametrize(
    ("first", "second", "stolen", "ours", "taken"),
    [
        (2, 2, 0, 4, 0.0),  # all the work is this process's
        (2, 2, 0, 0, 2.0),
        (2, 1, 0, 1, 1.0),
        (1, 0, 1, 1, 0.5),  # of a virtual machine, what it was not given counts
        (0, 0, 0, 0.01, 0.0),  # clocks that differ a little are no work
    ],
)
def test_what_others_take(machine, first, second, stolen, ours, taken):
    meter = LoadMeter()
    machine.now, machine.ours = 2.0, ours
    machine.worked(1 + first, 1 + second, stolen)
    found = meter.read()
    assert found == Load(2, pytest.approx(taken))
    assert found.is_busy is (taken > 0.25)


def test_where_the_system_tells_nothing_the_load_average_stands_in(machine, monkeypatch, tmp_path):
    machine.average = 7.0
    monkeypatch.setattr(load, "STAT", tmp_path / "no such file")
    meter = LoadMeter()
    machine.now = 2.0
    assert meter.read() == Load(2, 2.0)
    machine.average = 0.1
    assert not LoadMeter().read().is_busy


def test_the_line():
    assert str(Load(2, 1.94)) == (
        "the machine is busy: 1.9 of 2 processors were taken by others during the measurement; "
        "times are no guide"
    )
    assert str(Load(8, 0.04)) == "others took 0.0 of 8 processors"
    assert not Load(64, 6.0).is_busy
    assert Load(64, 7.0).is_busy


@pytest.mark.skipif(not load.STAT.exists(), reason="about a file of Linux")
def test_a_neighbour_is_seen():
    """Counted by its own processor time, whatever else the machine is doing."""
    program = "import time\nwhile time.process_time() < 0.5: pass"
    meter = LoadMeter()
    subprocess.run([sys.executable, "-c", program], check=True)
    found = meter.read()
    seconds = load.time.monotonic() - meter._begin[0]
    assert found.taken * seconds > 0.4


# --- the benchmark --------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_turns")
def test_a_busy_machine_is_told(monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK_CASES", command.QUICK_CASES[-1:])
    for taken, busy in ((1.9, True), (0.0, False)):
        monkeypatch.setattr(LoadMeter, "read", lambda self, taken=taken: Load(2, taken))
        assert command.main(["--quick", "--threads", "1"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert (str(Load(2, 1.9)) in printed) is busy


@pytest.mark.parametrize("busy", [True, False])
def test_neighbours_do_not_turn_a_ratio(busy, monkeypatch):
    """A call of 1 ms that pauses for 8 in three of four turns, beside one of 3 ms that does not."""
    now, turns = [0.0], [0]
    monkeypatch.setattr("bnext.bench.timing.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("bnext.bench.timing.SHORTEST_TURN", 1e-9)
    monkeypatch.setattr(LoadMeter, "read", lambda self: Load(2, 2.0 * busy))

    def ours():
        turns[0] += 1
        now[0] += 1e-3 if turns[0] % 4 == 0 else 9e-3

    def theirs():
        now[0] += 3e-3

    libraries = {
        "bnext": lambda data: {("forward", "fresh"): ours},
        "numpy": lambda data: {("forward", "fresh"): theirs},
    }

    class Copier:
        def __init__(self, threads):
            pass

        def calls(self, data):
            return {"copy": theirs}

        def close(self):
            pass

    def found(**options):
        (one,) = measure.measure(
            [cases.Case("tiny", (4, 3))], pages="fresh", libraries=libraries, threads=1,
            seconds=0.05, operations=("forward",), copier=Copier, **options,
        )  # fmt: skip
        return one

    measured = found(busy_seconds=0.2)
    assert measured.busy is busy
    assert (measured.ratio("numpy") > 1) is busy
    assert measured.timings["bnext"].turns >= (measure.BUSY_TURNS if busy else 3)
    assert found().ratio("numpy") < 1  # without the allowance, medians as ever
    assert report.table([measured])[1][2] == f"{measured.ratio('numpy'):.2f}"
    assert measured.as_dict()["busy"] is busy


def test_typical_times():
    timing = Timing(2.0, 1.0, 5.0, 9, 0.5)
    quiet = measure.Measurement(cases.ROWS_256, "forward", "fresh", {"bnext": timing}, timing)
    assert quiet.typical(timing) == 2.0
    assert dataclasses.replace(quiet, busy=True).typical(timing) == 0.5


def test_rounds_go_on_until_the_quickest_is_settled(monkeypatch):
    rounds = iter([5.0, 3.0, 1.0, 0.9, 0.1])

    def alternate(calls, seconds, fewest):
        best = next(rounds)
        return {name: Timing(9.0, 8.0, 10.0, fewest, best) for name in calls}

    monkeypatch.setattr(measure, "alternate", alternate)
    assert measure._among_neighbours({"a": len}, 0.0)["a"].best == 0.9
    assert next(rounds) == 0.1
