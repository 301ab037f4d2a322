"""The GPU suite without a GPU: cases, order of turns, sums, what is asked, tables, the command."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks.cases import LAYERS
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bars, cases, results, tables, timing
from benchmarks.gpu.results import Row
from benchmarks.kit.documents import write
from benchmarks.kit.promises import resnet50_sums
from bnext.bench.cases import Case
from bnext.bench.timing import FEWEST_TURNS, MOST_TURNS, Timing
from bnext.bench.traffic import floor_bytes

from .command_lines import refusal_of
from .optional import import_extra

import_extra("ml_dtypes")  # from which the size of a bfloat16 comes

H200 = {
    "name": "a GPU",
    "compute_capability": [9, 0],
    "multiprocessors": 132,
    "shared_per_block": 227 * 1024,
    "l2_bytes": 60 << 20,
    "driver": "1.2",
}
ENVIRONMENT = {
    "date": "2026-01-02 03:04 UTC",
    "device": H200,
    "versions": {"bnext": "0.1.0", "torch": "2.11.0"},
    "commit": None,
}
COPY_RATE = 4e12


def timed(seconds):
    return Timing(seconds, seconds * 0.9, seconds * 1.1, 5)


def row(case, operation, group="resnet50-b64", speed=1.0, share=0.9, **options):
    """A row where bnext reaches `share` of the copy, and PyTorch takes `speed` times as long."""
    copy = floor_bytes("copy", case.nbytes) / COPY_RATE
    ours = floor_bytes(operation, case.nbytes) / COPY_RATE / share
    kernel = {"bnext": ours, "torch": ours * speed, "cudnn": ours * speed * 0.8}
    kernel = {name: timed(seconds) for name, seconds in kernel.items()}
    return Row(group, case, operation, kernel, timed(copy), **options)


def layers(batch=64, dtypes=("float32", "bfloat16"), operations=cases.OPERATIONS, **options):
    """All the layers of ResNet-50, as `row` has them."""
    (group, *_) = (g for g in cases.GROUPS if g.name == f"resnet50-b{batch}")
    problems = [replace(case, dtype=dtype) for dtype in dtypes for case in group.cases]
    return [
        row(case, operation, group.name, **options) for case in problems for operation in operations
    ]


def test_the_groups_have_what_is_asked_for():
    everything = [(g.name, case) for g in cases.GROUPS for case in g.problems()]
    assert len(set(everything)) == len(everything)
    for batch in (64, 256):
        found = [case for name, case in everything if name == f"resnet50-b{batch}"]
        assert len(found) == 12 * 2 * 3  # shapes, layouts, dtypes
        assert {case.shape[0] for case in found} == {batch}
        assert {case.name for case in found} == set(LAYERS)
        assert {case.dtype for case in found} == {"float32", "bfloat16", "float16"}
    shapes = {case.shape for _, case in everything}
    asked = {(64, 20), (8192, 4096), (8, 64, 16, 56, 56), (2, 64, 1024, 1024), (256, 3, 224, 224)}
    assert asked < shapes


def test_the_promised_groups_come_first_and_the_slow_ones_last():
    first = [(g.name, g.dtypes) for g in cases.GROUPS[:2]]
    assert first == [(f"resnet50-b{b}", ("float32", "bfloat16")) for b in (64, 256)]
    assert [g.name for g in cases.GROUPS].index("compile") == len(cases.GROUPS) - 1


@pytest.mark.parametrize(
    ("shape", "number", "cold"),
    [
        ((64, 64, 112, 112), 1, True),  # 411 MB read and written
        ((64, 512, 7, 7), 20, True),  # 12.8 MB of 251.7
        ((64, 20), timing.MOST_SETS, False),
    ],
)
def test_sets_exceed_the_cache_or_say_so(shape, number, cold):
    assert timing.sets_for(Case("any", shape), H200["l2_bytes"]) == (number, cold)


def test_turns_alternate_until_the_time_is_spent():
    orders = []

    def turn(order):
        orders.append(tuple(order))
        return {name: 1.0 + len(orders) for name in order}

    found = timing.turns(["a", "b"], turn, seconds=29)
    # Turns take 4, 6, 8, 10, 12 ... seconds for both.
    assert orders == [("a", "b"), ("b", "a")] * 2 + [("a", "b")]
    assert found["a"] == Timing.of([2.0, 3.0, 4.0, 5.0, 6.0])


def test_turns_have_limits():
    def counted(seconds):
        calls = []
        timing.turns(["a"], lambda order: calls.append(order) or {"a": 1e-3}, seconds)
        return len(calls)

    assert counted(0) == FEWEST_TURNS
    assert counted(math.inf) == MOST_TURNS


def test_times_are_per_call():
    assert timing.per_call(Timing(4.0, 2.0, 8.0, 7), 4) == Timing(1.0, 0.5, 2.0, 7)


def test_rows_survive_json(tmp_path):
    one = row(
        Case("8x4x4", (2, 8, 4, 4), channels_last=True, dtype="bfloat16"),
        "backward",
        wall={"bnext": timed(3e-5)},
        backends={"torch": "cuDNN"},
        errors={"bnext": {"dx": 1e-3}},
        path="cluster",
        sets=3,
        cold=False,
    )
    write(results.document(ENVIRONMENT, [one], [], []), tmp_path / "results.json")
    (again,) = results.rows_of(json.loads((tmp_path / "results.json").read_text()))
    assert again.as_dict() == one.as_dict()
    assert again.case == one.case
    assert again.kernel["torch"].median == pytest.approx(one.kernel["torch"].median, rel=1e-3)


def test_rows_that_a_killed_run_has_left(tmp_path, capsys):
    rows = layers(64, ("float32",))
    lines = results.Lines(tmp_path / "rows.jsonl", ENVIRONMENT)
    for one in rows:
        lines.keep(one)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"torn": ')
    assert len(results.rows_of(results.read(tmp_path / "rows.jsonl"))) == len(rows)
    assert command.main(["--report", str(tmp_path / "rows.jsonl")]) == 0
    assert f"{len(rows)} rows" in capsys.readouterr().out
    assert (tmp_path / "results.json").is_file()


def test_other_documents_are_refused():
    with pytest.raises(ValueError, match="expected results of the GPU suite"):
        results.rows_of({"format": "bnext suite", "version": 1, "rows": []})


def test_figures_of_a_row():
    one = row(Case("8x4x4", (2, 8, 4, 4)), "backward", speed=1.5, share=0.6)
    assert one.layout == "planar"
    assert one.ratio("torch") == pytest.approx(1.5)
    assert one.share_of_copy == pytest.approx(0.6)
    assert one.slab_bytes == 2 * 2 * 16 * 4  # x and dy
    assert row(one.case, "forward").slab_bytes == 2 * 16 * 4
    assert row(Case("rows", (8, 4)), "forward").layout == "rows"


def test_sums_weigh_the_layers_by_their_number():
    rows = layers(dtypes=("float32",), operations=("forward",))
    planar, last = resnet50_sums(rows)
    assert (planar.layout, last.layout) == ("planar", "channels last")
    expected = sum(LAYERS[r.case.name] * r.kernel["bnext"].median for r in rows[:12])
    assert planar.seconds["bnext"] == pytest.approx(expected)
    assert planar.layers == 53
    assert planar.share_of_copy == pytest.approx(0.9)


def test_a_sum_needs_every_layer():
    rows = layers(dtypes=("float32",), operations=("forward",))
    assert [s.layout for s in resnet50_sums(rows[1:])] == ["channels last"]
    chosen = resnet50_sums(rows, lambda r: r.case.name == "64x56x56")
    assert [s.layers for s in chosen] == [6, 6]


def test_a_sum_has_only_peers_that_ran_everywhere():
    rows = layers(dtypes=("float32",), operations=("forward",))
    del rows[3].kernel["torch"]
    planar, last = resnet50_sums(rows)
    assert "torch" not in planar.seconds
    assert "torch" in last.seconds


def words(rows, device=H200):
    return {v.text: v.word for v in bars.verdicts(rows, device)}


def test_bars_that_are_kept():
    rows = layers(64, speed=1.3001) + layers(256, speed=1.3001)
    found = words(rows)
    assert len(found) == 2 * 2 * 2 * 3  # batches, dtypes, operations, bars
    assert set(found.values()) == {"kept"}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"speed": 1.29}, "planar: x PyTorch"),
        ({"speed": 1.4, "share": 0.79}, "of copy, where the slab fits on chip"),
        ({"speed": 1.24}, "channels last: x cuDNN"),  # 0.8 of that for cuDNN
    ],
)
def test_bars_that_are_not_kept(options, part):
    found = words(layers(64, **options) + layers(256, **options))
    assert {word for text, word in found.items() if part in text} == {"NOT KEPT"}


def test_bars_that_are_not_measured():
    found = words(layers(64, speed=1.4))
    assert {word for text, word in found.items() if "batch 256" in text} == {"not measured"}
    assert {word for text, word in found.items() if "batch 64" in text} == {"kept"}


def test_the_copy_counts_only_where_the_slab_fits():
    rows = layers(64, speed=1.4)
    limit = bars.on_chip_bytes(H200)
    slow = [
        row(r.case, r.operation, speed=1.4, share=0.1) if r.slab_bytes > limit else r for r in rows
    ]
    assert sum(r.share_of_copy < 0.2 for r in slow) > 0
    found = words(slow)
    assert {w for t, w in found.items() if "batch 64" in t and "of copy" in t} == {"kept"}
    (first, *_) = (
        v for v in bars.verdicts(rows, H200) if "backward" in v.text and "copy" in v.text
    )
    assert first.where == "52 of 53 layers"  # all but 64 channels of 112x112: 6.4 MB of x and dy


def test_before_clusters_a_block_is_alone():
    ampere = {**H200, "compute_capability": [8, 0], "shared_per_block": 163 * 1024}
    assert bars.on_chip_bytes(ampere) == 163 * 1024
    assert bars.on_chip_bytes(H200) == 16 * 227 * 1024


@pytest.mark.parametrize("error", [2e-5, math.nan])
def test_wrong_results_are_found(error):
    good = row(Case("a", (4, 2)), "forward", errors={"bnext": {"y": 1e-7}, "torch": {"y": 1.0}})
    bad = replace(good, errors={"bnext": {"y": error}})
    assert bars.wrong([good]) == []
    assert [(r, name) for r, name, _ in bars.wrong([good, bad])] == [(bad, "y")]


def test_the_short_table():
    lines = tables.short(layers(64, speed=1.5), ENVIRONMENT, []).splitlines()
    assert lines[0] == "a GPU, 2.11.0 (PyTorch), 144 rows, 0 left out"
    (line,) = (line for line in lines if line.startswith("64    float32  planar"))
    assert line.split()[4:6] == ["1.50", "1.20"]
    assert line.split().count("90%") == 3
    assert sum(line.startswith("kept: ") for line in lines) == 12
    assert sum(line.startswith("not measured: ") for line in lines) == 12


def test_the_report_has_every_row_and_reason():
    rows = layers(64, ("float32",), speed=0.9, path="block")
    skipped = [{"group": "rows", "case": "64x20", "peer": "cudnn", "reason": "no such thing"}]
    text = tables.report(rows, ENVIRONMENT, [], skipped)
    assert text.count("| block |") == len(rows)
    assert "**0.90**" in text  # losses are bold
    assert "no such thing" in text


def test_the_command_reports_again(tmp_path, capsys):
    rows = layers(64, speed=1.5)
    write(results.document(ENVIRONMENT, rows, [], []), tmp_path / "results.json")
    given = ["--report", str(tmp_path / "results.json"), "--out", str(tmp_path / "again")]
    assert command.main(given) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "again" / "table.txt").read_text() == printed
    assert (tmp_path / "again" / "report.md").is_file()
    slow = results.document(ENVIRONMENT, layers(64, speed=1.1), [], [])
    write(slow, tmp_path / "results.json")
    assert command.main(given) == 0
    assert command.main([*given, "--check"]) == 1


@pytest.mark.parametrize(
    ("rows", "skipped"),
    [
        ([], []),
        (layers(64), [{"group": "rows", "case": "a", "reason": "an error", "failed": True}]),
        ([row(Case("a", (4, 2)), "forward", errors={"bnext": {"y": 1.0}})], []),
    ],
)
def test_the_command_fails(tmp_path, rows, skipped):
    write(results.document(ENVIRONMENT, rows, [], skipped), tmp_path / "results.json")
    assert command.main(["--report", str(tmp_path / "results.json")]) == 1


def test_groups_are_chosen_by_name_and_dtype():
    found = command.chosen("resnet50-b.*", ["float16", "float32"])
    assert [(g.name, g.dtypes) for g in found] == [
        ("resnet50-b64", ("float32",)),
        ("resnet50-b256", ("float32",)),
        ("resnet50-b64", ("float16",)),
        ("resnet50-b256", ("float16",)),
    ]


def test_a_folder_is_needed(capsys):
    assert "--out: expected a folder" in refusal_of(command.main, [], capsys)


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_why_not", lambda: "no GPU today")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "no GPU today" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
