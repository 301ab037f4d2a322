"""The benchmark of the barrier measures: tiny runs of each part, through JSON."""

import pytest

from benchmarks.barrier import __main__ as command
from benchmarks.barrier import (
    cases,
    in_numpy,
    jitter,
    model,
    prediction,
    processes,
    results,
    threads,
    timing,
)
from benchmarks.kit.documents import write

from .optional import marked


def test_turns_are_planned():
    repeats, turns = timing.plan({"short": 1e-5, "long": 0.05}, 1.0)
    assert repeats == {"short": 200, "long": 1}
    assert turns == round(1.0 / (201 * 1e-5 + 2 * 0.05))
    assert timing.plan({"slow": 10.0}, 0.1)[1] == timing.FEWEST_TURNS


def measured(monkeypatch, tmp_path, part):
    """The document of one part of a tiny run, through JSON."""
    about = {"date": "2026-01-02 03:04 UTC", "processor": "a processor"}
    monkeypatch.setattr(command, "environment", lambda threads: about)
    found = command.measure([part], "TINY", prediction.Assumptions())
    write(found, tmp_path / "results.json")
    return results.FORMAT.read(tmp_path / "results.json")


def test_threads_are_measured(monkeypatch, tmp_path):
    found = measured(monkeypatch, tmp_path, "threads")
    kinds = [(r["what"], r.get("kind"), r["ranks"]) for r in found["rows"]]
    exchanges = [("exchange", kind, 2) for kind in cases.KINDS]
    assert kinds == [*exchanges, *exchanges, ("step", None, 2)]
    for r in found["rows"]:
        names = {"bnext", "barrier"} | ({"one call"} if r["what"] == "step" else set())
        assert set(r["seconds"]) == names
        for median, p10, p90, turns in r["seconds"].values():
            assert 0 < p10 <= median <= p90
            assert turns >= 3


def test_a_way_that_computes_something_else_fails(monkeypatch):
    monkeypatch.setitem(in_numpy.MERGES, "sums", in_numpy.merge_moments)
    with pytest.raises(AssertionError, match="barrier"):
        threads.exchange("sums", 2, 3, seconds=0.001)


def test_the_jitter_is_measured(monkeypatch, tmp_path):
    found = measured(monkeypatch, tmp_path, "model")
    assert not found["rows"]
    assert found["addition_seconds_per_byte"] > 0
    lengths = [row["seconds"] for row in found["jitter"]]
    assert lengths == sorted(lengths)
    assert all(row["segments"] >= jitter.FEWEST_SEGMENTS for row in found["jitter"])


@pytest.mark.parametrize("engine", marked(cases.ENGINES))
def test_processes_are_measured(monkeypatch, tmp_path, engine):
    found = measured(monkeypatch, tmp_path, engine)
    assert found["skipped"] == []
    of_two = [r for r in found["rows"] if r["ranks"] == 2]
    assert [r["what"] for r in of_two] == [*["exchange"] * 4, *["allreduce"] * 3, "step"]
    ways = {"bnext", "pickled", "packed"}
    expected = {
        "exchange": ways | {"blocking", "polled"},
        "allreduce": {"blocking", "polled"},
        "step": ways | {"one call"},
    }
    for r in found["rows"]:
        assert set(r["seconds"]) == expected[r["what"]]
        assert all(t[0] > 0 for t in r["seconds"].values())
    assert [r["what"] for r in found["rows"] if r["ranks"] == 1] == ["exchange"] * 4
    sent = model.messages(found, engine)
    assert set(sent) == {4, 600, *cases.LAYERS}
    for channels, message in sent.items():
        for kind in cases.KINDS:
            # Two rows of float64 and a header at least, in few sums.
            assert sum(message[kind]) > 16 * channels
            assert len(message[kind]) <= 2


def test_processes_that_fail_are_reported(monkeypatch):
    monkeypatch.setattr(processes, "_commands", lambda *_: [["false"], ["sleep", "60"]])
    with pytest.raises(RuntimeError, match="2 processes, gloo: no result"):
        processes.run("gloo", 2, "TINY")


def test_what_is_not_installed_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    found = measured(monkeypatch, tmp_path, "mpi")
    assert found["skipped"] == [{"part": "mpi", "reason": "mpi4py is not installed"}]
