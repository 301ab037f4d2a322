"""Errors of update_statistics: each names its cause, and changes nothing."""

import contextlib
import itertools

import numpy as np
import pytest

import bnext

from .snapshots import layer_state, raises_exactly
from .statistics_networks import dense, in_batches


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
