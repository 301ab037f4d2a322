"""Running statistics made anew from data: exact, pooled, averaged."""

import itertools

import numpy as np
import pytest

import bnext
from bnext.inference.replay import greenlets

from . import reference
from .compare import assert_same_bits
from .statistics_networks import Network, assert_close, conv, dense, in_batches

EXAMPLES = 150  # no multiple of any batch size but 1
SIZES = (1, 7, 64, EXAMPLES)
NETWORKS = {
    f"{make.__name__}-{depth}": (make, depth) for make in (dense, conv) for depth in (1, 2, 6)
}
KEEP = {"again": 0, "kept": None, "kept-in-part": 9_000}


@pytest.fixture(params=NETWORKS)
def network(request, rng, dtype):
    make, depth = NETWORKS[request.param]
    return make(depth, rng, dtype)


def of_one_big_batch(network, x):
    """Mean and unbiased variance of each layer's input: one call with all data, in training."""
    big = network.copy()
    for bn in big.layers:
        bn.train()
        bn.momentum = 1.0
    big(x)
    return [(bn.running_mean, bn.running_var) for bn in big.layers]


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)
@pytest.mark.parametrize("size", SIZES)
def test_exact_is_what_one_big_batch_gives(network, dtype, rng, size, keep):
    x = network.data(rng, EXAMPLES)
    expected = of_one_big_batch(network, x)
    batches = in_batches(x, size)
    shuffled = [network.layers[i] for i in rng.permutation(len(network.layers))]
    update = bnext.update_statistics(network, batches, shuffled, keep=keep)
    assert_close(network.layers, expected, 1e-6 if dtype == np.float32 else 1e-12)
    assert update.batches == len(batches)
    if keep == 0:
        assert update.passes == len(network.layers)
    elif keep is None:
        assert update.passes == 1
    for bn in network.layers:
        assert bn.num_batches_tracked == len(batches)
        assert not bn._latest


def test_exact_is_the_reference_s(rng):
    """Layer after layer in NumPy, from the definition."""
    network = dense(3, rng, np.float64)
    x = network.data(rng, EXAMPLES)
    bnext.update_statistics(network, in_batches(x, 11), network.layers)
    h = x
    for weight, bn in zip(network.weights[:-1], network.layers, strict=True):
        h = h @ weight
        m = reference.moments(h)
        np.testing.assert_allclose(bn.running_mean, m.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(bn.running_var, m.m2 / (m.count - 1), rtol=1e-12)
        h = np.maximum(reference.forward(h, bn.weight, bn.bias), 0)


def test_unequal_and_empty_batches(network, dtype, rng):
    x = network.data(rng, EXAMPLES)
    expected = of_one_big_batch(network, x)
    batches = np.split(x, [1, 1, 4, 90, 90, 149])
    bnext.update_statistics(network, batches, network.layers)
    assert_close(network.layers, expected, 1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("keep", [0, None])
def test_passes_end_at_the_layer_that_they_are_for(rng, keep):
    """At most half of as many full passes as there are layers; linear in the data."""
    costs = []
    for examples in (100, 200):
        network = dense(6, rng, np.float32)
        batches = in_batches(network.data(rng, examples), 10)
        network.products = 0
        network(batches[0])
        full_pass = network.products * len(batches)
        network.products = 0
        bnext.update_statistics(network, batches, network.layers, keep=keep)
        one_batch_to_its_end = 7
        cost = network.products - (0 if keep is None else one_batch_to_its_end)
        assert cost <= full_pass * (1 if keep is None else 6 / 2)
        costs.append(cost)
    # Of what is kept, one batch goes on to its end: one product with the last weight.
    assert costs[1] - 1 == 2 * (costs[0] - 1) if keep is None else costs[1] == 2 * costs[0]


@pytest.mark.skipif(greenlets() is None, reason="greenlet is not installed")
def test_what_does_not_fit_is_not_kept(rng):
    network = dense(5, rng, np.float32)
    batches = in_batches(network.data(rng, 40), 4)
    assert [bn.num_features for bn in network.layers] == [17, 23, 9, 31, 12]
    # A layer whose inputs do not all fit ends what was kept; the next one takes a pass of its own.
    for features, passes in ((31, 1), (30, 2), (22, 3), (16, 4), (0, 5)):
        again = network.copy()
        keep = 40 * features * np.dtype(np.float32).itemsize
        update = bnext.update_statistics(again, batches, again.layers, keep=keep)
        assert update.passes == passes, features


def statistics_by_batch(network, batches):
    """Mean, m2 and count of each layer's input for each batch, normalized by its own."""
    trained = network.copy()
    rows = []
    for x in batches:
        seen = trained.inputs(x)
        rows.append([reference.moments(h, channel_axis=1) for h in seen])
    return list(zip(*rows, strict=True))


@pytest.mark.parametrize("bessel", [True, False])
def test_pooled_and_average_are_their_formulas(network, dtype, rng, bessel):
    batches = np.split(network.data(rng, EXAMPLES), [30, 37, 100])
    for bn in network.layers:
        bn.estimator = bnext.Exponential(bessel=bessel)
    tolerance = 3e-6 if dtype == np.float32 else 1e-11
    rows = statistics_by_batch(network, batches)

    bnext.update_statistics(network, batches, network.layers, method="average")
    expected = []
    for moments in rows:
        # E[mean], and m/(m - 1) E[var] for each batch's m.
        corrected = [m.m2 / m.count * (m.count / (m.count - 1) if bessel else 1) for m in moments]
        expected.append((np.mean([m.mean for m in moments], axis=0), np.mean(corrected, axis=0)))
    assert_close(network.layers, expected, tolerance)

    update = bnext.update_statistics(network, iter(batches), network.layers, method="pooled")
    assert update == (4, 1)
    expected = []
    for moments in rows:
        n = sum(m.count for m in moments)
        mean = sum(m.count * m.mean for m in moments) / n
        m2 = sum(m.m2 + m.count * (m.mean - mean) ** 2 for m in moments)
        expected.append((mean, m2 / (n - bessel)))
    assert_close(network.layers, expected, tolerance)


def test_the_three_differ_and_agree_where_they_should(rng):
    """On one batch all are the same; the first layer is pooled exactly; later ones are not."""
    network = dense(3, rng, np.float64)
    x = network.data(rng, EXAMPLES)
    results = {}
    for method, size in itertools.product(("exact", "pooled", "average"), (EXAMPLES, 10)):
        bnext.update_statistics(network, in_batches(x, size), network.layers, method=method)
        results[method, size] = [bn.running_var.copy() for bn in network.layers]
    exact = results["exact", EXAMPLES]
    for method in ("pooled", "average"):
        for value, expected in zip(results[method, EXAMPLES], exact, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(results["pooled", 10][0], exact[0], rtol=1e-12)
    assert np.max(np.abs(results["pooled", 10][2] / exact[2] - 1)) > 1e-4
    assert np.max(np.abs(results["average", 10][0] / exact[0] - 1)) > 1e-4


def test_modes_switches_and_parameters_stay(rng):
    network = dense(3, rng, np.float32)
    a, b, c = network.layers
    a.eval()
    b.freeze()
    c.use_running_stats = False
    x = network.data(rng, 30)
    before = [(bn.training, bn.frozen, bn.use_running_stats, bn.update_running_stats, bn.group,
               bn.weight.copy(), bn.train_affine) for bn in network.layers]  # fmt: skip
    network(x)
    latest = [dict(bn._latest) for bn in network.layers]
    bnext.update_statistics(network, in_batches(x, 8), network.layers)
    after = [(bn.training, bn.frozen, bn.use_running_stats, bn.update_running_stats, bn.group,
              bn.weight, bn.train_affine) for bn in network.layers]  # fmt: skip
    for one, other in zip(before, after, strict=True):
        assert_same_bits(one[5], other[5])
        assert one[:5] == other[:5]
    assert [bn._latest for bn in network.layers] == latest
    # And what training does next goes on from there.
    c.train().use_running_stats = None
    counted = int(c.num_batches_tracked)
    network(x)
    assert c.num_batches_tracked == counted + 1


def test_other_layers_do_as_their_modes_say(rng):
    network = dense(3, rng, np.float64)
    a, b, c = network.layers
    x = network.data(rng, 40)
    b.freeze()
    before = b.state_dict()
    fixed = network.copy()
    bnext.update_statistics(network, in_batches(x, 9), [a, c])
    for name, value in b.state_dict().items():
        assert_same_bits(value, before[name], name)
    big = [bn for i, bn in enumerate(fixed.layers) if i != 1]
    for bn in big:
        bn.momentum = 1.0
    fixed(x)
    assert_close([a, c], [(bn.running_mean, bn.running_var) for bn in big], 1e-12)


def test_progress_is_shown_on_request(rng, capsys):
    network = dense(3, rng, np.float32)
    batches = in_batches(network.data(rng, 20), 6)
    bnext.update_statistics(network, batches, network.layers)
    assert capsys.readouterr() == ("", "")
    expected = network.copy()
    bnext.update_statistics(expected, batches, expected.layers, progress=True)
    for bn, other in zip(network.layers, expected.layers, strict=True):
        assert_same_bits(bn.running_var, other.running_var)


def test_networks_are_described():
    assert isinstance(dense(2, np.random.default_rng(0), np.float32), Network)


@pytest.mark.parametrize("method", ["exact", "pooled", "average"])
def test_batches_that_are_not_finite_are_left_out(rng, method):
    """By layers that skip them; another layer takes them in."""
    clean = [rng.standard_normal((8, 3)).astype(np.float32) for _ in range(4)]
    bad = [clean[0], clean[1].copy(), clean[2], clean[3].copy()]
    bad[1][2, 1] = bad[3][0, 0] = np.nan
    layers, others = (
        [bnext.BatchNorm1d(3, skip_nonfinite=skip) for _ in range(2)] for skip in (True, False)
    )

    def network(of):
        return lambda x: of[1](np.tanh(of[0](x)))

    update = bnext.update_statistics(network(layers), bad, layers, method)
    assert update.batches == 4
    bnext.update_statistics(network(others), [clean[0], clean[2]], others, method)
    for layer, other in zip(layers, others, strict=True):
        np.testing.assert_array_equal(layer.running_mean, other.running_mean)
        np.testing.assert_array_equal(layer.running_var, other.running_var)
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (2, 2)
    bnext.update_statistics(network(others), bad, others, method)
    assert np.isnan(others[0].running_mean).any()
    with pytest.raises(ValueError, match=r"^batches: expected at least one with finite data"):
        bnext.update_statistics(network(layers), bad[1::2], layers, method)
    assert layers[0].num_batches_skipped == 2
