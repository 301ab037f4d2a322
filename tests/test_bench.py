"""The benchmark: what it times is right, what it prints follows from what it timed."""

import json
import sys

import numpy as np
import pytest

import bnext
from bnext.bench import command, libraries, main, report
from bnext.bench.cases import Case, draw
from bnext.bench.heap import recycled_pages
from bnext.bench.measure import OPERATIONS, Measurement, measure, threads_set_to
from bnext.bench.timing import FEWEST_TURNS, Timing, alternate
from bnext.bench.traffic import floor_bytes

from .command_lines import refusal_of
from .optional import import_extra, marked
from .subprocesses import output_of

TINY = (
    Case("planes", (3, 5, 4, 6)),
    Case("planes, channels last", (3, 5, 4, 6), channels_last=True),
    Case("rows", (12, 5)),
)


OTHERS = (
    Case("rows of float64", (12, 5), dtype="float64"),
    Case("planes of bfloat16", (3, 5, 4, 6), channels_last=True, dtype="bfloat16"),
    Case("volume of float16", (3, 5, 4, 6, 2), dtype="float16"),
    Case("misaligned planes", (3, 5, 4, 6), aligned=False),
    Case("misaligned rows of float64", (12, 5), dtype="float64", aligned=False),
    Case("misaligned float16", (3, 5, 4, 6), True, "float16", aligned=False),
)
GIGABYTE = Case("a gigabyte", (10**6, 250))


@pytest.fixture(params=TINY, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def tiny(monkeypatch, short_turns):
    """--quick measures the tiny cases, for a short time."""
    monkeypatch.setattr(command, "QUICK_CASES", TINY)


@pytest.fixture
def no_torch(monkeypatch):
    """Importing torch fails, whether it is installed or not."""
    monkeypatch.setitem(sys.modules, "torch", None)


def timing(median):
    return Timing(median, 0.9 * median, 1.1 * median, 5)


def measurement(**medians):
    """A forward pass over 1 GB that a copy takes 0.5 seconds for."""
    timings = {name: timing(median) for name, median in medians.items()}
    return Measurement(GIGABYTE, "forward", "fresh", timings, timing(0.5))


def as_arrays(result):
    """What a call returned, whichever library's it is: copies of y, or of dx and the sums."""
    parts = result if isinstance(result, tuple) else (result,)
    parts = (part for part in parts if not isinstance(part, bnext._core.Saved))
    return [np.copy(part if isinstance(part, np.ndarray) else part.numpy()) for part in parts]


def test_traffic():
    sizes = [floor_bytes(name, 100) for name in ("forward", "backward", "inference", "copy")]
    assert sizes == [200, 300, 200, 200]


@pytest.mark.parametrize("case", TINY + OTHERS, ids=lambda case: case.name)
def test_cases_lie_in_memory_as_they_say(case):
    data = draw(case)
    for array in (data.x, data.dy, data.out):
        assert array.shape == case.shape
        assert array.dtype == case.dtype
        assert array.nbytes == case.nbytes
        assert case.in_memory_order(array).flags.c_contiguous
        assert array.flags.aligned
        if not case.aligned:
            assert array.ctypes.data % 64 == max(4, array.itemsize)
    assert data.weight.dtype == data.mean.dtype == ("float64" if "64" in case.dtype else "float32")
    values = np.asarray(case.in_memory_order(data.x).reshape(-1), np.float64)
    assert len(np.unique(values)) > values.size / 4


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("library", marked(["numpy", "torch"]))
def test_libraries_compute_the_same(case, library, operation):
    data = draw(case)
    ours, theirs = libraries.bnext_calls(data), libraries.LIBRARIES[library](data)
    expected = as_arrays(ours[operation, "fresh"]())
    for pages in ("warm", "fresh"):
        for calls in (ours, theirs):
            if (operation, pages) not in calls:
                continue
            data.out[...] = np.nan
            actual = as_arrays(calls[operation, pages]())
            for a, b in zip(actual, expected, strict=False):  # torch's forward returns more
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_warm_calls_of_forward_write_to_out(case):
    data = draw(case)
    for library in libraries.installed():
        calls = libraries.LIBRARIES[library](data)
        if ("forward", "warm") in calls:
            data.out[...] = np.nan
            calls["forward", "warm"]()
            assert np.isfinite(data.out).all(), library


@pytest.mark.parametrize("threads", [1, 3])
def test_copy(case, threads, monkeypatch):
    monkeypatch.setattr(libraries.Copier, "SMALLEST_PIECE", 16)
    data = draw(case)
    copier = libraries.Copier(threads)
    for copy in copier.calls(data).values():
        data.out[...] = 0
        copy()
        np.testing.assert_array_equal(data.out, data.x)
    copier.close()


def test_calls_take_turns_forwards_and_backwards():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    timings = alternate(calls, seconds=0.0)
    in_a_row = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name]
    # Both are timed once to see how long they take; then a b, b a, a b.
    assert in_a_row == ["a", "b", "a", "b", "a", "b"]
    assert [timing.turns for timing in timings.values()] == [FEWEST_TURNS] * 2


def test_slow_call_sits_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bnext.bench.timing.time.perf_counter", lambda: now[0])

    def call(seconds):
        now[0] += seconds

    timings = alternate({"slow": lambda: call(1.0), "fast": lambda: call(0.25)}, seconds=8.0)
    assert [timings[name].turns for name in ("slow", "fast")] == [4, 16]
    assert timings["slow"].median == pytest.approx(1.0)
    assert timings["fast"].p90 == pytest.approx(0.25)


def test_percentiles():
    assert Timing.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Timing(3.0, 1.4, 4.6, 5)


def test_ratios_and_bandwidths_are_of_medians():
    m = measurement(bnext=0.5, torch=1.0, numpy=0.25)
    assert m.ratio("torch") == 2.0
    assert m.ratio("numpy") == 0.5
    assert m.bandwidth("bnext") == 4e9
    assert m.copy_bandwidth == 4e9
    assert m.share_of_copy("bnext") == 1.0
    assert m.share_of_copy("torch") == 0.5


def test_table_shows_losses_and_leaves_out_who_is_missing():
    header, row = report.table([measurement(bnext=0.5, numpy=0.25)])
    assert header[2:4] == ["x NumPy", "bnext ms (p10-p90)"]
    assert row == ["forward", "fresh", "0.50", "500 (450-550)", "250", "4.0", "100%"]


def check(document, names):
    assert document["version"] == command.JSON_VERSION
    assert document["environment"]["versions"]["bnext"] == bnext.__version__
    measurements = document["measurements"]
    assert len(measurements) == len(TINY) * len(OPERATIONS) * 2
    for m in measurements:
        seconds = m["seconds"]
        assert set(seconds) == {name for name in names if name != "numpy" or m["pages"] == "fresh"}
        for name, values in seconds.items():
            assert 0 < values["p10"] <= values["median"] <= values["p90"]
            if name != "bnext":
                of_turns = "best" if m["busy"] else "median"
                ratio = values[of_turns] / seconds["bnext"][of_turns]
                assert m["ratio"][name] == pytest.approx(ratio)
        nbytes = 4 * np.prod(m["shape"])
        assert m["floor_bytes"] == (3 if m["operation"] == "backward" else 2) * nbytes


@pytest.mark.usefixtures("tiny")
def test_command(tmp_path, capsys):
    path = tmp_path / "results.json"
    before = bnext.get_num_threads()
    assert main(["--quick", "--threads", "3", "--json", str(path)]) == 0
    assert bnext.get_num_threads() == before
    printed = capsys.readouterr().out
    assert f"bnext {bnext.__version__}" in printed
    assert "3 threads for bnext" in printed
    for case in TINY:
        assert f"{case.name}: (" in printed
    check(json.loads(path.read_text()), libraries.installed())


@pytest.mark.usefixtures("tiny", "no_torch")
def test_command_without_torch(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert main(["--quick", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "PyTorch not installed: compared with NumPy only" in printed.replace("\n", " ")
    assert "x NumPy" in printed
    assert "x PyTorch" not in printed
    document = json.loads(path.read_text())
    assert document["environment"]["versions"]["torch"] is None
    check(document, ("bnext", "numpy"))


@pytest.mark.parametrize("rich", [True, False])
def test_table_with_rich_and_without(rich, monkeypatch, capsys):
    if rich:
        import_extra("rich")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    m = measurement(bnext=0.5, torch=1.0, numpy=0.25)
    report.show([m])
    lines = capsys.readouterr().out.splitlines()
    header, row = report.table([m])
    assert any(line.split() == " ".join(header).split() for line in lines)
    assert any(line.split() == " ".join(row).split() for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: expected an integer >= 1, got 0"),
        (["--threads", "two"], "--threads: expected an integer >= 1, got two"),
        (["--json", "no/such/folder/x.json"], "--json: expected an existing folder"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    assert message in refusal_of(main, arguments, capsys)


def test_threads_are_set_everywhere_and_restored(torch):
    before = bnext.get_num_threads(), torch.get_num_threads()
    with threads_set_to(3):
        assert (bnext.get_num_threads(), torch.get_num_threads()) == (3, 3)
    assert (bnext.get_num_threads(), torch.get_num_threads()) == before


def test_measure_only_what_is_asked_for():
    found = measure(
        TINY[:1],
        pages="warm",
        libraries={"bnext": libraries.bnext_calls},
        threads=1,
        seconds=0.0,
        operations=("backward",),
    )
    assert [(m.case, m.operation, list(m.timings)) for m in found] == [
        (TINY[0], "backward", ["bnext"])
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc's malloc")
def test_recycled_pages_come_without_faults():
    resource = pytest.importorskip("resource")
    nbytes = 1 << 24
    pages = nbytes // resource.getpagesize()

    def faults_of_filling():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(nbytes, np.uint8).fill(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with recycled_pages(2 * nbytes):
        faults = [faults_of_filling() for _ in range(5)]
    # The first may lie in a hole of the heap that was there before, of which pages are missing.
    assert max(faults[1:]) < pages / 4


@pytest.mark.torch
def test_torch_is_imported_only_on_demand():
    assert output_of("import sys, bnext.bench; print('torch' in sys.modules)") == "False"
