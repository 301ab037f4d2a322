"""The GPU suite with PyTorch's tensors on the CPU; and that its comparisons can fail."""

import ctypes
import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu import cases, measure, peers, results, sanitize, timing
from bnext.bench.cases import Case
from bnext.bench.timing import Timing

TINY = (
    Case("planes", (3, 5, 4, 6)),
    Case("planes", (3, 5, 4, 6), channels_last=True),
    Case("volume", (2, 3, 2, 3, 4), channels_last=True),
    Case("rows", (40, 5)),
)
DEVICE = {"l2_bytes": 4096}


@pytest.fixture
def torch(torch, monkeypatch):
    """PyTorch, with the suite on the CPU."""
    monkeypatch.setattr(peers, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return torch


@pytest.fixture
def no_graphs(torch, monkeypatch):
    """Graphs that are none: what they would capture is called, and a second is its time."""

    def replay(graphs, calls, seconds):
        assert all(len(kept) == calls for kept in graphs.values())
        return dict.fromkeys(graphs, Timing(1.0, 1.0, 1.0, 3))

    monkeypatch.setattr(timing, "capture", lambda call, sets: ([call(s) for s in sets],) * 2)
    monkeypatch.setattr(timing, "replay", replay)
    monkeypatch.setattr(timing, "CALLS", 2)
    monkeypatch.setattr(measure, "WALL_SECONDS", 0.0)
    monkeypatch.setattr(measure, "plan_of", lambda *_: SimpleNamespace(path="block"))


@pytest.mark.parametrize("case", TINY, ids=lambda c: f"{c.name}-{c.channels_last}")
def test_data_lies_as_the_case_says(torch, case):
    first, second = peers.draw(case, 2, run=1)
    assert first.x.shape == case.shape
    assert (first.x.stride(1) == 1) == (case.channels_last or len(case.shape) == 2)
    assert first.x.stride() == first.dy.stride() == first.out.stride()
    assert not torch.equal(first.x, second.x)
    assert torch.equal(peers.draw(case, 1, run=1)[0].x, first.x)
    assert not torch.equal(peers.draw(case, 1, run=2)[0].x, first.x)


@pytest.mark.parametrize("dtype", cases.PLAIN)
def test_torch_and_bnext_are_measured_on_the_same(no_graphs, dtype):
    group = cases.Group("some", "Some", TINY, (dtype,))
    rows, skipped = measure.measure(
        [group], DEVICE, run=1, deadline=math.inf, log=lambda text: None
    )
    assert len(rows) == len(TINY) * 3
    # There is no cuDNN here, and the suite says so instead of failing.
    assert {item["peer"] for item in skipped} == {"cudnn"}
    for row in rows:
        assert set(row.kernel) == {"bnext", "torch", "torch_native"}
        assert set(row.wall) == {"bnext", "torch"}
        assert row.backends == {"torch": "PyTorch's own", "torch_native": "PyTorch's own"}
        limit = {"float32": 1e-6, "float16": 6e-4, "bfloat16": 4e-3}[dtype]
        for found in (row.errors["bnext"], row.errors["torch"]):
            assert set(found) in ({"y"}, {"dx", "dweight", "dbias"})
            assert max(found.values()) < limit


def test_case_after_the_deadline_is_left_out(no_graphs):
    group = cases.Group("some", "Some", TINY, ("float32",))
    rows, skipped = measure.measure([group], DEVICE, run=1, deadline=0, log=lambda text: None)
    assert rows == []
    assert [item["reason"] for item in skipped] == ["out of time"] * len(TINY)


def test_rows_are_kept_as_they_are_measured_and_survive_an_interrupt(
    no_graphs, tmp_path, monkeypatch
):
    replay, kept = timing.replay, results.Lines(tmp_path / "rows.jsonl", {"run": 1})

    def interrupted(*given):
        if len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1 + 5:
            raise KeyboardInterrupt
        return replay(*given)

    monkeypatch.setattr(timing, "replay", interrupted)
    group = cases.Group("some", "Some", TINY, ("float32",))
    given = {"run": 1, "deadline": math.inf, "log": lambda text: None, "keep": kept.keep}
    rows, skipped = measure.measure([group], DEVICE, **given)
    assert len(rows) == 5  # all of the first case, two of the second
    assert [item["reason"] for item in skipped if "peer" not in item] == ["interrupted"] * 3
    found = results.read(tmp_path / "rows.jsonl")
    assert found["environment"] == {"run": 1}
    assert results.rows_of(found) == [results.Row.of(row.as_dict()) for row in rows]


def test_a_failure_of_bnext_is_one_of_the_run(torch, no_graphs, monkeypatch):
    def refuse(sets, out=True):
        raise ValueError("not today")

    monkeypatch.setattr(peers, "bnext_calls", refuse)
    group = cases.Group("some", "Some", TINY[:1], ("float32",))
    log = []
    _, (item,) = measure.measure([group], DEVICE, run=1, deadline=math.inf, log=log.append)
    assert item["failed"]
    assert item["reason"] == "ValueError: not today"
    assert any("Traceback" in text for text in log)


def test_errors_of_torch_tensors_can_be_large(torch):
    (s,) = peers.draw(TINY[0], 1, run=1)
    expected = peers.exact(s)
    y = expected["forward"]["y"]
    assert peers.errors("forward", (y,), expected) == {"y": 0}
    assert peers.errors("forward", (y * 1.5,), expected)["y"] == pytest.approx(0.5)
    assert np.isnan(peers.errors("inference", torch.full_like(y, float("nan")), expected)["y"])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # saved.mean
def test_accuracy_on_torch_tensors(torch, monkeypatch):
    monkeypatch.setattr(measure, "CASES", measure.CASES[:1])
    rows = measure.accuracy_rows(("float32", "bfloat16"), draws=1)
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    for row in rows:
        assert set(row["errors"]) == {"bnext", "torch"}
        if row["kind"] == "ordinary":
            assert max(row["errors"]["bnext"]) < 16


# --- the program for compute-sanitizer, with a module of its own ---------------------------------


class Kernels:
    """One operation of `_cuda`, by NumPy on the host: what `sanitize` is to judge."""

    def __init__(self, spoil=lambda table, memory: None):
        self.spoil = spoil
        self.calls = []

    def operations(self):
        return ["normalize"]

    def paths(self, operation):
        return ["one_phase", "never"]

    def plan(self, operation, dtype, shape, strides, addresses, channel_axis, limits, path=None):
        if path == "never":
            raise ValueError("layout: not for this path")
        assert channel_axis == 1
        assert len(strides) == len(addresses) == 2
        plan = {"operation": operation, "dtype": dtype, "shape": shape, "strides": strides}
        return SimpleNamespace(**plan, path="one_phase", workspace_bytes=0)

    def launch(self, plan, device, stream, *, x, y, mean, var, eps, weight=0, bias=0, **_):
        dtype = np.dtype(plan.dtype)
        values, out = (
            view(address, dtype, plan.shape, strides)
            for address, strides in zip((x, y), plan.strides, strict=True)
        )
        parameter = np.promote_types(dtype, np.float32)
        column = (1, -1) + (1,) * (len(plan.shape) - 2)
        channels = plan.shape[1]

        def vector(address, otherwise):
            if not address:
                return np.full(channels, otherwise, parameter).reshape(column)
            return view(address, parameter, (channels,), (1,)).reshape(column)

        wide = values.astype(np.float64)
        rstd = 1 / np.sqrt(vector(var, 1).astype(np.float64) + eps)
        result = (wide - vector(mean, 0)) * rstd * vector(weight, 1) + vector(bias, 0)
        out[...] = result.astype(dtype)
        memory = view(y, dtype, (out.size + 1,), (1,))
        self.spoil(out, memory)
        self.calls.append(plan.shape)


def view(address, dtype, shape, strides):
    """An array on memory that is somebody else's."""
    offsets = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * ((offsets + 1) * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, [s * dtype.itemsize for s in strides])


LIMITS = SimpleNamespace(cluster=16)


def judge(kernels):
    return sanitize.launch_all(kernels, "cpu", LIMITS, ("float32", "float64", "float16"), 60)


def test_what_is_right_passes_with_torch(torch, capsys, monkeypatch):
    monkeypatch.setattr(Kernels, "paths", lambda self, operation: ["one_phase"])
    kernels = Kernels()
    assert judge(kernels) == 0, capsys.readouterr().out
    assert set(kernels.calls) == {shape for shape, _ in sanitize.SHAPES}
    assert len(kernels.calls) == len(sanitize.SHAPES) * 2 * 2 * 3  # with path and None, offsets
    assert "normalize one_phase 96" in capsys.readouterr().out


def test_a_path_that_is_never_taken_fails_with_torch(torch, capsys):
    assert judge(Kernels()) == 1
    assert "MISSING: normalize was never launched on the path never" in capsys.readouterr().out


def test_a_path_that_time_did_not_reach_is_told_with_torch(torch, capsys):
    limits = ("cpu", LIMITS, ("float32",), 1e-9)
    assert sanitize.launch_all(Kernels(), *limits) == 0
    assert "MISSING: normalize was never launched on the path never: no time" in (
        capsys.readouterr().out
    )


def forget_one(out, memory):
    out[(-1,) * out.ndim] = np.nan


def off_by_a_little(out, memory):
    out[(0,) * out.ndim] += 0.01


@pytest.mark.parametrize("spoil", [forget_one, off_by_a_little])
def test_wrong_values_fail_with_torch(torch, capsys, spoil):
    assert judge(Kernels(spoil)) == 1
    assert "WRONG: Case(operation='normalize'" in capsys.readouterr().out


def test_a_step_over_the_end_fails_with_torch(torch, capsys, monkeypatch):
    # Only where there is a mark after the output: elsewhere that would be the sanitizer's to find.
    found = [c for c in sanitize.cases(Kernels(), ("float32",)) if c.offset]
    monkeypatch.setattr(sanitize, "cases", lambda module, dtypes: found)
    assert judge(Kernels(lambda out, memory: memory.__setitem__(-1, 5.0))) == 1
    assert "y: something beside it was written" in capsys.readouterr().out
