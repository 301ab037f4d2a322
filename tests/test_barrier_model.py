"""What the benchmark of the barrier computes from its measurements."""

import json
import math
import re

import numpy as np
import pytest

from benchmarks.barrier import __main__ as command
from benchmarks.barrier import cases, jitter, model, plot, prediction, results, skew
from benchmarks.barrier.model import Hop
from benchmarks.barrier.report import fits, write_report
from benchmarks.kit.documents import write

from .command_lines import refusal_of
from .optional import import_extra
from .suite import no_picture

# What synthetic results are made of.
MPI = model.Engine(
    "mpi", Hop(3e-6, 3e-10), Hop(3e-6, 1e-10), {"moments": (2.5e-5, 1e-8), "sums": (1.3e-5, 4e-9)}
)
GLOO = model.Engine(
    "gloo", Hop(9e-5, 1e-9), Hop(9e-5, 1e-9), {"moments": (1e-4, 2e-8), "sums": (8e-5, 1e-8)}
)
PROCESSORS = 8
SENT = {c: [8288, *([16 * (c - 512)] if c > 512 else [])] for c in (16, 4096, *cases.LAYERS)}
DISTURBED, DELAY = 0.03, 2e-4


def allreduce_seconds(engine, ranks, nbytes):
    """By the algorithm that the fit takes it to have."""
    if engine is GLOO:
        return model.ring(ranks, nbytes, engine.small)
    if nbytes <= model.LARGE:
        return model.recursive_doubling(ranks, nbytes, engine.small)
    return model.rabenseifner(ranks, nbytes, engine.large)


def seconds_of(rng, noise, **times):
    return {
        name: [t * (1 + noise * rng.standard_normal()), t * 0.9, t * 1.1, 7]
        for name, t in times.items()
    }


def synthetic(rng, noise=0.0, only=("mpi", "gloo")):
    """A results document as 2, 4, 8 and 16 processes on 8 processors would give it."""
    rows, messages = [], []
    for engine in (e for e in (MPI, GLOO) if e.name in only):
        messages += [
            {"engine": engine.name, "ranks": 2, "channels": c, "moments": sent, "sums": sent}
            for c, sent in SENT.items()
        ]
        for ranks in (2, 4, 8, 16):
            for nbytes in cases.FULL.nbytes:
                t = allreduce_seconds(engine, ranks, nbytes)
                t *= 50 if ranks > PROCESSORS else 1  # as if they shared processors
                times = seconds_of(rng, noise, blocking=t, polled=2 * t)
                rows.append(
                    {"what": "allreduce", "engine": engine.name, "ranks": ranks, "bytes": nbytes}
                    | {"seconds": times}
                )
            for channels in SENT:
                for kind in cases.KINDS:
                    sums = sum(allreduce_seconds(engine, ranks, n) for n in SENT[channels])
                    whole = sums + engine.own_seconds(kind, channels)
                    names = {"bnext": whole, "pickled": 2 * whole, "packed": whole}
                    times = seconds_of(rng, noise, **names, blocking=sums, polled=sums)
                    rows.append(
                        {"what": "exchange", "engine": engine.name, "ranks": ranks}
                        | {"kind": kind, "channels": channels, "seconds": times}
                    )
    work = 1e-4 + disturbances(rng, 40_000)
    about = {"date": "2026-01-02 03:04 UTC", "processor": "a processor"}
    found = results.FORMAT.document(
        about | {"usable_processors": PROCESSORS},
        assumptions=prediction.Assumptions().as_dict(),
        rows=rows, messages=messages, jitter=jitter.summary(work),
    )  # fmt: skip
    return {**found, "addition_seconds_per_byte": 5e-11}


def disturbances(rng, count):
    return (rng.random(count) < DISTURBED) * rng.exponential(DELAY, count)


def setups_of(document, **assumed):
    return prediction.setups(document, fits(document), prediction.Assumptions(**assumed))


# --- collectives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("engine", [MPI, GLOO], ids=lambda engine: engine.name)
def test_the_fit_finds_the_constants_that_times_were_made_of(rng, engine, noise):
    document = synthetic(rng, noise)
    found = model.fit(document, engine.name)
    close = {"rel": 1e-6 + 2 * noise}
    for hop, made_of in ((found.small, engine.small), (found.large, engine.large)):
        assert hop.latency == pytest.approx(made_of.latency, **close)
        assert hop.per_byte == pytest.approx(made_of.per_byte, **close)
    for kind in cases.KINDS:
        for channels in (16, 4096):
            # A difference of two noisy times, of which it is a part.
            own = pytest.approx(engine.own_seconds(kind, channels), rel=1e-6 + 10 * noise)
            assert found.own_seconds(kind, channels) == own
    errors = model.residuals(document, found)
    assert len(errors["allreduce"]) == 3 * len(cases.FULL.nbytes)
    assert len(errors["exchange"]) == 3 * len(SENT) * len(cases.KINDS)
    if engine is GLOO:  # MPI's times are made of one algorithm where the other may be cheaper
        assert max(map(abs, errors["allreduce"])) < 1e-6 + 5 * noise


def test_rows_that_share_processors_are_not_fitted(rng):
    document = synthetic(rng)
    before = [model.fit(document, name) for name in cases.ENGINES]
    for r in document["rows"]:
        if r["ranks"] > PROCESSORS:
            r["seconds"] = {name: [1.0, 1.0, 1.0, 5] for name in r["seconds"]}
    assert [model.fit(document, name) for name in cases.ENGINES] == before
    document["environment"]["usable_processors"] = 1
    assert fits(document) == {}


def test_no_constant_is_negative():
    falling = model.nonnegative([[1, 1, 1], [1, 2, 3]], [3, 2, 1], [1, 1, 1])
    assert falling == [pytest.approx(2), 0]
    assert model.nonnegative([[1, 1], [0, 1]], [-1, -2], [1, 1]) == [0, 0]
    assert model.nonnegative([[1, 1], [0, 1]], [1, 3], [1, 1]) == pytest.approx([1, 2])
    # Relative errors: a value of 100 that is off by 10 weighs as one of 1 that is off by 0.1.
    assert model.nonnegative([[1, 100]], [1, 120], [1, 100]) == pytest.approx([1.1])


def test_hops():
    hop = Hop(1.0, 0.01)
    assert [model.rounds(p) for p in (1, 2, 3, 4, 5, 8, 9, 16384)] == [0, 1, 2, 2, 3, 3, 4, 14]
    assert model.recursive_doubling(8, 100, hop) == pytest.approx(3 * 2)
    assert model.rabenseifner(4, 100, hop) == pytest.approx(4 + 1.5)
    assert model.ring(4, 100, hop) == pytest.approx(6 * 1.25)
    for algorithm in (model.recursive_doubling, model.rabenseifner, model.ring):
        assert algorithm(1, 100, hop) == 0


def test_one_rank_waits_for_nobody(rng):
    document = synthetic(rng)
    found = skew.fit(document["jitter"])
    assert found.wait(1, 0.1, 106) == 0
    for setup in setups_of(document):
        assert setup.allreduce_seconds(1, 10_000) == 0
        assert setup.step_seconds(1) == 0


def test_costs_grow_with_ranks_and_bytes(rng):
    document = synthetic(rng, 0.03)
    sizes = [8 * 2**k for k in range(20)]
    for per_node in (1, 4, 8, 12):
        for setup in setups_of(document, ranks_per_node=per_node):
            for ranks in (2, 8, 12, 16, 1000, 16384):
                times = [setup.allreduce_seconds(ranks, n) for n in sizes]
                assert times == sorted(times)
                assert times[0] > 0
            for nbytes in sizes:
                times = [setup.allreduce_seconds(p, nbytes) for p in range(1, 200)]
                assert times == sorted(times)
            steps = [setup.step_seconds(p) for p in prediction.RANKS]
            assert steps == sorted(steps)


def test_networks_and_machines_count(rng):
    document = synthetic(rng)
    fast, tcp, ring = setups_of(document)
    assert (fast.engine.name, tcp.engine.name, ring.engine.name) == ("mpi", "mpi", "gloo")
    assert fast.step_seconds(8) == tcp.step_seconds(8)  # in one machine
    assert fast.step_seconds(16) < tcp.step_seconds(16) < ring.step_seconds(16)
    slower = setups_of(document, latency_us=20.0)[0]
    hops = model.rounds(1024 // 8)
    sums = sum(count * 2 * len(SENT[c]) for c, count in cases.LAYERS.items())
    more = slower.step_seconds(1024) - fast.step_seconds(1024)
    assert more == pytest.approx(sums * hops * 18e-6, rel=1e-6)
    # A ring of P ranks: 2 (P - 1) hops, no faster than those that were measured.
    assert ring.allreduce_seconds(1024, 8) == pytest.approx(2 * 1023 * 9e-5, rel=0.01)


def test_the_layers_of_a_step_add_up(rng):
    assert sum(cases.LAYERS.values()) == 53
    assert prediction.BARRIERS == 106
    setup = setups_of(synthetic(rng))[0]
    total = sum(n * setup.layer_seconds(64, c) for c, n in cases.LAYERS.items())
    assert setup.step_seconds(64) == pytest.approx(total)
    # Both exchanges have what bnext adds, and an allreduce of each of their messages.
    expected = sum(
        setup.engine.own_seconds(kind, 1024)
        + sum(setup.allreduce_seconds(64, nbytes) for nbytes in SENT[1024])
        for kind in cases.KINDS
    )
    assert setup.layer_seconds(64, 1024) == pytest.approx(expected)


def test_assumptions():
    compute = prediction.Assumptions().compute_seconds
    assert compute["GPU-like"] == pytest.approx(3 * 2 * 4.1e9 * 32 / 150e12)
    assert compute["CPU-like"] == pytest.approx(150 * compute["GPU-like"])
    stored = prediction.Assumptions(images=64).as_dict()
    again = prediction.Assumptions.of(stored, tflops=300.0, latency_us=None)
    assert (again.images, again.tflops, again.latency_us) == (64, 300.0, 2.0)
    assert prediction.share(1.0, 3.0) == 0.25


# --- waiting for the slowest ----------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 16, 300])
def test_the_expected_longest_of_many(rng, ranks):
    work = skew.Work(1e-4, DISTURBED, DELAY)
    drawn = disturbances(rng, (20_000, ranks))
    longest = drawn.max(axis=1)
    error = 5 * longest.std() / math.sqrt(len(longest)) + 5 * drawn.std() / math.sqrt(drawn.size)
    assert work.excess(ranks) == pytest.approx(longest.mean() - DISTURBED * DELAY, abs=error)
    normal = rng.standard_normal((20_000, ranks)).max(axis=1)
    error = 5 * normal.std() / math.sqrt(len(normal))
    assert skew.normal_maximum(ranks) == pytest.approx(normal.mean(), abs=error)


def test_the_limits_of_the_longest():
    """Rare disturbances add up; with many, each factor e of ranks adds the mean of one."""
    assert skew.Work(1.0, 1e-6, 1.0).excess(1001) == pytest.approx(1e-3, rel=0.01)
    work = skew.Work(1.0, 0.1, 1.0)
    assert work.excess(16384) - work.excess(2048) == pytest.approx(math.log(8), rel=1e-3)
    always = skew.Work(1.0, 1.0, 1.0)
    assert always.excess(4) == pytest.approx(1 / 2 + 1 / 3 + 1 / 4)


def test_disturbances_are_found(rng):
    rows = jitter.summary(1e-4 + disturbances(rng, 200_000))
    work = skew.fit_work(rows[0]["seconds"], rows[0]["excess"])
    assert work.probability == pytest.approx(DISTURBED, rel=0.25)
    assert work.delay == pytest.approx(DELAY, rel=0.1)
    # Two neighbours together are disturbed about twice as often.
    work = skew.fit_work(rows[1]["seconds"], rows[1]["excess"])
    assert work.probability == pytest.approx(2 * DISTURBED, rel=0.25)
    assert [round(row["seconds"] / rows[0]["seconds"]) for row in rows] == [
        2**k for k in range(len(rows))
    ]


def test_waiting_grows(rng):
    found = skew.fit(synthetic(rng)["jitter"])
    waits = [found.wait(p, 0.1, 106) for p in (1, 2, 8, 100, 16384)]
    assert waits == sorted(waits)
    assert found.wait(64, 0.2, 106) > found.wait(64, 0.1, 106)
    # Disturbances are independent: more barriers are more waiting.
    assert found.wait(64, 0.1, 106) > found.wait(64, 0.1)
    assert skew.fit([]) is None


def test_jitter_without_any():
    found = skew.fit(jitter.summary(np.full(1000, 1e-4)))
    assert found is None


# --- the report -----------------------------------------------------------------------------------


def test_the_report_follows_from_the_file(rng, tmp_path, capsys):
    import_extra("matplotlib")
    (tmp_path / "first").mkdir()
    document = synthetic(rng, 0.03)
    write(document, tmp_path / "first" / "results.json")
    write_report(document, tmp_path / "first")
    again = [
        "--report",
        str(tmp_path / "first" / "results.json"),
        "--out",
        str(tmp_path / "second"),
    ]
    assert command.main(again) == 0
    for name in ("results.json", "report.md"):
        first, second = ((tmp_path / f / name).read_text() for f in ("first", "second"))
        assert first == second
    assert (tmp_path / "second" / "model.png").stat().st_size > 10_000
    report = (tmp_path / "second" / "report.md").read_text()
    printed = capsys.readouterr().out
    for ranks in prediction.RANKS:
        assert f"| {ranks:,} | " in report
        assert f"\n{ranks:,}".strip() in printed
    for text in ("MPI, 2 us 25 GB/s", "150 TFLOP/s", "8 ranks a machine", "waiting"):
        assert text in report
        assert text in printed
    assert "not fitted" in report  # the rows of 16 processes on 8 processors


@pytest.fixture
def pictureless(monkeypatch):
    import_extra("matplotlib")
    monkeypatch.setattr(plot, "save", no_picture)


@pytest.mark.usefixtures("pictureless")
def test_assumptions_can_be_changed_afterwards(rng, tmp_path, capsys):
    path = tmp_path / "results.json"
    write(synthetic(rng), path)
    options = ["--latency-us", "7", "--ranks-per-node", "4", "--tflops", "75"]
    assert command.main(["--report", str(path), *options]) == 0
    printed = capsys.readouterr().out
    assert "MPI, 7 us 25 GB/s" in printed
    assert "4 ranks a machine" in printed
    assert "75 TFLOP/s on 32 images (10.5 ms)" in printed
    assert json.loads(path.read_text())["assumptions"]["latency_us"] == 7


@pytest.mark.usefixtures("pictureless")
@pytest.mark.parametrize("missing", ["jitter", "rows"])
def test_a_report_of_a_part(rng, tmp_path, missing):
    document = synthetic(rng)
    document[missing] = []
    printed = write_report(document, tmp_path)
    assert ("waiting" in printed.split("Assumptions")[0]) == (missing == "rows")
    assert "What was not measured" in (tmp_path / "report.md").read_text()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format": "bnext suite", "version": 1}')
    with pytest.raises(ValueError, match="expected results of the barrier"):
        results.FORMAT.read(path)


@pytest.mark.parametrize("option", ["--latency-us", "--ranks-per-node", "--images", "--tflops"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_options_are_checked(option, value, capsys):
    error = refusal_of(command.main, ["--out", "results", option, value], capsys)
    assert re.search("expected (a finite number > 0|an integer >= 1)", error)
