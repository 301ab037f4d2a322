"""The benchmark suite: what it measures, and what follows from the times."""

import json
from dataclasses import replace

import pytest

from benchmarks import __main__ as command
from benchmarks import cases, promises, results, running
from benchmarks.kit.documents import write
from benchmarks.kit.promises import resnet50_sums
from bnext.bench.cases import Case
from bnext.bench.measure import Measurement
from bnext.bench.timing import Timing

from .suite import TINY

CACHES = {"l1": 2**15, "l2": 2**20, "l3": 2**25}


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


def test_nothing_is_measured_twice():
    first = cases.Pass(("float32",), threads=(2,), peers=("torch", "numpy"))
    second = cases.Pass(("float32", "float64"), threads=(1,), peers=("torch",), pages=("warm",))
    group = cases.Group("rows", "Rows", TINY, (first, second))
    plan = running.planned(group, running.Choice())
    assert list(plan) == [
        ("fresh", "float32", 2),
        ("warm", "float32", 2),
        ("warm", "float32", 1),
        ("warm", "float64", 1),
    ]
    plan = running.planned(group, running.Choice(threads=(3,)))
    assert list(plan) == [(p, "float32", 3) for p in ("fresh", "warm")] + [("warm", "float64", 3)]
    assert plan["warm", "float32", 3].peers == ("torch", "numpy")


def test_choice_leaves_what_is_asked_for():
    one = cases.Pass(("float32", "bfloat16"), threads=(1, 2), peers=("torch", "numpy"))
    choice = running.Choice(threads=(4,), dtypes=("bfloat16", "float64"), peers=("numpy",))
    left = choice.of_pass(one)
    assert (left.dtypes, left.threads, left.peers) == (("bfloat16",), (4,), ("numpy",))
    assert running.Choice().of_pass(one) == one


def timing(median):
    return Timing(median, 0.9 * median, 1.1 * median, 5)


def row(case, operation="forward", pages="warm", *, group="rows", copy=0.5, threads=2, **medians):
    timings = {name: timing(median) for name, median in medians.items()}
    return results.Row(group, threads, Measurement(case, operation, pages, timings, timing(copy)))


def test_rows_survive_json(tmp_path):
    case = Case("volume", (2, 3, 2, 3, 4), True, "bfloat16", False)
    rows = [replace(row(case, bnext=0.5, torch=1.0, onednn=1.25), handover_ns=27.5)]
    environment = {"date": "2000-01-01", "processor": "", "versions": {}}
    document = results.FORMAT.document(environment, rows=[r.as_dict() for r in rows])
    write(document, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == document
    assert results.rows_of(results.FORMAT.read(tmp_path / "results.json")) == rows


def test_rows_know_their_ratios():
    r = row(Case("gigabyte", (10**6, 250)), "backward", copy=0.5, bnext=0.5, torch=1.0)
    assert (r.layout, r.name, r.peers) == ("rows", "gigabyte", ["torch"])
    assert r.ratio("torch") == 2.0
    assert r.bandwidth("bnext") == 6e9
    assert r.share_of_copy("bnext") == 1.5


def test_merging_keeps_the_span_of_dates():
    def dated(*dates):
        about = dict(zip(("date", "finished"), dates, strict=False))
        return results.FORMAT.document({**about, "processor": "", "versions": {}})

    merged = results.merge([dated("2001", "2004"), dated("2000", "2003"), dated("2002")])
    assert (merged["environment"]["date"], merged["environment"]["finished"]) == ("2000", "2004")
    assert results.merge([merged]) == merged


def test_merging_refuses_other_machines():
    first, second = (
        results.FORMAT.document({"date": "2000", "processor": name, "versions": {}})
        for name in "ab"
    )
    with pytest.raises(ValueError, match="processor"):
        results.merge([first, second])
    with pytest.raises(ValueError, match="no results"):
        results.merge([])


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="expected results of the suite"):
        results.FORMAT.read(tmp_path / "other.json")


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
    sums = resnet50_sums(resnet50_rows(torch=3.0))
    assert len(sums) == 4
    forward = next(s for s in sums if (s.layout, s.operation) == ("planar", "forward"))
    assert forward.seconds["bnext"] == pytest.approx((52 + 10) * 1e-3)
    assert forward.ratio("torch") == pytest.approx(3.0)
    assert forward.share_of_copy == pytest.approx(0.5)
    backward = next(s for s in sums if (s.layout, s.operation) == ("planar", "backward"))
    assert backward.share_of_copy == pytest.approx(0.75)


def test_an_incomplete_sum_is_none():
    assert resnet50_sums(resnet50_rows(torch=3.0)[2:-2]) == []


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


def test_check_exits_with_1_for_a_broken_promise(tmp_path, capsys):
    environment = {"date": "2000", "processor": "", "versions": {}, "caches": {}}
    for theirs, status in ((4.0, 0), (2.0, 1)):
        rows = [r for r in resnet50_rows(torch=theirs) if r.operation == "forward"]
        document = results.FORMAT.document(environment, rows=[r.as_dict() for r in rows])
        write(document, tmp_path / "results.json")
        assert command.main(["check", str(tmp_path / "results.json")]) == status
    assert "NOT KEPT: float32, planar" in capsys.readouterr().out
