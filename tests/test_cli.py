"""The command line, ``python -m bnext``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import bnext
from bnext.__main__ import main
from bnext.demo import options

from .command_lines import refusal_of, status_of
from .subprocesses import output_of


def exit_status(*words):
    return status_of(main, words)


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "bnext", "--version"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"bnext {bnext.__version__}\n"


@pytest.mark.parametrize(
    "command", [[], ["config"], ["doctor"], ["bench"], ["convert"], ["statistics"]]
)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(command, word, capsys):
    assert exit_status(*command, word) == 0
    output = capsys.readouterr().out
    assert output.startswith(" ".join(["usage: python -m bnext", *command]))


def test_the_console_script_says_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/bnext", "bench", "--threads", "0"])
    assert exit_status("bench", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: bnext bench ")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("bnext bench: error: argument --threads: ")


def test_help_names_the_commands_and_every_option(capsys):
    exit_status("--help")
    output = capsys.readouterr().out
    for word in (
        "config",
        "doctor",
        "bench",
        "convert",
        "statistics",
        "--network",
        "--epochs",
        "--seed",
        "--output",
    ):
        assert word in output
    for word in ("--batch-size", "--rates", "--no-picture"):
        assert word in output


def test_config_prints_what_show_config_does(capsys):
    bnext.show_config()
    expected = capsys.readouterr().out
    assert exit_status("config") == 0
    printed, _, load = capsys.readouterr().out.partition("load:\n")
    assert printed == expected
    assert expected
    assert re.search(r"\d of \d+ processors", load)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "unrecognized arguments: nonsense"),
        (["doctor", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["config", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--network", "recurrent"], "argument --network: invalid choice: 'recurrent'"),
        (["--epochs", "0"], "argument --epochs: expected an integer >= 1, got 0"),
        (["--epochs", "many"], "argument --epochs: expected an integer >= 1, got many"),
        (["--batch-size", "1"], "argument --batch-size: expected an integer >= 2, got 1"),
        (["--batch-size", "1438"], "--batch-size: expected at most the 1437 training images"),
        (["--rates", "1", "nan"], "argument --rates: expected a finite number > 0, got nan"),
        (["--rates", "1"], "argument --rates: expected 2 arguments"),
        (["--seed", "-1"], "argument --seed: expected an integer >= 0, got -1"),
        (["--seed", "4294967296"], "argument --seed: expected an integer from 0 to 4294967295"),
        (["--seed", "9" * 5000], "argument --seed: expected an integer from 0 to 4294967295"),
        (["--epochs", "9" * 30], "argument --epochs: expected an integer from 1 to 100000"),
        (["statistics", "--runs", "1" + "0" * 9], "argument --runs: expected an integer from 1 to"),
        (["statistics", "--seed", "4294967295"], "--seed: expected at most 4294967293 with 3 runs"),
        (["statistics", "--csv", "no/such/x.csv"], "--csv: expected an existing folder"),
        (["bench", "--threads", "1000000"], "--threads: expected an integer from 1 to 1024, got 1"),
        (["bench", "--threads", "-1"], "--threads: expected an integer >= 1, got -1"),
        (["bench", "--json", "/"], "--json: expected a file, got the folder /"),
        (["--output", "x.bmp"], "--output: expected a name ending in .png, .svg or .pdf"),
        (["--output", "no/such/x.png"], "--output: expected an existing folder"),
    ],
)
def test_mistakes_are_named_and_exit_with_2(words, message, capsys):
    error = refusal_of(main, words, capsys)
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_one_line_that_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(options, "EXTRA", {"json": "json", "scikit-learn": "no_such_module"})
    assert exit_status() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "python -m bnext: expected scikit-learn, not installed here: pip install 'bnext[demo]'\n"
    )


def test_without_a_picture_matplotlib_is_not_needed(monkeypatch, capsys):
    monkeypatch.setattr(options, "EXTRA", {"json": "json", "matplotlib": "no_such_module"})
    assert options.missing_extra(picture=False) == []
    for words in ([], ["statistics"]):
        assert exit_status(*words) == 2
        assert "expected matplotlib, not installed here" in capsys.readouterr().err


@pytest.mark.usefixtures("extra")
def test_without_a_picture_matplotlib_is_not_imported():
    words = ["--network", "dense", "--epochs", "1", "--no-picture"]
    commands = words, ["statistics", "--runs", "1", "--batch-sizes", "512", *words]
    program = f"""
        import sys
        from bnext.__main__ import main
        for words in {commands}:
            print(main(words), "matplotlib" in sys.modules)
    """
    lines = output_of(program).splitlines()
    assert lines.count("0 False") == 2


def test_config_and_help_do_without_the_extra(monkeypatch):
    monkeypatch.setattr(options, "EXTRA", {"scikit-learn": "no_such_module"})
    assert exit_status("config") == 0
    assert exit_status("--help") == 0
    assert exit_status("statistics", "--help") == 0


@pytest.mark.usefixtures("extra")
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--network", "dense", "--epochs", "1", "--batch-size", "256", "--seed", "3"]
    assert exit_status(*words) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert re.search(r"0\.1 +with +\d+\.\d% +\d", output.out)
    assert output.out.endswith(f"Picture: {tmp_path / 'bnext-demo.png'}\n")
    assert (tmp_path / "bnext-demo.png").is_file()


@pytest.mark.usefixtures("extra")
def test_demo_without_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--network", "conv", "--epochs", "1", "--batch-size", "512", "--no-picture"]
    assert exit_status(*words) == 0
    assert "Picture" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
