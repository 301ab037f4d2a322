"""python -m benchmarks.epilogues, on tiny cases: equal results, promises, the command."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import onednn, peers
from benchmarks.epilogues import __main__ as command
from benchmarks.epilogues import cases, measure, report
from benchmarks.epilogues.cases import ADD_RELU, NONE, RELU
from bnext.bench.cases import Case, draw
from bnext.bench.libraries import import_torch as torch_or_none

from . import reference
from .command_lines import refusal_of

TINY = Case("tiny", (3, 20, 4, 6))
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-6}


def test_resnet50_has_53_layers_with_what_follows_them():
    found = list(cases.layers())
    assert sum(count for *_, count in found) == 53
    numbers = {e: sum(n for _, of, n in found if of is e) for e in (RELU, ADD_RELU, NONE)}
    assert numbers == {RELU: 33, ADD_RELU: 16, NONE: 4}
    shapes = {case.shape for case, epilogue, _ in found if epilogue is ADD_RELU}
    assert shapes == {(32, 64 * 2**s, 224 // 2**s, 224 // 2**s) for s in (2, 3, 4, 5)}


def as_array(value):
    return np.asarray(value if isinstance(value, np.ndarray) else value.detach().float())


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("epilogue", [RELU, ADD_RELU, NONE], ids=lambda e: e.name)
@pytest.mark.parametrize("last", [False, True])
def test_torch_chain_computes_what_bnext_does(torch, dtype, epilogue, last):
    data = draw(replace(TINY, dtype=dtype, channels_last=last))
    ours = measure.bnext_calls(data, epilogue)
    theirs = measure.torch_calls(data, epilogue)
    y, their_y = as_array(ours["forward"]()[0]).copy(), as_array(theirs["forward"]())
    close(y, their_y, dtype)
    assert (y.min() >= 0) == (epilogue is not NONE)
    found = ours["backward"]()
    dx, dweight, dbias, *dresidual = theirs["backward"]()
    assert len(found) == 3 + len(dresidual) == (4 if epilogue.residual else 3)
    for a, b in zip(found, (dx, dweight, dbias, *dresidual), strict=True):
        close(as_array(a), as_array(b), dtype)


def close(actual, wanted, dtype):
    actual, wanted = (np.asarray(each, np.float64) for each in (actual, wanted))
    scale = np.abs(wanted).max()
    # A value at the corner of a ReLU may be rounded to either side: at most one in a hundred.
    far = np.abs(actual - wanted) > TOLERANCE[dtype] * scale
    assert far.mean() <= (0.01 if dtype == "bfloat16" and actual.ndim > 1 else 0)


def test_compiled_chain_computes_the_same(torch, monkeypatch):
    """With a backend that compiles nothing: what is tested is that the arguments are right."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: compile_(f, backend="eager", **o))
    data = draw(TINY)
    for epilogue in (RELU, ADD_RELU):
        compiled, plain = (
            make(data, epilogue) for make in (measure.compiled_calls, measure.torch_calls)
        )
        for operation in cases.OPERATIONS:
            for _ in range(2):  # backward may run again
                torch.testing.assert_close(compiled[operation](), plain[operation]())


@pytest.mark.onednn
@pytest.mark.parametrize("format", onednn.FORMATS)
def test_onednn_fuses_a_relu(format):
    data = draw(TINY)
    layer = onednn.Layer(data, format, relu=True)
    layer.call("forward", "warm")()
    z = reference.forward(data.x.astype(float), data.weight, data.bias, eps=1e-5)
    close(layer.output(), np.maximum(z, 0), "float32")
    layer.call("backward", "warm")()
    g = np.where(z > 0, data.dy, 0)
    expected = reference.backward(g, data.x.astype(float), data.weight, eps=1e-5)
    close(layer.output(), expected.dx, "float32")
    close(layer.dweight, expected.dweight, "float32")


def test_bounds_from_above_and_below():
    def row(operation, **seconds):
        return measure.Row(TINY, operation, seconds)

    def ratio(r):
        return r.ratio("a", "b")

    rows = [row("forward", a=1.0, b=1.0), row("forward", a=1.2, b=1.0)]
    assert report.worst("text", rows, ratio, most=1.25).word == "kept"
    assert report.worst("text", rows, ratio, most=1.1).word == "NOT KEPT"
    assert report.worst("text", rows, ratio, least=1.0).word == "kept"
    assert report.worst("text", rows, ratio, least=1.1).word == "NOT KEPT"
    assert report.worst("text", [], ratio, most=1.1).word == "not measured"
    line = report.worst("text", rows, ratio, most=1.1).line
    assert line == "NOT KEPT: text: at most 1.1; it is 1.200 (tiny, float32)"


def test_promises_on_large_arrays_are_judged_beyond_the_last_cache(monkeypatch):
    size = TINY.nbytes
    for cache, batch, added in ((size - 1, 3, 0), (size, 6, 1), (3 * size, 12, 1)):
        monkeypatch.setattr(cases, "LARGE", (TINY,))
        monkeypatch.setattr(cases, "caches", lambda cache=cache: {"l2": 64, "l3": cache})
        found = cases.large()
        assert found[0] is TINY
        assert len(found) == 1 + added
        assert found[-1].shape == (batch, *TINY.shape[1:])
        measured = (*cases.variants(found[-1], cases.DTYPES), TINY)
        kept = report.judged([measure.Row(case, "forward", {}) for case in measured])
        assert {row.case.dtype for row in kept} == {"float32"}
        assert {row.case.shape for row in kept} == {found[-1].shape}


def test_sums_are_weighted_by_the_number_of_layers():
    rows = [
        measure.Row(TINY, "forward", {"bnext": ours, "torch": 1.0}, layers=n)
        for ours, n in ((0.5, 3), (0.25, 2))
    ]
    (total,) = report.sums_of(rows).values()
    assert total == {"bnext": 2.0, "torch": 5.0}


def test_a_broken_promise_is_measured_three_times(monkeypatch):
    ratios = iter([2.0, 1.0, 1.04])

    def medians(calls, *_):
        ratio = next(ratios)
        return {e: ratio if e is RELU else 1.0 for e in calls}

    monkeypatch.setattr(measure, "medians", medians)
    assert measure.cost(TINY, "forward", 0.0).ratio(RELU, NONE) == pytest.approx(1.04)
    assert next(ratios, None) is None


@pytest.fixture
def tiny(monkeypatch):
    """One tiny shape in place of all, and compilers left out."""
    monkeypatch.setattr(cases, "LARGE", (TINY,))
    monkeypatch.setattr(cases, "caches", dict)
    monkeypatch.setattr(measure, "layers", lambda: [(TINY, RELU, 2), (TINY, ADD_RELU, 3)])

    def refuses(*_):
        raise peers.UnavailableError("no compiler")

    monkeypatch.setitem(measure.PEERS, "compile", refuses)


@pytest.mark.usefixtures("tiny", "restore_threads")
def test_the_command_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "epilogues.txt"
    words = ["--quick", "--threads", "1", "--seconds", "1e-9", "--out", str(out)]
    assert command.main(words) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out
    assert "1 threads for every library" in text
    assert "tiny, channels last, float32" in text
    verdicts = [line for line in text.splitlines() if line.startswith(("kept", "NOT KEPT"))]
    if torch_or_none() is None:
        assert "PyTorch is not installed" in text
        return
    assert any("ResNet-50's layers" in line for line in verdicts)
    assert "torch.compile is left out for tiny, float32: no compiler" in text
    assert "not measured: float32, planar: forward, against the fused code of torch.compile" in text


@pytest.mark.torch
@pytest.mark.usefixtures("tiny", "restore_threads")
def test_check_fails_where_a_promise_is_broken(monkeypatch):
    words = ["--quick", "--threads", "1", "--seconds", "1e-9", "--check"]
    for most, status in ((1e9, 0), (1e-9, 1)):
        monkeypatch.setattr(report, "SUMS", {})
        monkeypatch.setattr(report, "FUSED", {})
        monkeypatch.setitem(cases.COSTS, "forward", {RELU: most})
        monkeypatch.setitem(cases.COSTS, "backward", {RELU: most})
        assert command.main(words) == status


def test_wrong_options(capsys, tmp_path):
    assert "--out: expected a file" in refusal_of(command.main, ["--out", tmp_path], capsys)
