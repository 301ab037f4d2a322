"""Micro-batches that are normalized as the one batch that they are."""

import copy
import itertools

import numpy as np
import pytest

import bnext
from bnext.demo.loss import softmax_cross_entropy
from bnext.demo.networks import build

from .compare import assert_same_bits
from .limits import NEVER
from .snapshots import layer_state, raises_exactly

EXAMPLES = 61
CUTS = {
    "four": [15, 30, 45],
    "unequal": [1, 4, 50],
    "single examples": list(range(1, 8)),
    "one": [],
    "with empty ones": [0, 20, 20, 40],
}


def network_of(kind, dtype):
    """The digits networks, with parameters of that dtype."""
    network = build(kind, normalized=True, seed=3)
    for layer in network.layers:
        for name in ("weight", "weight_grad"):
            if hasattr(layer, name):
                setattr(layer, name, getattr(layer, name).astype(dtype))
        if hasattr(layer, "bn"):
            layer.bn = bnext.BatchNorm(layer.bn.num_features, dtype=dtype)
    return network


def layers_of(network):
    return [layer.bn for layer in network.layers if hasattr(layer, "bn")]


def gradients_of(network):
    return [gradient.copy() for layer in network.layers for _, gradient in layer.parameters()]


def step_of(network, examples):
    """Gradients of a piece's part of the mean loss over `examples`."""

    def step(piece):
        images, labels = piece
        logits = network.forward(images)
        dlogits = logits
        if len(images):
            _, dlogits = softmax_cross_entropy(logits, labels)  # a mean over the piece
        network.backward((dlogits * (len(images) / examples)).astype(images.dtype))
        return gradients_of(network)

    return step


def batch(rng, dtype):
    images = rng.normal(0.5, 2, (EXAMPLES, 1, 8, 8)).astype(dtype)
    return images, rng.integers(0, 10, EXAMPLES)


def accumulated(network, pieces):
    parts = []
    with bnext.micro_batches(layers_of(network)) as union:
        for gradients in union.run(step_of(network, EXAMPLES), pieces):
            parts.append(gradients)
    return [sum(each) for each in zip(*parts, strict=True)], union


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_gradients_are_those_of_the_big_batch(rng, dtype, kind, cuts):
    images, labels = batch(rng, dtype)
    big = network_of(kind, dtype)
    network = copy.deepcopy(big)
    expected = step_of(big, EXAMPLES)((images, labels))
    pieces = list(zip(np.split(images, cuts), np.split(labels, cuts), strict=True))
    total, union = accumulated(network, pieces)
    rounding = 1e-5 if dtype == np.float32 else 1e-13
    for actual, wanted in zip(total, expected, strict=True):
        assert np.max(np.abs(actual - wanted)) <= rounding * np.max(np.abs(wanted))
    depth = len(layers_of(network))
    assert union.rounds == 2 * depth + 1
    for bn, other in zip(layers_of(network), layers_of(big), strict=True):
        assert bn.num_batches_tracked == 1
        np.testing.assert_allclose(bn.running_mean, other.running_mean, rtol=rounding, atol=1e-7)
        np.testing.assert_allclose(bn.running_var, other.running_var, rtol=rounding)


def test_without_it_they_are_not(rng):
    """The reason for all this."""
    images, labels = batch(rng, np.float64)
    big = network_of("dense", np.float64)
    network = copy.deepcopy(big)
    expected = step_of(big, EXAMPLES)((images, labels))
    step = step_of(network, EXAMPLES)
    parts = [
        step(piece) for piece in zip(np.split(images, [30]), np.split(labels, [30]), strict=True)
    ]
    first = parts[0][0] + parts[1][0]
    assert np.max(np.abs(first - expected[0])) > 0.01 * np.max(np.abs(expected[0]))


def test_training_goes_the_same_way(rng):
    big = network_of("dense", np.float64)
    network = copy.deepcopy(big)
    for _ in range(5):
        images, labels = batch(rng, np.float64)
        step_of(big, EXAMPLES)((images, labels))
        big.descend(0.2)
        cuts = [10, 37]
        pieces = list(zip(np.split(images, cuts), np.split(labels, cuts), strict=True))
        total, _ = accumulated(network, pieces)
        parameters = [p for layer in network.layers for p, _ in layer.parameters()]
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter -= 0.2 * gradient
    for one, other in zip(network.layers, big.layers, strict=True):
        for (value, _), (expected, _) in zip(one.parameters(), other.parameters(), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture
def two(rng):
    layers = [bnext.BatchNorm1d(4, dtype=np.float64) for _ in range(2)]
    x = rng.normal(1, 3, (20, 4))
    return layers, x


def through(layers):
    def step(x):
        y = x
        for bn in layers:
            y = bn(y)
        dy = y**2
        for bn in layers[::-1]:
            dy = bn.backward(dy)
        return y, dy, [bn.weight_grad for bn in layers]

    return step


def test_outputs_too(two):
    layers, x = two
    whole = copy.deepcopy(layers)
    y, dx, dweights = through(whole)(x)
    with bnext.micro_batches(layers) as union:
        results = list(union.run(through(layers), np.split(x, [3, 11])))
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), y, rtol=1e-12)
    scale = np.max(np.abs(dx))
    np.testing.assert_allclose(np.concatenate([r[1] for r in results]), dx, atol=1e-12 * scale)
    for parts, expected in zip(zip(*[r[2] for r in results], strict=True), dweights, strict=True):
        np.testing.assert_allclose(sum(parts), expected, rtol=1e-10, atol=1e-12)
    for bn, other in zip(layers, whole, strict=True):
        np.testing.assert_allclose(bn.running_var, other.running_var, rtol=1e-12)


def test_frozen_and_evaluated_layers_take_no_rounds(two):
    layers, x = two
    layers[0].freeze()
    whole = copy.deepcopy(layers)
    y, _, _ = through(whole)(x)
    before = layers[0].state_dict()
    with bnext.micro_batches(layers) as union:
        results = list(union.run(through(layers), np.split(x, [3, 11])))
    assert union.rounds == 3
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), y, rtol=1e-12)
    for name, value in layers[0].state_dict().items():
        assert_same_bits(value, before[name])


def test_a_layer_that_is_called_twice(rng):
    """The union's statistics of each call."""
    bn = bnext.BatchNorm1d(4, dtype=np.float64)
    x = rng.normal(1, 3, (20, 4))
    expected = copy.deepcopy(bn)
    y = expected(np.abs(expected(x)))
    with bnext.micro_batches([bn]) as union:
        results = list(union.run(lambda piece: bn(np.abs(bn(piece))), np.split(x, [3, 11])))
    np.testing.assert_allclose(np.concatenate(results), y, rtol=1e-12)
    np.testing.assert_allclose(bn.running_var, expected.running_var, rtol=1e-12)
    assert bn.num_batches_tracked == 2


def test_members_of_a_group_have_micro_batches_each(two):
    _, x = two
    group = bnext.sync.ThreadGroup(2, timeout=NEVER)
    whole = [bnext.BatchNorm1d(4, dtype=np.float64) for _ in range(2)]
    y, dx, _ = through(whole)(x)
    replicas = [[bnext.BatchNorm1d(4, dtype=np.float64, group=group) for _ in whole]
                for _ in range(2)]  # fmt: skip

    def member(rank, shard):
        layers = replicas[rank]
        with bnext.micro_batches(layers) as union:
            return list(union.run(through(layers), np.split(shard, [4] if rank else [1, 5])))

    results = [r for part in group.run(member, np.split(x, [12])) for r in part]
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), y, rtol=1e-11)
    scale = np.max(np.abs(dx))
    np.testing.assert_allclose(np.concatenate([r[1] for r in results]), dx, atol=1e-11 * scale)
    for layers in replicas:
        for bn, other in zip(layers, whole, strict=True):
            np.testing.assert_allclose(bn.running_var, other.running_var, rtol=1e-11)
            assert bn.group is group


@pytest.mark.parametrize("at", range(0, 14, 3))
def test_an_error_changes_nothing(two, at):
    layers, x = two
    calls = itertools.count()
    inner = through(layers)

    def fails(piece):
        if next(calls) == at:
            raise KeyError("mine")
        return inner(piece)

    gradients = {"weight_grad": None, "bias_grad": None}  # those of the latest backward, as ever
    states = [
        lambda bn=bn: {k: v for k, v in layer_state(bn).items() if k not in gradients}
        for bn in layers
    ]
    with bnext.micro_batches(layers) as union, raises_exactly(KeyError, "'mine'", states[0]):
        with_error = union.run(fails, np.split(x, [3, 11]))
        list(with_error)
    for bn in layers:
        assert bn.group is None
        assert bn.use_running_stats is None
        assert bn.num_batches_tracked == 0


def test_results_that_nobody_takes(two):
    """A caller that stops in the middle gets its layers back."""
    layers, x = two
    with bnext.micro_batches(layers) as union:
        results = union.run(through(layers), np.split(x, [3, 11]))
        next(results)
        results.close()
    assert layers[0].group is None
    assert layers[0].num_batches_tracked == 0


def test_wrong_pieces(two):
    layers, x = two
    with bnext.micro_batches(layers) as union:
        text = "pieces: expected at least one in every round, got 0"
        with raises_exactly(ValueError, text, {}):
            list(union.run(through(layers), []))
        text = (
            "pieces: expected an iterable that can be gone through several times, got an iterator "
            "(list_iterator), which ends after one round"
        )
        with raises_exactly(ValueError, text, {}):
            list(union.run(through(layers), iter([x])))
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            list(union.run(through(layers), [x[:1], x[:0]]))
    text = "run: expected a call inside of `with bnext.micro_batches(...)`"
    with raises_exactly(RuntimeError, text, {}):
        list(union.run(through(layers), [x]))


def test_pieces_that_take_different_ways(two):
    layers, x = two
    a, b = layers
    turns = itertools.count()

    def step(piece):
        return (a if next(turns) % 2 else b)(piece)

    text = (
        "network: expected the same calls for every batch, got layers[0] forward with 4 channels "
        "of float64 where others had layers[1] forward with 4 channels of float64"
    )
    with bnext.micro_batches(layers) as union, raises_exactly(ValueError, text, {}):
        list(union.run(step, np.split(x, [3])))


def test_layers_are_checked():
    group = bnext.sync.ThreadGroup(2)
    a, b = bnext.BatchNorm1d(3), bnext.BatchNorm1d(3, group=group)
    with pytest.raises(ValueError, match=r"layers\[1\]: expected the group of layers\[0\], None"):
        bnext.micro_batches([a, b])
    with pytest.raises(ValueError, match="layers: expected at least one, got none"):
        bnext.micro_batches([])
