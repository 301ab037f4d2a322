"""How a command ends: Ctrl-C, full disks, closed pipes; what is shown, and where."""

from __future__ import annotations

import argparse
import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bnext import command_line
from bnext.__main__ import main
from bnext.bench import command
from bnext.command_line import CommandError, Parser, check_output, ends_well, write_output
from bnext.demo import options, training

from .optional import import_extra

FULL = Path("/dev/full")
BNEXT = [sys.executable, "-m", "bnext"]
SHORT = ["--network", "dense", "--epochs", "1", "--batch-size", "256"]
STATISTICS = ["statistics", "--network", "dense", "--epochs", "1", "--runs", "1"]
STATISTICS += ["--batch-sizes", "128", "256", "512", "1024", "--decays", "0.9", "0.999"]
TINY = command.QUICK_CASES[-1:]

needs_full = pytest.mark.skipif(not FULL.exists(), reason="about a device of Linux")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- how a command ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "prog: interrupted\n"),
        (BrokenPipeError(), 1, ""),
        (CommandError("no\nluck"), 1, "prog: no luck\n"),
        (CommandError("not so", 2), 2, "prog: not so\n"),
        (OSError(errno.ENOSPC, "No space left"), 1, "prog: No space left\n"),
        (OSError(errno.EACCES, "Denied", "x.png"), 1, "prog: x.png: Denied\n"),
        (MemoryError("64 GiB"), 1, "prog: not enough memory: 64 GiB\n"),
        (MemoryError(), 1, "prog: not enough memory\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_error_is_a_line_and_a_status(error, status, line, capsys):
    @ends_well("prog")
    def fails():
        raise error

    assert fails() == status
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    @ends_well("prog")
    def fails():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fails()


def run(words, **options):
    return subprocess.run(
        [*BNEXT, *words], stderr=subprocess.PIPE, text=True, check=False, **options
    )


@needs_full
@pytest.mark.parametrize("words", [["config"], ["--help"], ["bench", "--quick"]])
def test_a_full_standard_output(words):
    with FULL.open("w") as full:
        result = run(words, stdout=full)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.endswith(": No space left on device\n")


def test_a_reader_that_has_gone():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        result = run(["config"], stdout=closed)
    assert (result.returncode, result.stderr) == (1, "")


def test_streams_that_are_closed():
    line = " ".join([*BNEXT, "config", ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0


@pytest.mark.usefixtures("extra")
def test_an_encoding_without_the_letters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = run([*SHORT, "--no-picture"], stdout=subprocess.PIPE, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "with" in result.stdout


# --- what was measured is shown -------------------------------------------------------------------


@pytest.fixture
def stops_in_the_third_run(monkeypatch):
    import_extra("rich")
    from bnext.demo import run
    from bnext.demo.statistics import run as statistics_run

    calls = []

    def stopping(work, error):
        def work_or_stop(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 3:
                raise error
            return work(*arguments, **options)

        return work_or_stop

    def stop(error):
        monkeypatch.setattr(run, "train", stopping(training.train, error))
        monkeypatch.setattr(statistics_run, "run_case", stopping(statistics_run.run_case, error))

    return stop


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "not enough memory"),
    ],
)
def test_the_demo_shows_the_runs_that_ended(
    error, status, reason, stops_in_the_third_run, tmp_path, capsys
):
    stops_in_the_third_run(error)
    picture = tmp_path / "x.png"
    assert main([*SHORT, "--output", str(picture)]) == status
    printed = capsys.readouterr()
    assert len(re.findall(r"^ *0\.1 +(?:with|without) ", printed.out, re.MULTILINE)) == 2
    assert not re.search(r"^ *1\.5 +with", printed.out, re.MULTILINE)
    assert printed.err == f"python -m bnext: {reason}\n"
    assert not picture.exists()


@pytest.mark.usefixtures("extra")
def test_statistics_shows_the_batch_sizes_that_it_came_to(stops_in_the_third_run, tmp_path, capsys):
    stops_in_the_third_run(KeyboardInterrupt())
    words = ["statistics", "--network", "dense", "--epochs", "1", "--runs", "1", "--decays", "0.9"]
    numbers = tmp_path / "x.csv"
    words += ["--batch-sizes", "128", "256", "512", "--no-picture", "--csv", str(numbers)]
    assert main(words) == 130
    printed = capsys.readouterr()
    headers = [line.split() for line in printed.out.splitlines()]
    assert ["128", "256"] in headers
    assert "512" not in printed.out
    assert "nan" not in printed.out
    assert printed.err == "python -m bnext statistics: interrupted\n"
    assert not numbers.exists()


@pytest.mark.usefixtures("short_turns")
def test_bench_shows_what_it_has_measured(monkeypatch, capsys):
    real = command.measure

    def measure(*arguments, **options):
        for number, measurement in enumerate(real(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield measurement

    monkeypatch.setattr(command, "QUICK_CASES", TINY)
    monkeypatch.setattr(command, "measure", measure)
    assert main(["bench", "--quick"]) == 130
    printed = capsys.readouterr()
    assert "forward" in printed.out
    assert "backward" in printed.out
    assert "inference" not in printed.out
    assert printed.err == "python -m bnext bench: interrupted\n"


@pytest.mark.usefixtures("extra")
def test_a_real_interrupt():
    words = ["statistics", "--no-picture"]
    process = subprocess.Popen(
        [*BNEXT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that run in the background of a shell ignore it, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        assert process.stdout.readline().startswith("Training on")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert errors == "python -m bnext statistics: interrupted\n"
    # CPython ends itself by the signal if it came while a string was executed, as modules do that
    # make classes; shells say 130 of both.
    assert process.returncode in (130, -signal.SIGINT)


# --- files ----------------------------------------------------------------------------------------


def checked(path, suffixes=()):
    check_output(Parser(prog="prog"), "--out", path, suffixes)


def test_a_check_leaves_nothing_behind(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("old")
    checked(old)
    checked(tmp_path / "new.json", [".json"])
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("name", ["x.txt", "no/x.png", "folder.png"])
def test_a_wrong_name_is_a_wrong_command_line(name, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        checked(tmp_path / name, [".png"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("prog: error: --out: expected ")


def test_no_room_is_noticed_before_the_work(tmp_path, monkeypatch, capsys):
    """Each option that names a file, of each command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", no_space)
    monkeypatch.setattr(options, "missing_extra", lambda **_: pytest.fail("began"))
    monkeypatch.setattr(command, "environment", lambda *_: pytest.fail("began"))
    lines = {
        (): "--output: cannot write bnext-demo.png",
        ("statistics",): "--output: cannot write bnext-statistics.png",
        ("statistics", "--csv", "x.csv"): "--csv: cannot write x.csv",
        ("bench", "--json", "x.json"): "--json: cannot write x.json",
    }
    for words, line in lines.items():
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.endswith(f": {line}: No space left on device\n")
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CommandError, match=r"--out: cannot write .*: Permission denied"):
        checked(tmp_path / "x.png")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path, link = tmp_path / "x.json", tmp_path / "link.json"
    write_output(path, b"first")
    path.chmod(0o640)
    link.symlink_to(path)
    write_output(link, b"second")
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"second", 0o640)
    real = Path.write_bytes

    def half(self, content):
        real(self, content[:2])
        no_space()

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_output(path, b"third")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "x.json"]


@needs_full
@pytest.mark.usefixtures("extra")
def test_a_disk_that_fills_up_meanwhile(tmp_path, capsys):
    picture = tmp_path / "x.png"
    picture.symlink_to(FULL)
    assert main([*SHORT, "--output", str(picture)]) == 1
    printed = capsys.readouterr()
    assert re.search(r"0\.1 +with +\d", printed.out)  # the tables are there
    assert printed.err == f"python -m bnext: {picture}: No space left on device\n"
    assert "Picture" not in printed.out


def test_types_of_options():
    number = command_line.at_least(2, 9)
    assert [number("2"), number(" 9 ")] == [2, 9]
    for text in ("1", "-3", "two", "2.0", ""):
        with pytest.raises(
            argparse.ArgumentTypeError, match=rf"^expected an integer >= 2, got {text}$"
        ):
            number(text)
    for text in ("10", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match=r"^expected an integer from 2 to 9,"):
            number(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"^expected an existing file, got no"):
        command_line.existing_file("no")


# --- the terminal ---------------------------------------------------------------------------------


def in_terminal(words, stdout_too=False, **environment):
    """Standard output and error of a command whose error goes to a terminal of 60 columns."""
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm", "COLUMNS": "60", "LINES": "50", **environment}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*BNEXT, *words],
        stdin=slave, stdout=slave if stdout_too else subprocess.PIPE, stderr=slave, env=variables,
    )  # fmt: skip
    os.close(slave)
    found = {master: b""}
    if not stdout_too:
        found[process.stdout.fileno()] = b""
    waiting = set(found)
    while waiting:
        for descriptor in select.select(waiting, [], [])[0]:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # the last process has left the terminal
                data = b""
            found[descriptor] += data
            if not data:
                waiting.discard(descriptor)
    if not stdout_too:
        process.stdout.close()
    os.close(master)
    assert process.wait() == 0
    shown = found.pop(master).decode()
    return "".join(text.decode() for text in found.values()), shown


@pytest.mark.usefixtures("extra")
def test_progress_goes_to_the_standard_error():
    output, errors = in_terminal([*SHORT, "--no-picture"])
    assert "\x1b" not in output
    assert "dense 0.1" not in output
    assert re.search(r"0\.1 +with +\d", output)
    assert "dense 0.1" in errors
    assert "outcome" not in errors


def lines_of(shown):
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown)]


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("words", "environment"),
    [(STATISTICS, {"NO_COLOR": "1"}), (SHORT, {"TERM": "dumb"}), (STATISTICS, {})],
    ids=["no colour", "dumb", "colours"],
)
def test_a_narrow_terminal_without_colours(words, environment):
    _, shown = in_terminal([*words, "--no-picture"], stdout_too=True, **environment)
    if environment:
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)
    assert "\u2026" not in shown  # nothing was cut off
    assert max(map(len, lines_of(shown))) <= 60


@pytest.mark.usefixtures("short_turns")
@pytest.mark.parametrize("rich", [True, False])
def test_tables_of_bench_fit_a_narrow_terminal(rich, monkeypatch, capsys):
    if rich:
        import_extra("rich")
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(command, "QUICK_CASES", TINY)
    assert main(["bench", "--quick", "--threads", "1"]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert "\u2026" not in text
    for name in ("x NumPy", "bnext ms (p10-p90)", "GB/s", "of copy"):
        assert name in text
    assert text.count("forward") >= 2 * text.count("of copy")
