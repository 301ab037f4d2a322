"""``python -m bnext statistics``: what is compared, and how it is measured and shown."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import re
import warnings

import numpy as np
import pytest

import bnext
from bnext.__main__ import main
from bnext.demo import networks, training
from bnext.demo.layers import Conv2d, Linear, Relu
from bnext.demo.statistics import cost, numbers, options
from bnext.demo.statistics.comparison import Comparison
from bnext.demo.statistics.experiment import Outcome, in_batches, run_case, train
from bnext.demo.statistics.layer_statistics import Distance, Following, Statistics, distance
from bnext.demo.statistics.methods import EXACT, FROM_DATA, methods, shown
from bnext.demo.training import Case

from .command_lines import refusal_of
from .optional import import_extra

ESTIMATORS = [
    bnext.Exponential(decay=0.9),
    bnext.Exponential(decay=0.999, bessel=False),
    bnext.Exponential(decay=0.0),
    bnext.DebiasedExponential(decay=0.99),
    bnext.DebiasedExponential(decay=0.999, bessel=False),
    bnext.Cumulative(),
    bnext.Cumulative(bessel=False),
]


def layers_of(network):
    return [layer.bn for layer in network.normalizations()]


# --- what is compared -----------------------------------------------------------------------------


def test_methods_are_all_there_with_and_without_the_correction():
    names = [method.name for method in methods([0.5, 0.9])]
    assert names[:6] == [
        "exact", "exact, biased", "pooled", "pooled, biased", "average", "average, biased",
    ]  # fmt: skip
    assert names[6::2] == [
        "cumulative", "exponential 0.5", "exponential 0.9", "debiased 0.5", "debiased 0.9",
    ]  # fmt: skip
    assert [name for name in names if name.endswith(", biased")] == [
        f"{name}, biased" for name in names if not name.endswith(", biased")
    ]
    assert [m.name for m in shown(methods([0.9]))] == [
        "exact", "pooled", "average", "average, biased", "cumulative", "exponential 0.9",
        "debiased 0.9",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [2, 3, 5, 8, 100, 512, 719, 1000, 1436, 1437])
def test_batches_have_every_image_once_and_nearly_the_size(size):
    images = np.arange(1437)
    parts = in_batches(images, size)
    np.testing.assert_array_equal(np.concatenate(parts), images)
    sizes = {len(part) for part in parts}
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert 2 / 3 * size <= np.mean([*sizes]) <= 3 / 2 * size


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("batch_size", [2, 96])
def test_what_follows_a_layer_is_what_a_layer_with_that_estimator_has(digits, kind, batch_size):
    """Of the first third of the images."""
    first = {"train_images": digits.train_images[:480], "train_labels": digits.train_labels[:480]}
    digits = dataclasses.replace(digits, **first)
    case = Case(kind, batch_size, rate=0.05, epochs=1, seed=3)
    followed = networks.build(kind, normalized=True, seed=3)
    following = train(followed, case, digits, ESTIMATORS)
    for estimator in ESTIMATORS if batch_size > 2 else ESTIMATORS[::3]:
        own = networks.build(kind, normalized=True, seed=3)
        for bn in layers_of(own):
            bn.estimator = estimator
        training.train(own, case, digits, on_step=lambda loss: None)
        for mine, its, seen in zip(layers_of(own), layers_of(followed), following, strict=True):
            np.testing.assert_array_equal(mine.weight, its.weight)
            mean, var = seen.statistics()[estimator]
            # A layer rounds to float32 in every step; a step takes some of the error along.
            for actual, expected in ((mine.running_mean, mean), (mine.running_var, var)):
                bound = 1e-6 * np.abs(expected).max() * (1 + 0.01 * int(mine.num_batches_tracked))
                np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


def test_following_begins_as_a_layer_does():
    mean, var = Following(ESTIMATORS, 3).statistics()[ESTIMATORS[1]]
    assert mean.tolist() == [0, 0, 0]
    assert var.tolist() == [1, 1, 1]


# --- how it is measured ---------------------------------------------------------------------------


def test_distance_is_the_difference_that_statistics_make_to_the_output(rng):
    x = rng.standard_normal((5000, 6)) * rng.uniform(0.05, 4, 6) + rng.standard_normal(6)
    exact = Statistics(x.mean(axis=0), x.var(axis=0))
    estimate = Statistics(exact.mean + rng.standard_normal(6), exact.var * rng.uniform(0.5, 3, 6))
    eps = 1e-3
    outputs = [bnext.normalize(x, each.mean, each.var, eps=eps) for each in (estimate, exact)]
    measured = np.sqrt(np.mean(np.square(outputs[0] - outputs[1])))
    found = distance(estimate, exact, eps)
    assert found.total == pytest.approx(measured, rel=1e-12)
    of_mean = distance(Statistics(estimate.mean, exact.var), exact, eps)
    assert of_mean.var == 0 < of_mean.mean
    of_var = distance(Statistics(exact.mean, estimate.var), exact, eps)
    assert of_var.mean == 0 < of_var.var == found.var
    assert distance(exact, exact, eps) == Distance(0, 0)


@pytest.fixture(scope="module")
def small_batches(digits):
    case = Case("dense", 8, rate=0.05, epochs=1, seed=0)
    found = run_case(case, digits, methods([0.9, 0.999]))
    return {outcome.method.name: outcome for outcome in found}


def test_the_exact_statistics_are_at_no_distance_from_themselves(small_batches):
    assert set(small_batches["exact"].distances) == {Distance(0, 0)}
    assert small_batches["exact"].distance == 0
    others = {name: each.distance for name, each in small_batches.items() if name != "exact"}
    assert min(others.values()) > 0


def test_distances_are_what_they_should_be_where_that_is_known(small_batches, digits):
    # n / (n - 1) is all that is between the two.
    examples = len(digits.train_labels)
    for each in small_batches["exact, biased"].distances:
        assert each.mean == 0
        assert each.var == pytest.approx(1 / (2 * examples), rel=0.01)
    # One pass is enough for the first layer, and not for the second.
    first, second, *_ = small_batches["pooled"].distances
    assert first.total < 1e-6 < 1e-3 < second.total
    # 179 batches leave 84 % of where 0.999 began, unless that is divided away.
    assert (
        small_batches["exponential 0.999"].distance > 2 * small_batches["debiased 0.999"].distance
    )
    assert small_batches["exponential 0.9"].distance == pytest.approx(
        small_batches["debiased 0.9"].distance, rel=1e-6
    )


def test_what_comes_from_one_batch_with_the_whole_data_set_is_exact(digits):
    case = Case("conv", len(digits.train_labels), rate=0.05, epochs=1, seed=0)
    outcomes = run_case(case, digits, [m for m in methods([]) if m.from_data and m.bessel])
    assert [outcome.method.name for outcome in outcomes] == list(FROM_DATA)
    assert max(outcome.distance for outcome in outcomes) < 1e-5
    assert len({outcome.accuracy for outcome in outcomes}) == 1


def test_accuracy_and_loss_are_of_inference_with_the_statistics(digits):
    case = Case("dense", 64, rate=0.1, epochs=2, seed=0)
    (outcome,) = run_case(case, digits, [EXACT])
    network = networks.build("dense", normalized=True, seed=0)
    train(network, case, digits, [])
    bnext.update_statistics(network.forward, [digits.train_images], layers_of(network))
    network.train(False)
    logits = network.forward(digits.test_images).astype(np.float64)
    assert outcome.accuracy == np.mean(logits.argmax(axis=1) == digits.test_labels) > 0.85
    log_sums = np.log(np.exp(logits).sum(axis=1))
    loss = np.mean(log_sums - logits[np.arange(len(logits)), digits.test_labels])
    assert outcome.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_multiplications_of_a_convolution_are_those_of_its_matrix_product(stride, rng):
    layer = Conv2d(rng.standard_normal((4, 3, 3, 3)), stride)
    x = rng.standard_normal((2, 3, 5, 8))
    size = layer.forward(x).size
    assert layer.multiplications == size * 3 * 3 * 3
    layer.forward(x)
    assert layer.multiplications == 2 * size * 3 * 3 * 3
    linear, relu = Linear(rng.standard_normal((4, 8))), Relu()
    linear.forward(relu.forward(x[0, 0]))
    assert (linear.multiplications, relu.multiplications) == (5 * 4 * 8, 0)


@pytest.mark.parametrize("keeping", [True, False])
def test_costs(keeping, monkeypatch, rng):
    if keeping:
        import_extra("greenlet")
    else:
        monkeypatch.setattr("bnext.inference.update.greenlets", lambda: None)
    images = rng.standard_normal((20, 1, 8, 8)).astype(np.float32)
    found = {each.name: each for each in cost.costs("dense", images, 5)}
    assert (found["running averages"].passes, found["running averages"].work) == (0, 0)
    for name in ("pooled", "average"):
        assert (found[name].passes, found[name].work) == (1, 1)
    # To each of four layers for all, and to the end of the network for one of four batches.
    ends = np.cumsum([64 * 128, 128 * 128, 128 * 128, 128 * 128])
    whole = ends[-1] + 128 * 10
    by_name = "exact, keeping nothing" if keeping else "exact"
    assert found[by_name].passes == 4
    assert found[by_name].work == pytest.approx(ends.sum() / whole + 1 / 4)
    assert ("exact, keeping nothing" in found) == keeping
    if keeping:
        assert found["exact"].passes == 1
        assert found["exact"].work == pytest.approx((ends[-1] + 128 * 10 / 4) / whole)


# --- what is shown --------------------------------------------------------------------------------


def parsed(*words):
    parser = argparse.ArgumentParser()
    options.add_options(parser)
    found = parser.parse_args(words, options.Options())
    found.check(parser)
    return found


def test_options():
    chosen = parsed("--batch-sizes", "32", "8", "8", "128", "--decays", "0.9", "0", "--seed", "5")
    assert chosen.kinds == ("dense", "conv")
    assert chosen.batch_sizes == [8, 32, 128]
    assert chosen.decays == [0, 0.9]
    cases = chosen.cases("conv")
    assert [case.rate for case in cases[::3]] == [0.05, 0.1, 0.2]
    assert [(c.batch_size, c.seed) for c in cases] == [
        (m, s) for m in (8, 32, 128) for s in (5, 6, 7)
    ]
    assert {(c.kind, c.epochs) for c in cases} == {("conv", 10)}
    assert parsed().batch_sizes == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert options.detailed(parsed().batch_sizes) == 8
    assert parsed("--no-picture").output is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "recurrent"], "argument --network: invalid choice: 'recurrent'"),
        (["--epochs", "0"], "argument --epochs: expected an integer >= 1, got 0"),
        (["--runs", "0"], "argument --runs: expected an integer >= 1, got 0"),
        (["--batch-sizes"], "argument --batch-sizes: expected at least one argument"),
        (["--batch-sizes", "1"], "argument --batch-sizes: expected an integer >= 2, got 1"),
        (["--batch-sizes", "4", "1438"], "expected at most the 1437 training images, got 1438"),
        (["--decays", "1"], "argument --decays: expected a number from 0 to below 1, got 1"),
        (["--decays", "-0.1"], "argument --decays: expected a number from 0 to below 1, got -0.1"),
        (["--decays", "nan"], "argument --decays: expected a number from 0 to below 1, got nan"),
        (["--decays", "x"], "argument --decays: expected a number from 0 to below 1, got x"),
        (["--rate", "0"], "argument --rate: expected a finite number > 0, got 0"),
        (["--output", "x.bmp"], "--output: expected a name ending in .png, .svg or .pdf"),
        (["--csv", "x.txt"], "--csv: expected a name ending in .csv, got x.txt"),
        (["--csv", "no/such/x.csv"], "--csv: expected an existing folder, got"),
    ],
)
def test_mistakes_are_named_and_exit_with_2(words, message, capsys):
    assert message in refusal_of(main, ["statistics", *words], capsys)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    from bnext.demo import options as of_the_demo

    monkeypatch.setattr(of_the_demo, "EXTRA", {"scikit-learn": "no_such_module"})
    assert main(["statistics"]) == 2
    assert capsys.readouterr().err == (
        "python -m bnext statistics: expected scikit-learn, not installed here: "
        "pip install 'bnext[demo]'\n"
    )


QUICK = ["statistics", "--network", "dense", "--epochs", "1", "--runs", "2"]
QUICK += ["--batch-sizes", "64", "256", "--decays", "0.9", "0.99"]


@pytest.mark.usefixtures("extra")
def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--csv", "all.csv"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.endswith(
        f"Numbers: {tmp_path / 'all.csv'}\nPicture: {tmp_path / 'bnext-statistics.png'}\n"
    )
    assert (tmp_path / "bnext-statistics.png").read_bytes().startswith(b"\x89PNG")

    with (tmp_path / "all.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(numbers.COLUMNS)
    assert len(rows) == 2 * 2 * len(methods([0.9, 0.99])) * 4
    assert {row["seed"] for row in rows} == {"0", "1"}

    def mean(column, batch_size, layer="1"):
        of = {"method": "average", "bessel": "no", "batch_size": batch_size, "layer": layer}
        found = [float(row[column]) for row in rows if of.items() <= row.items()]
        assert len(found) == 2
        return np.mean(found)

    # In the terminal are the means over the runs of what is in the file.
    def number(value):
        return f"{value:.3f}".removeprefix("0")

    expected = [
        [f"{100 * mean('accuracy', m):.1f} {mean('loss', m):.3f}" for m in ("64", "256")],
        None,
        [f"{number(mean('of_mean', '64', n))} {number(mean('of_var', '64', n))}" for n in "1234"],
    ]
    lines = [line.split() for line in output.out.splitlines() if "average, biased" in line]
    assert len(lines) == 3
    for line, cells in zip(lines, expected, strict=True):
        assert cells is None or line[2:] == " ".join(cells).split()
    farthest = float(lines[1][2])
    layers = [mean("distance", "64", n) for n in "1234"]
    assert max(layers) - 1e-3 <= farthest <= sum(layers)
    assert re.search(r"exact +\d pass(es)? +\d\.\d\d *\n", output.out)


@pytest.mark.usefixtures("extra")
def test_command_without_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--no-picture"]) == 0
    output = capsys.readouterr().out
    assert "debiased 0.99 " in output
    assert "Picture" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("extra")
def test_a_rate_at_which_everything_overflows_is_shown_and_warns_of_nothing(tmp_path, capsys):
    words = [*QUICK, "--rate", "1e30", "--output", str(tmp_path / "x.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(words) == 0
    assert re.search(r"exponential 0\.9 +0\.0 nan", capsys.readouterr().out)


@pytest.fixture
def outcomes():
    """Of two runs at each of seven batch sizes; the second is off by twice as much."""
    return [
        Outcome(
            Case(kind, size, 0.1, 1, seed),
            method,
            accuracy=0.975 - 0.05 * seed,
            loss=0.1 + 0.1 * seed,
            distances=tuple(
                Distance(0.03 * (seed + 1) * layer, 0.04 * (seed + 1) * layer)
                for layer in range(1, layers + 1)
            ),
        )
        for kind, layers in (("dense", 4), ("conv", 3))
        for size in (2, 4, 8, 16, 32, 64, 128)
        for seed in (0, 1)
        for method in methods([0.9])
    ]


def test_tables(outcomes):
    console = import_extra("rich.console").Console(file=io.StringIO(), width=80)
    from bnext.demo.statistics import report

    chosen = parsed("--batch-sizes", "2", "4", "8", "16", "32", "64", "128", "--decays", "0.9")
    for table in report.tables(chosen, Comparison("conv", outcomes)):
        table.show(console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    # Every other batch size, so that the table is not too wide; all of them; every layer.
    assert "statistics 7180 steps 1790 steps 440 steps 110 steps" in lines
    assert "exponential 0.9" + " 95.0 0.150" * 4 in lines
    assert "exponential 0.9" + " .225" * 7 in lines
    assert "exponential 0.9 .045 .060 .090 .120 .135 .180" in lines


@pytest.mark.parametrize(("network", "suffix"), [("dense", ".svg"), ("both", ".png")])
def test_picture(outcomes, suffix, network, tmp_path):
    import_extra("matplotlib")
    import_extra("rich")
    from bnext.demo.statistics import picture

    path = tmp_path / f"statistics{suffix}"
    sizes = ["2", "4", "8", "16", "32", "64", "128"]
    chosen = parsed("--network", network, "--batch-sizes", *sizes, "--decays", "0.9")
    picture.draw(chosen, [Comparison(kind, outcomes) for kind in chosen.kinds], path)
    assert path.stat().st_size > 10_000
