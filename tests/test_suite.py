"""The benchmark suite: peers compute what bnext does; what is reported follows from the times."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks import cases, exactness, onednn, peers, promises, results, running, summaries
from benchmarks.shared_libraries import UnavailableError

import bnext
from bnext.bench.cases import EPS, Case, draw
from bnext.bench.libraries import LIBRARIES
from bnext.bench.measure import Measurement
from bnext.bench.timing import Timing

from . import reference
from .optional import import_torch

TINY = (
    Case("planes", (3, 20, 4, 6)),
    Case("planes", (3, 20, 4, 6), channels_last=True),
    Case("rows", (12, 5)),
    Case("volume, misaligned", (2, 3, 2, 3, 4), aligned=False),
)
CACHES = {"l1": 2**15, "l2": 2**20, "l3": 2**25}
TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-9}


@pytest.fixture(params=TINY, ids=lambda case: f"{case.name} {case.channels_last}")
def case(request):
    return request.param


@pytest.fixture(scope="module")
def onednn_is_here():
    try:
        onednn.onednn()
    except UnavailableError as reason:
        pytest.skip(str(reason))


def expected(data):
    """The results of each operation in float64."""
    x, dy = (np.asarray(array, np.float64) for array in (data.x, data.dy))
    return {
        "forward": reference.forward(x, data.weight, data.bias, eps=EPS),
        "backward": reference.backward(dy, x, data.weight, eps=EPS),
        "inference": reference.normalize(x, data.mean, data.var, data.weight, data.bias, eps=EPS),
    }


def close(actual, wanted, dtype):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(
        np.asarray(actual, np.float64) / scale, wanted / scale, rtol=0, atol=TOLERANCE[dtype]
    )


# --- oneDNN, against the definition. --------------------------------------------------------------


FORMATS = [
    (case, format)
    for case in TINY
    for format in onednn.FORMATS
    if len(case.shape) > 2 or format == "planar"
]


@pytest.mark.usefixtures("onednn_is_here")
@pytest.mark.parametrize(("case", "format"), FORMATS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_onednn_computes_batch_normalization(case, dtype, format):
    data = draw(replace(case, dtype=dtype))
    layer = onednn.Layer(data, format)
    wanted = expected(data)
    layer.data.out[...] = np.nan
    layer.call("forward", "warm")()
    close(layer.output(), wanted["forward"], dtype)
    batch = reference.moments(data.x)
    close(layer.mean, batch.mean, "float32")
    close(layer.var, batch.var, "float32")
    layer.call("backward", "warm")()
    close(layer.output(), wanted["backward"].dx, dtype)
    close(layer.dweight, wanted["backward"].dweight, "float32")
    close(layer.dbias, wanted["backward"].dbias, "float32")
    layer.call("inference", "warm")()
    close(layer.output(), wanted["inference"], dtype)


@pytest.mark.usefixtures("onednn_is_here")
def test_onednn_with_fresh_pages_leaves_the_output_alone(case):
    data = draw(case)
    calls = onednn.onednn_calls(data)
    data.out[...] = 7
    for operation in onednn.OPERATIONS:
        calls[operation, "fresh"]()
    assert (data.out == 7).all()


@pytest.mark.usefixtures("onednn_is_here", "restore_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_onednn_has_as_many_threads_as_bnext(threads):
    bnext.set_num_threads(threads)
    onednn.Layer(draw(TINY[0]), "planar")
    assert onednn.onednn().onednn_set_threads(threads) == threads


@pytest.mark.usefixtures("onednn_is_here")
def test_onednn_refuses_with_a_reason():
    with pytest.raises(UnavailableError, match="float64"):
        onednn.Layer(draw(replace(TINY[0], dtype="float64")), "planar")
    with pytest.raises(UnavailableError, match="rows have one layout"):
        onednn.best_calls(draw(TINY[2]))


@pytest.mark.usefixtures("onednn_is_here")
def test_best_layout_is_told_for_each_operation():
    told = []
    calls = onednn.best_calls(draw(TINY[0]), lambda *about: told.append(about))
    assert {operation for operation, _ in calls} == set(onednn.OPERATIONS)
    assert [operation for operation, _, _ in told] == list(onednn.OPERATIONS)
    assert {layout for _, layout, _ in told} <= set(onednn.FORMATS)


# --- The other peers. -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["numpy", "torch", "bnext"])
def test_libraries_take_other_dtypes(case, name, dtype):
    if name == "torch":
        import_torch()
    if name == "bnext" and cases.refusal(dtype):
        pytest.skip(cases.refusal(dtype))
    data = draw(replace(case, dtype=dtype))
    calls, wanted = LIBRARIES[name](data), expected(data)
    for operation in ("forward", "backward", "inference"):
        result = calls[operation, "fresh"]()
        first = result[0] if isinstance(result, tuple) else result
        array = first if isinstance(first, np.ndarray) else first.double().numpy()
        target = wanted[operation].dx if operation == "backward" else wanted[operation]
        close(array, target, "float32" if dtype == "float64" else dtype)


def test_compile_peer_computes_the_same(case, monkeypatch):
    """With a backend that compiles nothing: what is tested is that the arguments are right."""
    torch = import_torch()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    data = draw(case)
    calls, plain = peers.compile_calls(data), LIBRARIES["torch"](data)
    for operation in ("forward", "backward", "inference"):
        a, b = calls[operation, "fresh"](), plain[operation, "fresh"]()
        a, b = (r[0] if isinstance(r, tuple | list) else r for r in (a, b))
        torch.testing.assert_close(a, b)


def test_what_does_not_compile_is_noted(monkeypatch):
    torch = import_torch()

    def fails(function, **_):
        def call(*_):
            raise RuntimeError("no compiler\nand a long story")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    skipped = []
    prepare = peers.prepared("compile", ("forward",), skipped, [])
    assert prepare(draw(TINY[0])) == {}
    assert [item["reason"] for item in skipped] == ["torch.compile: no compiler"]


def test_layers_are_called_in_both_modes():
    data = draw(TINY[2])
    calls = peers.bnext_layers(data)
    y = calls["layer", "fresh"]()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(calls["layer inference", "fresh"](), data.x, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(64, 20), (600, 1024)], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_every_copy_copies(threads, shape, aligned):
    data = draw(Case("rows", shape, aligned=aligned))
    copier = peers.BestCopier(threads)
    calls = copier.calls(data)
    for call in calls.values():
        data.out[...] = 0
        call()
        np.testing.assert_array_equal(data.out, data.x)
    copier.close()
    assert calls


# --- Cases. ---------------------------------------------------------------------------------------


def test_resnet50_has_53_layers():
    assert len(cases.RESNET50) == len(cases.LAYERS) == 12
    assert sum(cases.LAYERS.values()) == 53
    for group in cases.GROUPS:
        if group.name.startswith("resnet50"):
            assert {case.name for case in group.cases} == set(cases.LAYERS)
            assert len(group.cases) == 24


def test_growth_spans_five_orders_of_magnitude():
    (group,) = cases.select("growth")
    for dimensions in (2, 4):
        sizes = [case.nbytes // 4 for case in group.cases if len(case.shape) == dimensions]
        assert sizes == sorted(sizes)
        assert max(sizes) / min(sizes) > 9e4


def test_names_are_unique_within_a_group():
    for group in (*cases.GROUPS, *cases.QUICK):
        keys = [(case.name, case.channels_last) for case in group.cases]
        assert len(set(keys)) == len(keys), group.name


def test_refusals():
    assert cases.refusal("float32") is None
    assert "dtype" in cases.refusal("int32")


def test_what_does_not_fit_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(cases, "free_memory", lambda: 1 << 30)
    assert cases.fits_memory(Case("small", (64, 20)))
    assert not cases.fits_memory(Case("large", (1 << 20, 256)))


# --- Rows, sums, promises. ------------------------------------------------------------------------


def timing(median):
    return Timing(median, 0.9 * median, 1.1 * median, 5)


def row(case, operation="forward", pages="warm", *, group="rows", copy=0.5, threads=2, **medians):
    timings = {name: timing(median) for name, median in medians.items()}
    return results.Row(group, threads, Measurement(case, operation, pages, timings, timing(copy)))


def test_rows_survive_json(tmp_path):
    case = Case("volume", (2, 3, 2, 3, 4), True, "bfloat16", False)
    rows = [row(case, bnext=0.5, torch=1.0, onednn=1.25)]
    environment = {"date": "2000-01-01", "processor": "", "versions": {}}
    document = results.document(environment, rows=[r.as_dict() for r in rows])
    results.write(document, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert results.rows_of(results.read(tmp_path / "results.json")) == rows


def test_rows_know_their_ratios():
    r = row(Case("gigabyte", (10**6, 250)), "backward", copy=0.5, bnext=0.5, torch=1.0)
    assert (r.layout, r.name, r.peers) == ("rows", "gigabyte", ["torch"])
    assert r.ratio("torch") == 2.0
    assert r.bandwidth("bnext") == 6e9
    assert r.share_of_copy("bnext") == 1.5


def test_merging_refuses_other_machines():
    first, second = (
        results.document({"date": "2000", "processor": name, "versions": {}}) for name in "ab"
    )
    with pytest.raises(ValueError, match="processor"):
        results.merge([first, second])
    with pytest.raises(ValueError, match="no results"):
        results.merge([])


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="expected results of the suite"):
        results.read(tmp_path / "other.json")


def resnet50_rows(ours=1.0, **peers):
    """Each layer takes `ours` milliseconds, but the first one ten times as long for everybody."""
    found = []
    for case in cases.resnet50(32):
        factor = 10 if case.name == "64x112x112" else 1
        medians = {name: factor * median * 1e-3 for name, median in peers.items()}
        for operation in ("forward", "backward"):
            found.append(
                row(
                    case,
                    operation,
                    group="resnet50-b32",
                    copy=factor * 0.5e-3,
                    bnext=factor * ours * 1e-3,
                    **medians,
                )
            )
    return found


def test_sums_are_weighted_by_the_number_of_layers():
    sums = summaries.resnet50_sums(resnet50_rows(torch=3.0))
    assert len(sums) == 4
    forward = next(s for s in sums if (s.layout, s.operation) == ("planar", "forward"))
    assert forward.seconds["bnext"] == pytest.approx((52 + 10) * 1e-3)
    assert forward.ratio("torch") == pytest.approx(3.0)
    assert forward.share_of_copy == pytest.approx(0.5)
    backward = next(s for s in sums if (s.layout, s.operation) == ("planar", "backward"))
    assert backward.share_of_copy == pytest.approx(0.75)


def test_an_incomplete_sum_is_none():
    assert summaries.resnet50_sums(resnet50_rows(torch=3.0)[2:-2]) == []


def of(verdicts, start):
    found = [v for v in verdicts if v.text.startswith(start)]
    assert len(found) == 1, start
    return found[0]


def test_promises_of_sums():
    forward = "float32, planar, ResNet-50 at batch 32: forward, warm pages, against PyTorch"
    for theirs, word in ((3.6, "kept"), (3.4, "NOT KEPT")):
        verdict = of(promises.verdicts(resnet50_rows(torch=theirs), CACHES), forward)
        assert (verdict.word, verdict.least) == (word, 3.5)
        assert verdict.figure == pytest.approx(theirs)
    best = "float32, planar, ResNet-50 at batch 32: forward, warm pages, against oneDNN's best"
    assert of(promises.verdicts(resnet50_rows(torch=3.0), CACHES), best).word == "not measured"
    found = promises.verdicts(resnet50_rows(torch=3.0, onednn_best=1.1), CACHES)
    assert of(found, best).word == "kept"


def test_promises_of_rows_are_of_the_worst_and_need_all():
    wide = [Case("a", (8192, 4096)), Case("b", (140_000, 256))]
    rows = [
        row(case, operation, bnext=1.0, torch=ratio)
        for case, ratio in zip(wide, (2.0, 1.4), strict=True)
        for operation in ("forward", "backward")
    ]
    start = "float32 rows (8192"
    verdict = of(promises.verdicts(rows, CACHES), start)
    assert (verdict.word, verdict.figure) == ("NOT KEPT", 1.4)
    assert verdict.where == "b, float32, forward, warm"
    assert of(promises.verdicts(rows[:2], CACHES), start).word == "not measured"
    one_thread = [replace(r, threads=1) for r in rows]
    assert of(promises.verdicts(one_thread, CACHES), start).word == "not measured"


def test_promise_of_the_share_is_about_slabs_in_l2_and_tensors_beyond_l3():
    fits = Case("fits", (32, 256, 56, 56))
    too_small, too_wide = Case("small", (8, 64, 28, 28)), Case("wide", (32, 64, 112, 112))
    rows = [
        row(case, copy=copy, bnext=1.0)
        for case, copy in ((fits, 0.8), (too_small, 0.1), (too_wide, 0.1))
    ]
    verdict = of(promises.verdicts(rows, CACHES), "share of the copy")
    assert (verdict.word, verdict.figure) == ("kept", pytest.approx(0.8))
    assert [r.name for r in promises.low_shares(rows)] == ["small", "wide"]


def test_losses_are_listed_worst_first():
    rows = [
        row(Case(f"ratio {ratio}", (10, 10)), bnext=1.0, torch=ratio)
        for ratio in (1.5, 0.94, 0.96, 0.5)
    ]
    assert [r.name for r in promises.losses(rows)] == ["ratio 0.5", "ratio 0.94"]
    verdict = of(promises.verdicts(rows, CACHES), "no shape slower")
    assert (verdict.word, verdict.figure) == ("NOT KEPT", 0.5)


def test_accuracy_is_a_promise():
    good = {"kind": "ordinary", "dtype": "float32", "case": "NC", "errors": {"torch": [1]}}
    good["worse"] = []
    bad = {**good, "case": "NCHW", "worse": ["y"]}
    assert promises.verdicts([], CACHES, [good])[-1].word == "kept"
    verdict = promises.verdicts([], CACHES, [good, bad])[-1]
    assert (verdict.word, verdict.where) == ("NOT KEPT", "ordinary float32 NCHW")


# --- Accuracy, and the whole. ---------------------------------------------------------------------


@pytest.mark.usefixtures("onednn_is_here")
def test_accuracy_of_everybody(monkeypatch):
    import_torch()
    monkeypatch.setattr(exactness, "CASES", exactness.CASES[:2])
    rows, _ = exactness.measure(dtypes=("float32",), draws=1)
    ordinary = [r for r in rows if r["kind"] == "ordinary"]
    assert [r["case"] for r in ordinary] == ["NCHW 28x28", "NHWC 28x28"]
    for r in ordinary:
        assert set(r["errors"]) == {"bnext", "torch", "onednn"}
        assert max(r["errors"]["bnext"]) < 4
        assert max(r["errors"]["onednn"]) < 1000


@pytest.fixture
def tiny_suite(monkeypatch, tmp_path):
    """Groups of tiny cases, measured in this process, with parts in a temporary folder."""
    passes = (cases.Pass(("float32", "int32"), peers=("torch", "onednn", "numpy"), seconds=0.0),)
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


def test_the_command_measures_merges_and_resumes(tiny_suite, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    words = ["--out", str(out), "--threads", "2", "--dtypes", "float32"]
    assert command.main([*words, "--only", "growth|call"]) == 0
    assert command.main(words) == 0
    assert tiny_suite == ["growth", "call", "others", "accuracy"]
    assert "no shape slower than PyTorch" in capsys.readouterr().out
    document = results.read(out / "results.json")
    assert [group["name"] for group in document["groups"]] == [
        "growth",
        "others",
        "call",
        "accuracy",
    ]
    rows = results.rows_of(document)
    assert {r.threads for r in rows} == {2}
    assert {r.pages for r in rows if r.group == "others"} == {"warm", "fresh"}
    assert all("bnext" in r.timings for r in rows)
    assert document["environment"]["versions"]["bnext"] == bnext.__version__
    report = (out / "report.md").read_text()
    for name in re.findall(r"\]\((.*\.png)\)", report):
        assert 0 < (out / name).stat().st_size < 150_000
    assert "## Accuracy" in report
    lines = (out / "rows.csv").read_text().splitlines()
    assert len(lines) == len(rows) + 1
    # The same again from the file alone.
    assert command.main(["report", str(out / "results.json"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "report.md").read_text() == report


def test_refused_dtypes_are_said(tiny_suite, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cases, "ALL_DTYPES", ("float32", "int32"))
    pytest.importorskip("matplotlib")
    words = ["--out", str(tmp_path / "out"), "--only", "growth", "--dtypes", "int32"]
    assert command.main(words) == 0
    assert "skipped:  int32: bnext: x: expected" in capsys.readouterr().out
    assert tiny_suite == ["growth"]


def test_check_exits_with_1_for_a_broken_promise(tmp_path, capsys):
    environment = {"date": "2000", "processor": "", "versions": {}, "caches": {}}
    for theirs, status in ((4.0, 0), (2.0, 1)):
        rows = [r for r in resnet50_rows(torch=theirs) if r.operation == "forward"]
        document = results.document(environment, rows=[r.as_dict() for r in rows])
        results.write(document, tmp_path / "results.json")
        assert command.main(["check", str(tmp_path / "results.json")]) == status
    assert "NOT KEPT: float32, planar" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "no such group"], "--only: expected a pattern for some of resnet50-b32"),
        (["--threads", "0"], "--threads: expected integers >= 1, got 0"),
        (["--dtypes", "float99"], "--dtypes: expected some of float32, float64"),
        (["--peers", "torch,me"], "got me"),
    ],
)
def test_wrong_options(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.replace("argument ", "")


def test_list(capsys):
    assert command.main(["--list", "--only", "resnet50-b.*"]) == 0
    assert capsys.readouterr().out.split() == [
        f"resnet50-b{batch}" for batch in (32, 1, 8, 64, 256)
    ]


def test_choice_leaves_what_is_asked_for():
    one = cases.Pass(("float32", "bfloat16"), threads=(1, 2), peers=("torch", "numpy"))
    choice = running.Choice(threads=(4,), dtypes=("bfloat16", "float64"), peers=("numpy",))
    left = choice.of_pass(one)
    assert (left.dtypes, left.threads, left.peers) == (("bfloat16",), (4,), ("numpy",))
    assert running.Choice().of_pass(one) == one
