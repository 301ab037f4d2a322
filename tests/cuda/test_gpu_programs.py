"""The programs that a GPU is for, `benchmarks/gpu`, in dry runs: emulated kernels, no GPU."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import dry, facts, first
from benchmarks.gpu.__main__ import main as measure
from bnext.bench.cases import Case

from ..limits import WIDE
from ..optional import import_emulated

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def kernels(torch):
    return import_emulated()


@pytest.fixture
def python(tmp_path):
    """An environment whose python3 is the one that runs the tests."""
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "python3"
    link.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    link.chmod(0o755)
    return os.environ | {"PATH": f"{link.parent}:{os.environ['PATH']}"}


def facts_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_kind(found, what):
    return [fact for fact in found if fact["what"] == what]


@pytest.fixture
def few(monkeypatch):
    """One case of those kinds that take longest."""
    monkeypatch.setattr(first, "COMPARED", first.COMPARED[1:2])
    monkeypatch.setattr(first, "ALONE", first.ALONE[1:])


def test_every_step_of_the_first_minutes(kernels, few, tmp_path, capsys):
    assert first.main(["--dry", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    found = facts_of(tmp_path / "first.jsonl")
    assert not of_kind(found, "FAILED")
    assert [fact["step"] for fact in of_kind(found, "step")] == list(first.STEPS)
    assert {fact["of"] for fact in of_kind(found, "bandwidth")} == {"copy", "read", "write"}

    measured = [facts.row_of(fact) for fact in of_kind(found, "row")]
    assert len(measured) == 4 * 3 * 2 + 2 * 2  # layers, dtypes, passes; rows in two dtypes
    assert all({"bnext", "torch"} <= set(row.kernel) for row in measured)

    checked = of_kind(found, "check")
    assert len(checked) == len(first.CHECKED) * 2 * 2 * 5  # dtypes, passes, paths
    assert all(fact["right"] and fact["same_bits"] for fact in checked if "refused" not in fact)
    for operation in first.PASSES:
        taken = {f["path"] for f in checked if f["operation"] == operation and "errors" in f}
        assert taken == set(kernels.paths(operation))

    assert {fact["of"] for fact in of_kind(found, "phase")} == {"copy", *first.PHASES}
    assert {len(fact["us"]) for fact in of_kind(found, "paths")} == {5}
    assert len(of_kind(found, "wall")) == 6

    capsys.readouterr()
    assert first.main(["--summary", str(tmp_path / "first.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(checked)} checks, of which 0 are wrong; {len(measured)} rows" in printed
    assert "WRONG" not in printed


def test_launches_for_a_profiler(kernels):
    assert first.main(["--dry", "--profile"]) == 0


def test_phases_are_what_the_kernels_call_so(kernels):
    assert set(first.PHASES) < set(kernels.operations())


def test_wrong_values_and_changing_bits_are_told(kernels, few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(first, "CHECKED", (Case("rows", (20, 6)),))
    calls, numbers = first.peers.bnext_calls, iter(range(10**6))

    def spoiled(sets, out=True):
        def forward(s):
            y, saved = calls(sets, out)["forward"](s)
            y[0, 0] += next(numbers)
            return y, saved

        return calls(sets, out) | {"forward": forward}

    monkeypatch.setattr(first.peers, "bnext_calls", spoiled)
    first.main(["--dry", "--out", str(tmp_path), "--steps", "checks"])
    capsys.readouterr()
    first.main(["--summary", str(tmp_path / "first.jsonl")])
    assert "20 checks, of which 10 are wrong" in capsys.readouterr().out


def test_a_failing_step_keeps_the_others_and_fails_the_program(
    kernels, few, tmp_path, capsys, monkeypatch
):
    def fail(facts):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(first.STEPS, "phases", fail)
    assert first.main(["--dry", "--out", str(tmp_path), "--steps", "phases,wall"]) == 1
    found = facts_of(tmp_path / "first.jsonl")
    (failed,) = of_kind(found, "FAILED")
    assert "illegal memory access" in failed["reason"]
    assert of_kind(found, "wall")


def test_steps_end_when_the_time_is_over(kernels, few, tmp_path, capsys):
    arguments = ["--dry", "--out", str(tmp_path), "--steps", "layers,checks,phases,paths"]
    assert first.main([*arguments, "--seconds", "1e-9"]) == 0
    found = facts_of(tmp_path / "first.jsonl")
    assert not of_kind(found, "row")
    assert len(of_kind(found, "out of time")) == 3
    assert [fact["cases"] for fact in of_kind(found, "left out")] == [8]  # in two dtypes


def test_the_suite(kernels, tmp_path, capsys):
    arguments = ["--dry", "--out", str(tmp_path), "--only", "rows", "--dtypes", "bfloat16"]
    assert measure(arguments) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "results.json").read_text())
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == found["rows"]
    assert len(found["rows"]) == 8 * 3


def test_an_interrupt_finishes_the_report(kernels, tmp_path, python):
    """Also in a program that was started with the signal ignored, as shells start those behind."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(tmp_path / "out")]
    ignoring = f"trap '' INT; exec {' '.join(command)}"
    with subprocess.Popen(
        ["sh", "-c", ignoring], cwd=ROOT, env=python, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        lines = tmp_path / "out" / "rows.jsonl"
        while process.poll() is None and not (lines.exists() and lines.stat().st_size > 5000):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=WIDE)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert any(item["reason"] == "interrupted" for item in found["skipped"])
    assert len(found["rows"]) == len(lines.read_text().splitlines()) - 1
    assert f"{len(found['rows'])} rows" in printed


def test_nothing_is_left_of_a_dry_run(kernels):
    import bnext

    before = first.peers.DEVICE, bnext.cuda._load, first.timing.CALLS
    with dry.run():
        assert first.peers.DEVICE == "cpu"
        assert bnext.cuda._load() is kernels
    assert before == (first.peers.DEVICE, bnext.cuda._load, first.timing.CALLS)


# --- the scripts ----------------------------------------------------------------------------------


def bash(program, environment, folder):
    """Runs lines after `steps.sh` and its command line; the log goes to the folder."""
    text = f'. "{FOLDER}/steps.sh"\ncommand_line 60 "{folder}"\n{program}'
    return subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=WIDE, check=False,
    )  # fmt: skip


@needs_bash
def test_a_stage_has_a_limit_and_its_command_can_still_speak(tmp_path, python):
    sleeper = "import time\ntry: time.sleep(1000)\nexcept KeyboardInterrupt: print('evidence')"
    program = f"""
        trap '' INT
        stage good 9 echo all is well
        stage bad 9 sh -c 'echo a reason; exit 3'
        stage slow 5 python3 -c "{sleeper}"
        total=0
        stage late 9 echo never
        printf '%s\\n' "${{summary[@]}}"
        exit $failed
    """
    result = bash(program, python, tmp_path / "out")
    assert result.returncode == 1, result.stderr
    verdicts = [" ".join(line.split()[3:]) for line in result.stdout.splitlines()[-4:]]
    assert verdicts == [
        "passed", "FAILED with status 3", "stopped after 5 s", "not run: no time was left"
    ]  # fmt: skip
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "all is well" in log
    assert "a reason" in log
    assert "evidence" in log
    assert "never" not in log


@needs_bash
def test_a_fingerprint_follows_the_sources(tmp_path, python):
    program = """
        sources; sources
        cp -r csrc cmake CMakeLists.txt pyproject.toml "$work"; cd "$work"
        sources; echo >>csrc/cuda/plan.cpp; sources
    """
    result = bash(program, python, tmp_path / "out")
    once, again, copied, changed = result.stdout.split()
    assert once == again == copied != changed


@needs_bash
@pytest.mark.parametrize(
    ("devices", "stages"), [(0, ["load"]), (1, ["load", "build"])], ids=["no GPU", "another GPU"]
)
def test_a_build_is_tried_where_it_may_help(tmp_path, python, devices, stages):
    """Not without a GPU; but where the wheel has no code for the one that is there."""
    package = tmp_path / "site" / "bnext"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"""class cuda:
    _load = staticmethod(lambda: None)
    reason = staticmethod(lambda: "no code for this one")
    is_available = staticmethod(lambda: False)
    device_count = staticmethod(lambda: {devices})
show_config = lambda: None
""")
    program = f"""
        unpack() {{ cp -r "{tmp_path}/site" "$work"; }}
        build_options=(--no-such-option)
        provide_package; echo "provided: $?"; printf '%s\n' "${{summary[@]}}"
    """
    result = bash(program, python, tmp_path / "out")
    _, summary = result.stdout.split("provided: ")
    status, *lines = summary.splitlines()
    assert status != "0"
    assert [line.split()[0] for line in lines] == stages


@needs_bash
@pytest.mark.parametrize("name", ["first", "run", "prepare"])
def test_scripts_say_how_they_are_called(name, python):
    given = ["--architectures"] if name == "prepare" else ["--seconds", "x", "out"]
    result = subprocess.run(
        [FOLDER / name, *given], env=python, capture_output=True, text=True, timeout=WIDE,
        check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")


@needs_bash
@pytest.mark.parametrize("name", ["first", "run"])
def test_dry_runs_of_the_scripts(kernels, name, tmp_path, python):
    result = subprocess.run(
        [FOLDER / name, "--dry", "out"], cwd=tmp_path, env=python | {"PYTHONPATH": path()},
        capture_output=True, text=True, timeout=WIDE, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert result.stdout.endswith(summary)
    stages = {
        "first": "smoke layers checks more ncu",
        "run": "smoke tests alone memcheck racecheck benchmark initcheck synccheck",
    }[name].split()
    passed = [line.split()[0] for line in summary.splitlines() if line.endswith(" s  passed")]
    assert passed == stages
    lines = tmp_path / "out" / {"first": "first.jsonl", "run": "rows.jsonl"}[name]
    assert len(lines.read_text().splitlines()) > 20


def path():
    """Where this process finds bnext: a package with emulated kernels need not be installed."""
    import bnext

    return str(pathlib.Path(bnext.__file__).parents[1])
