"""The demo's own layers, its measurements and what it shows."""

from __future__ import annotations

import io
import warnings
from itertools import pairwise

import numpy as np
import pytest

import bnext
from bnext.demo import layers, networks, training
from bnext.demo.data import Digits
from bnext.demo.loss import accuracy, softmax_cross_entropy

from .numerical import numerical_gradient
from .optional import import_extra
from .tolerances import FINITE_DIFFERENCE


@pytest.fixture
def normal(rng):
    return rng.standard_normal


LAYERS = {
    "linear": (lambda normal: layers.Linear(normal((3, 4))), (5, 4)),
    "conv": (lambda normal: layers.Conv2d(normal((3, 2, 3, 3))), (2, 2, 5, 4)),
    "conv, stride 2": (lambda normal: layers.Conv2d(normal((3, 2, 3, 3)), 2), (2, 2, 6, 4)),
    "conv, stride 2, odd size": (
        lambda normal: layers.Conv2d(normal((3, 2, 3, 3)), 2),
        (2, 2, 5, 7),
    ),
    "conv, 5x5": (lambda normal: layers.Conv2d(normal((2, 1, 5, 5))), (2, 1, 4, 6)),
    "linear, 4D": (lambda normal: layers.Linear(normal((3, 24))), (2, 2, 3, 4)),
    "relu": (lambda normal: layers.Relu(), (6, 7)),
    "bias, 2D": (lambda normal: layers.Bias(normal(4)), (5, 4)),
    "bias, 4D": (lambda normal: layers.Bias(normal(3)), (2, 3, 4, 5)),
    "normalization, 2D": (
        lambda normal: layers.Normalization(bnext.BatchNorm1d(4, dtype=np.float64)),
        (6, 4),
    ),
    "normalization, 4D": (
        lambda normal: layers.Normalization(bnext.BatchNorm2d(3, dtype=np.float64)),
        (2, 3, 4, 2),
    ),
}


def assert_same_gradient(actual, expected):
    bound = FINITE_DIFFERENCE * max(1, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer_are_those_of_finite_differences(name, normal):
    make, shape = LAYERS[name]
    layer = make(normal)
    x = normal(shape)
    dy = normal(layer.forward(x).shape)
    dx = layer.backward(dy)
    assert_same_gradient(dx, numerical_gradient(lambda x: (layer.forward(x) * dy).sum(), x))

    for value, gradient in list(layer.parameters()):

        def objective(moved, value=value):
            value[...] = moved
            return (layer.forward(x) * dy).sum()

        assert_same_gradient(gradient, numerical_gradient(objective, value.copy()))


def test_convolution_is_the_sum_over_each_window(normal):
    weight, x = normal((3, 2, 3, 3)), normal((2, 2, 5, 5))
    y = layers.Conv2d(weight, stride=2).forward(x)
    assert y.shape == (2, 3, 3, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    window = padded[1, :, 2:5, 4:7]
    assert y[1, 2, 1, 2] == pytest.approx((window * weight[2]).sum())


def test_gradient_of_the_loss_is_that_of_finite_differences(normal):
    logits, labels = normal((4, 3)), np.array([0, 2, 1, 2])
    _, dlogits = softmax_cross_entropy(logits, labels)
    expected = numerical_gradient(lambda moved: softmax_cross_entropy(moved, labels)[0], logits)
    assert_same_gradient(dlogits, expected)


def test_loss_of_huge_logits_does_not_overflow():
    loss, dlogits = softmax_cross_entropy(np.array([[1e4, 0.0]]), np.array([1]))
    assert loss == 1e4
    np.testing.assert_array_equal(dlogits, [[1, -1]])


def test_accuracy_counts_rows_with_nan_as_wrong():
    logits = np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, 1.0]])
    assert accuracy(logits, np.array([0, 0, 0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_initial_weights_depend_on_the_seed_alone(kind):
    def weights(normalized, seed):
        network = networks.build(kind, normalized=normalized, seed=seed)
        return [layer.weight for layer in network.layers if hasattr(layer, "weight")]

    for with_bn, without in zip(weights(True, 3), weights(False, 3), strict=True):
        np.testing.assert_array_equal(with_bn, without)
    assert not np.array_equal(weights(True, 3)[0], weights(True, 4)[0])


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_networks_normalize_before_every_activation_and_nowhere_else(kind):
    for normalized, before in ((True, layers.Normalization), (False, layers.Bias)):
        chain = networks.build(kind, normalized=normalized, seed=0).layers
        for previous, layer in pairwise(chain):
            assert isinstance(layer, layers.Relu) == isinstance(previous, before)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_input_of_the_last_relu_is_known(kind, normal):
    network = networks.build(kind, normalized=True, seed=0)
    x = normal((4, 1, 8, 8)).astype(np.float32)
    logits = network.forward(x)
    assert logits.shape == (4, 10)
    assert [type(layer) for layer in network.layers[-2:]] == [layers.Relu, layers.Linear]
    assert network.last_relu() is network.layers[-2]
    found = network.last_relu().x
    np.testing.assert_array_equal(network.layers[-1].forward(np.maximum(found, 0)), logits)


def test_batches_are_of_one_size_and_visit_an_example_once_an_epoch():
    case = training.Case("dense", 3, rate=0.1, epochs=2, seed=1)
    examples = np.arange(10)
    few = Digits(-examples, examples, examples, examples)
    drawn = list(training.batches(case, few))
    assert [len(labels) for _, labels in drawn] == [3] * 6
    assert all(np.array_equal(images, -labels) for images, labels in drawn)
    for epoch in (drawn[:3], drawn[3:]):
        assert len({label for _, labels in epoch for label in labels.tolist()}) == 9
    np.testing.assert_array_equal(drawn, list(training.batches(case, few)))


def train(digits, *, kind="dense", rate=0.1, normalized=True, epochs=1, batch_size=128):
    case = training.Case(kind, batch_size, rate, epochs, seed=0, normalized=normalized)
    network = networks.build(kind, normalized=normalized, seed=0)
    return training.train(network, case, digits, on_step=lambda loss: None)


def test_the_held_out_digits_are_apart_and_of_every_class(digits):
    from bnext.demo.data import TEST_EXAMPLES, TRAIN_EXAMPLES

    assert digits.train_images.shape == (TRAIN_EXAMPLES, 1, 8, 8)
    assert digits.test_images.shape == (TEST_EXAMPLES, 1, 8, 8)
    assert digits.train_images.dtype == np.float32
    assert 0 == digits.train_images.min() < digits.train_images.max() == 1
    assert np.all(np.bincount(digits.test_labels, minlength=10) >= 34)
    train = {image.tobytes() for image in digits.train_images}
    assert not any(image.tobytes() in train for image in digits.test_images)


def test_training_learns_and_repeats_to_the_bit(digits):
    first, second = (train(digits, epochs=4, batch_size=64) for _ in range(2))
    assert first.outcome == "trained"
    assert first.test_accuracy > 0.9
    assert first.losses == second.losses
    assert len(first.losses) == len(first.quantiles) == len(first.step_seconds) == 4 * 22
    for step, normalization in zip(first.step_seconds, first.normalization_seconds, strict=True):
        assert 0 < normalization < step


def test_the_plain_network_spends_no_time_in_normalization(digits):
    assert set(train(digits, normalized=False).normalization_seconds) == {0}


def test_inference_takes_the_running_statistics(digits):
    network = networks.build("conv", normalized=True, seed=0)
    x = digits.test_images[:50]
    network.forward(x)
    network.train(False)
    together = network.forward(x)
    apart = np.concatenate([network.forward(x[:20]), network.forward(x[20:])])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_divergence_is_recorded_and_warns_of_nothing(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = train(digits, rate=1000.0, normalized=False, epochs=3)
    assert record.diverged
    assert record.outcome == f"diverged at step {len(record.losses)}"
    assert np.isfinite(record.losses[:-1]).all()
    assert not np.isfinite(record.losses[-1])
    assert np.isnan(record.test_accuracy)
    assert np.isnan(record.final_loss)


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([2.3, 1.0, 0.1, 0.1], "trained"),
        ([2.3, 2.4, 2.3, 2.3], "stuck at chance"),
        ([2.3, 5e4, 2.3, 2.3], "exploded, at chance"),
    ],
)
def test_outcome(losses, outcome):
    case = training.Case("dense", 512, 0.1, epochs=2, seed=0, normalized=False)
    record = training.Record(case, losses)
    assert case.steps_per_epoch == 2
    assert record.outcome == outcome


@pytest.fixture
def records():
    """Runs at two rates; the plain one at the large rate diverged at its third step."""
    results = []
    for rate in (0.1, 2.0):
        for normalized in (True, False):
            diverged = rate == 2 and not normalized
            losses = [2.3, 9e9, float("nan")] if diverged else [2.3, 1.0, 0.5, 0.25]
            quantiles = [step * np.arange(-2.0, 3.0) for step, _ in enumerate(losses, start=1)]
            if diverged:
                quantiles[-1] = np.full(5, np.nan)
            results.append(
                training.Record(
                    training.Case("dense", 512, rate, 2, 0, normalized),
                    losses=losses,
                    quantiles=quantiles,
                    step_seconds=[2e-3] * len(losses),
                    normalization_seconds=[0.5e-3 * normalized] * len(losses),
                    diverged=diverged,
                    test_accuracy=float("nan") if diverged else 0.975,
                )
            )
    return results


def test_table(records):
    console = import_extra("rich.console").Console(file=io.StringIO(), width=80)
    from bnext.demo import report

    report.table("dense", records).show(console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["0.1", "with", "97.5%", "0.3750", "2.00", "ms", "25%", "trained"] in lines
    assert ["0.1", "without", "97.5%", "0.3750", "2.00", "ms", "-", "trained"] in lines
    diverged = ["2", "without", "-", "overflow", "2.00", "ms", "-"]
    assert [*diverged, "diverged", "at", "step", "3"] in lines


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture(records, suffix, tmp_path):
    import_extra("matplotlib")
    from bnext.demo import picture

    path = tmp_path / f"demo{suffix}"
    picture.draw(records, ["dense"], path)
    assert path.stat().st_size > 10_000
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
