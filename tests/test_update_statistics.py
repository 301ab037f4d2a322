"""Running statistics made anew from data: exact, pooled, averaged."""

import contextlib
import copy
import itertools

import numpy as np
import pytest

import bnext
from bnext.inference.replay import greenlets

from . import reference
from .compare import assert_same_bits
from .limits import NEVER
from .snapshots import layer_state, raises_exactly
from .statistics_networks import Network, conv, dense

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


def in_batches(x, size):
    return [x[start : start + size] for start in range(0, len(x), size)]


def of_one_big_batch(network, x):
    """Mean and unbiased variance of each layer's input: one call with all data, in training."""
    big = network.copy()
    for bn in big.layers:
        bn.train()
        bn.momentum = 1.0
    big(x)
    return [(bn.running_mean, bn.running_var) for bn in big.layers]


def assert_close(layers, expected, tolerance):
    """Means relative to the deviation, variances to themselves."""
    for bn, (mean, var) in zip(layers, expected, strict=True):
        assert np.max(np.abs(bn.running_mean - mean) / np.sqrt(var)) <= tolerance
        np.testing.assert_allclose(bn.running_var, var, rtol=tolerance)


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


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.fixture
def small(rng):
    network = dense(3, rng, np.float32)
    return network, in_batches(network.data(rng, 20), 6)


def state_of(network):
    return {
        f"{i}.{name}": value
        for i, bn in enumerate(network.layers)
        for name, value in layer_state(bn).items()
    }


@contextlib.contextmanager
def refused(network, kind, text):
    modes = [(bn.group, bn.use_running_stats, bn.update_running_stats, bn.parameter_gradients)
             for bn in network.layers]  # fmt: skip
    with raises_exactly(kind, text, lambda: state_of(network)):
        yield
    assert modes == [(bn.group, bn.use_running_stats, bn.update_running_stats,
                      bn.parameter_gradients) for bn in network.layers]  # fmt: skip


METHODS = ("exact", "pooled", "average")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, None])
def test_an_error_in_the_middle_changes_nothing(small, method, keep):
    network, batches = small
    calls = itertools.count()

    def fails(x):
        if next(calls) == 2:
            raise KeyError("mine")
        return network(x)

    with refused(network, KeyError, "'mine'"):
        bnext.update_statistics(fails, batches, network.layers, method=method, keep=keep)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("at", [1, 2])
def test_an_error_within_the_network_changes_nothing(small, method, keep, at):
    network, batches = small
    calls = itertools.count()

    def fails(h):
        if next(calls) == 3:
            raise KeyError("mine")

    network.hooks[at] = fails
    with refused(network, KeyError, "'mine'"):
        bnext.update_statistics(network, batches, network.layers, method=method, keep=keep)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("shared", [0, 2])
def test_a_shared_layer(small, method, keep, shared):
    network, batches = small
    layer = network.layers[shared]

    def shares(x):
        h = network(x)
        width = layer.num_features
        return layer(np.tile(h, (1, width))[:, :width])

    text = (
        f"layers[{shared}]: expected one call for each batch, got a second one: a layer that is "
        "shared has no statistics of one input"
    )
    with refused(network, ValueError, text):
        bnext.update_statistics(shares, batches, network.layers, method=method, keep=keep)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, None])
def test_a_layer_that_is_not_reached(small, method, keep):
    network, batches = small
    other = bnext.BatchNorm1d(4)
    text = "layers[1]: expected the network to call it, got no call of this BatchNorm1d(4)"
    with refused(network, ValueError, text):
        layers = [network.layers[0], other, *network.layers[1:]]
        bnext.update_statistics(network, batches, layers, method=method, keep=keep)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "batches: expected at least one, got none"),
        ([np.empty((0, 12), np.float32)], "batches: expected at least one with data, got none"),
    ],
)
def test_no_data(small, method, batches, text):
    network, _ = small
    if method != "exact" and not batches:
        text = "batches: expected at least one with data, got none"
    with refused(network, ValueError, text):
        bnext.update_statistics(network, batches, network.layers, method=method)


def test_an_iterator_ends_after_one_pass(small):
    network, batches = small
    text = (
        "batches: expected an iterable that can be gone through several times, got an iterator "
        "(list_iterator), which ends after one pass"
    )
    with refused(network, ValueError, text):
        bnext.update_statistics(network, iter(batches), network.layers)


class Shrinking:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        yield from self.batches
        self.batches = self.batches[:-1]


def test_data_that_change_between_passes(small):
    network, batches = small
    text = "batches: expected the same in every pass, got 4 batches in the first and 3 in pass 2"
    with refused(network, ValueError, text):
        bnext.update_statistics(network, Shrinking(batches), network.layers, keep=0)


def test_batches_that_take_different_ways(small):
    _, batches = small
    x = np.ones((4, 3), np.float32)
    one, other = bnext.BatchNorm1d(3), bnext.BatchNorm1d(3)
    turns = itertools.cycle([(one, other), (other, one)])

    def changing(_):
        for bn in next(turns):
            bn(x)

    text = (
        "network: expected the same calls for every batch, got layers[1] forward with 3 channels "
        "of float32 where others had layers[0] forward with 3 channels of float32"
    )
    with raises_exactly(ValueError, text, {}):
        bnext.update_statistics(changing, batches, [one, other])

    turns = itertools.cycle([(one,), ()])
    text = (
        "network: expected the same calls for every batch, got layers[0] forward with 3 channels "
        "of float32 for 2 of 4 batches"
    )
    with raises_exactly(ValueError, text, {}):
        bnext.update_statistics(changing, batches, [one])


def test_one_value_a_channel(small):
    network, _ = small
    x = network.data(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bnext.update_statistics(network, [x], network.layers)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bnext.update_statistics(network, [x, x], network.layers, method="pooled")
    bnext.update_statistics(network, [x, 2 * x], network.layers)


def test_a_network_that_swallows_the_end_of_a_pass(small):
    network, batches = small

    def swallows(x):
        with contextlib.suppress(BaseException):
            network(x)

    with pytest.raises(RuntimeError, match="expected it to let an exception pass"):
        bnext.update_statistics(swallows, batches, network.layers, keep=0)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"layers": []}, ValueError, "layers: expected at least one, got none"),
        ({"layers": [None]}, TypeError, "layers[0]: expected a layer of bnext, got NoneType"),
        (
            {"method": "best"}, ValueError,
            "method: expected one of exact, pooled, average, got 'best'",
        ),
        ({"network": 3}, TypeError, "network: expected a callable, got int"),
        ({"batches": 3}, TypeError, "batches: expected an iterable, got int"),
        ({"keep": -1}, ValueError, "keep: expected a number of bytes >= 0, got -1"),
        ({"keep": True}, ValueError, "keep: expected a number of bytes >= 0, got True"),
        (
            {"layers": [bnext.BatchNorm1d(2, track_running_stats=False)]}, ValueError,
            "layers[0]: expected a layer with running statistics, got one with "
            "track_running_stats=False",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(small, arguments, kind, text):
    network, batches = small
    given = {"network": network, "batches": batches, "layers": network.layers} | arguments
    with refused(network, kind, text):
        bnext.update_statistics(**given)


def test_a_layer_given_twice(small):
    network, batches = small
    a, b, _ = network.layers
    with refused(network, ValueError, "layers[2]: expected each layer once, got one a second time"):
        bnext.update_statistics(network, batches, [a, b, a])


# --- groups, and other things in the network ------------------------------------------------------


@pytest.mark.parametrize("keep", [0, None])
@pytest.mark.parametrize("method", METHODS)
def test_members_of_a_group_bring_parts_of_the_data(rng, method, keep):
    whole = dense(3, rng, np.float64)
    x = whole.data(rng, 66)
    group = bnext.sync.ThreadGroup(3, timeout=NEVER)
    # The union of the members' first batches is the batch of the whole, and so on.
    shards = [
        np.concatenate(parts)
        for parts in zip(*[np.split(b, 3) for b in np.split(x, 2)], strict=True)
    ]
    replicas = [whole.copy(group) for _ in range(3)]
    bnext.update_statistics(whole, np.split(x, 2), whole.layers, method=method)

    def member(rank, shard):
        network = replicas[rank]
        batches = np.split(shard, 2 if method != "exact" else [1, 5 + rank])
        return bnext.update_statistics(network, batches, network.layers, method=method, keep=keep)

    group.run(member, shards)
    for network in replicas:
        assert_close(network.layers, [(b.running_mean, b.running_var) for b in whole.layers], 1e-11)
        for bn, first in zip(network.layers, replicas[0].layers, strict=True):
            assert_same_bits(bn.running_mean, first.running_mean)
            assert_same_bits(bn.running_var, first.running_var)
            assert bn.group is group


@pytest.mark.parametrize("method", METHODS)
def test_members_may_share_the_layers(rng, method):
    whole = dense(3, rng, np.float64)
    x = whole.data(rng, 60)
    group = bnext.sync.ThreadGroup(2, timeout=NEVER)
    shared = whole.copy(group)
    bnext.update_statistics(whole, np.split(x, 2), whole.layers, method=method)
    halves = [np.split(batch, 2) for batch in np.split(x, 2)]
    shards = [np.concatenate(parts) for parts in zip(*halves, strict=True)]

    def member(rank, shard):
        network = copy.copy(shared)
        return bnext.update_statistics(network, np.split(shard, 2), shared.layers, method=method)

    group.run(member, shards)
    assert_close(shared.layers, [(b.running_mean, b.running_var) for b in whole.layers], 1e-11)


def test_an_error_of_one_member_reaches_the_others(rng):
    group = bnext.sync.ThreadGroup(2, timeout=NEVER)
    replicas = [dense(2, rng, np.float64).copy(group) for _ in range(2)]
    batches = in_batches(replicas[0].data(rng, 20), 5)

    def member(rank, _):
        network = replicas[rank]
        if rank == 1:
            network.hooks[1] = lambda h: 1 / 0
        bnext.update_statistics(network, batches, network.layers)

    with pytest.raises(ZeroDivisionError):
        group.run(member, range(2))
    assert "rank 1 raised ZeroDivisionError" in group.broken


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


def test_progress_is_shown_on_request(small, capsys):
    network, batches = small
    bnext.update_statistics(network, batches, network.layers)
    assert capsys.readouterr() == ("", "")
    expected = network.copy()
    bnext.update_statistics(expected, batches, expected.layers, progress=True)
    for bn, other in zip(network.layers, expected.layers, strict=True):
        assert_same_bits(bn.running_var, other.running_var)


def test_networks_are_described():
    assert isinstance(dense(2, np.random.default_rng(0), np.float32), Network)
