"""python -m benchmarks, on tiny cases: it measures, resumes, merges and reports."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import bnext
from benchmarks import __main__ as command
from benchmarks import cases, exactness, plots, results
from benchmarks.kit.documents import write

from .command_lines import refusal_of
from .optional import import_extra, marks_of
from .suite import TINY, no_picture


@pytest.mark.torch
@pytest.mark.onednn
def test_accuracy_of_everybody(monkeypatch):
    monkeypatch.setattr(exactness, "CASES", exactness.CASES[:2])
    rows, _ = exactness.measure(dtypes=("float32",), draws=1)
    ordinary = [r for r in rows if r["kind"] == "ordinary"]
    assert [r["case"] for r in ordinary] == ["NCHW 28x28", "NHWC 28x28"]
    for r in ordinary:
        assert set(r["errors"]) == {"bnext", "torch", "onednn"}
        assert max(r["errors"]["bnext"]) < 4
        assert max(r["errors"]["onednn"]) < 1000


BESIDE = {
    "numpy": pytest.param(("numpy",)),
    "all": pytest.param(("torch", "onednn", "numpy"), marks=marks_of(["torch", "onednn"])),
}


@pytest.fixture(params=BESIDE.values(), ids=BESIDE)
def tiny_suite(request, monkeypatch, tmp_path, short_turns):
    """Groups of tiny cases, measured in this process, with parts in a temporary folder."""
    passes = (cases.Pass(("float32", "int32"), peers=request.param, seconds=0.0),)
    call = replace(cases.GROUPS[-1].passes[0], seconds=0.0)
    groups = (
        cases.Group("growth", "Growth", TINY[:1] + TINY[2:3], passes),
        cases.Group("others", "Others", TINY, passes),
        replace(cases.GROUPS[-1], passes=(call,)),
    )
    monkeypatch.setattr(cases, "GROUPS", groups)
    monkeypatch.setattr(exactness, "CASES", exactness.CASES[:1])
    monkeypatch.setattr(exactness, "DRAWS", 1)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    ran = []

    def here(name, path, words):
        ran.append(name)
        assert command.main(["part", name, str(path), *words]) == 0

    monkeypatch.setattr(command, "_start", here)
    return ran


def test_the_command_measures_merges_and_resumes(tiny_suite, tmp_path, capsys, monkeypatch):
    import_extra("matplotlib")
    out = tmp_path / "out"
    words = ["--out", str(out), "--threads", "1", "--dtypes", "float32"]
    with monkeypatch.context() as patch:  # pictures are drawn once
        patch.setattr(plots, "save", no_picture)
        assert command.main([*words, "--only", "growth|call"]) == 0
    assert command.main(words) == 0
    assert tiny_suite == ["growth", "call", "others", "accuracy"]
    assert "no shape slower than PyTorch" in capsys.readouterr().out
    document = results.FORMAT.read(out / "results.json")
    assert [group["name"] for group in document["groups"]] == [
        "growth",
        "others",
        "call",
        "accuracy",
    ]
    rows = results.rows_of(document)
    assert {r.threads for r in rows} == {1}
    assert {r.pages for r in rows if r.group == "others"} == {"warm", "fresh"}
    assert all("bnext" in r.timings for r in rows)
    assert all(r.handover_ns is None or r.handover_ns > 1 for r in rows)
    assert document["environment"]["versions"]["bnext"] == bnext.__version__
    report = (out / "report.md").read_text()
    for name in re.findall(r"\]\((.*\.png)\)", report):
        assert 0 < (out / name).stat().st_size < 150_000
    assert "## Accuracy" in report
    lines = (out / "rows.csv").read_text().splitlines()
    assert len(lines) == len(rows) + 1
    assert tiny_suite.count("growth") == 1
    # The same again from the file alone.
    monkeypatch.setattr(plots, "save", no_picture)
    assert command.main(["report", str(out / "results.json"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "report.md").read_text() == report
    # Another build of the kernels is measured anew.
    monkeypatch.setattr(command, "build", lambda: "another")
    monkeypatch.setattr(command, "write_report", lambda merged, out: out)
    assert command.main([*words, "--only", "growth"]) == 0
    assert tiny_suite.count("growth") == 2


def test_refused_dtypes_are_said(tiny_suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cases, "ALL_DTYPES", ("float32", "int32"))
    import_extra("matplotlib")
    words = ["--out", str(tmp_path / "out"), "--only", "growth", "--dtypes", "int32"]
    assert command.main(words) == 0
    assert "skipped:  int32: bnext: x: expected" in capsys.readouterr().out
    assert tiny_suite == ["growth"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "no such group"], "--only: expected a pattern for some of resnet50-b32"),
        (["--threads", "0"], "--threads: expected an integer >= 1, got 0"),
        (["--dtypes", "float99"], "--dtypes: expected some of float32, float64"),
        (["--peers", "torch,me"], "got me"),
    ],
)
def test_wrong_options(words, message, capsys):
    assert message in refusal_of(command.main, words, capsys).replace("argument ", "")


def test_list(capsys):
    assert command.main(["--list", "--only", "resnet50-b.*"]) == 0
    assert capsys.readouterr().out.split() == [
        f"resnet50-b{batch}" for batch in (32, 1, 8, 64, 256)
    ]


@pytest.mark.parametrize(("ended", "status"), [(130, 130), (-2, 1), (1, 1)])
def test_a_group_that_ends_early_is_told(ended, status, monkeypatch, tmp_path, capsys):
    """The first group is measured; in the second comes Ctrl-C, or an error."""
    monkeypatch.setattr(command, "ROOT", tmp_path)
    calls = []

    def run(words, cwd, check):
        calls.append(words)
        if len(calls) == 1:
            name, path = words[4:6]
            about = command._terms(command._parser().parse_args(words[6:]))
            found = results.FORMAT.document({}, groups=[{"name": name, "options": about}])
            write(found, Path(path))
        return subprocess.CompletedProcess(words, 0 if len(calls) == 1 else ended)

    monkeypatch.setattr(command.subprocess, "run", run)
    out = tmp_path / "out"
    assert command.main(["--out", str(out), "--quick"]) == status
    assert len(calls) == 2
    first, second = (words[4] for words in calls)
    printed = capsys.readouterr()
    assert f"measured: {first}; the same command goes on from there" in printed.out
    line = "interrupted" if status == 130 else f"the group {second} could not be measured: status"
    assert printed.err.startswith(f"python -m benchmarks: {line}")
    assert printed.err.count("\n") == 1
    assert not (out / "results.json").exists()


def test_other_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "x.json"
    for text in ("{}", "no JSON"):
        path.write_text(text)
        assert command.main(["report", str(path)]) == 1
        assert capsys.readouterr().err.startswith("python -m benchmarks: ")
