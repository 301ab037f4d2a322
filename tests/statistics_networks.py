"""Small networks of 1 to 6 normalized layers, whose inner values the tests can see."""

import copy
import itertools

import numpy as np

import bnext

WIDTHS = (17, 23, 9, 31, 12, 7)
CHANNELS = (3, 5, 4, 6, 3, 2)
PIXELS = 7


class Network:
    """BN after each product with a weight, then ReLU; and one weight more."""

    def __init__(self, weights, layers, product, data):
        self.weights, self.layers = weights, layers
        self.product, self.data = product, data
        self.products = 0
        self.hooks = {}  # by the number of the layer: called with its input

    def __call__(self, x):
        return self._run(x, lambda bn, h: bn(h))

    def _run(self, x, normalize):
        h = x
        for number, (weight, bn) in enumerate(zip(self.weights, self.layers, strict=False)):
            h = self._times(h, weight)
            self.hooks.get(number, lambda _: None)(h)
            h = np.maximum(normalize(bn, h), 0)
        return self._times(h, self.weights[-1])

    def _times(self, h, weight):
        self.products += 1
        return self.product(h, weight)

    def inputs(self, x):
        """Inputs of the layers, where each normalizes by the batch."""
        seen = []

        def normalize(bn, h):
            seen.append(h)
            return bnext.batch_norm_forward(h, bn.weight, bn.bias, eps=bn.eps)[0]

        self._run(x, normalize)
        return seen

    def copy(self, group=None):
        layers = copy.deepcopy(self.layers)
        for bn in layers:
            bn.group = group
        return Network(self.weights, layers, self.product, self.data)


def randomized(bn, rng):
    bn.weight[...] = rng.uniform(0.5, 2, bn.num_features)
    bn.bias[...] = rng.normal(size=bn.num_features)
    bn.running_mean[...] = rng.normal(size=bn.num_features)
    bn.running_var[...] = rng.uniform(0.5, 2, bn.num_features)
    return bn


def dense(depth, rng, dtype):
    """Fully connected, inputs of shape (N, 12)."""
    sizes = [12, *WIDTHS[:depth], 3]
    weights = [
        (rng.normal(size=shape) / np.sqrt(shape[0])).astype(dtype)
        for shape in itertools.pairwise(sizes)
    ]
    layers = [randomized(bnext.BatchNorm1d(n, dtype=dtype), rng) for n in sizes[1:-1]]

    def data(rng, examples):
        return (rng.normal(size=(examples, 12)) * 3 + rng.normal(size=12)).astype(dtype)

    return Network(weights, layers, lambda h, weight: h @ weight, data)


def conv(depth, rng, dtype):
    """Convolutions of 3x3 without padding at its cheapest: shifted sums; images of 7x7."""
    sizes = [2, *CHANNELS[:depth], 2]
    weights = [
        (rng.normal(size=(a, b)) / np.sqrt(a)).astype(dtype) for a, b in itertools.pairwise(sizes)
    ]
    layers = [randomized(bnext.BatchNorm2d(n, dtype=dtype), rng) for n in sizes[1:-1]]

    def product(h, weight):
        neighbours = h + np.roll(h, 1, axis=2) - np.roll(h, 1, axis=3)
        return np.einsum("nchw,cd->ndhw", neighbours, weight, optimize=True)

    def data(rng, examples):
        shape = (examples, 2, PIXELS, PIXELS)
        return (rng.normal(size=shape) * 3 + rng.normal(size=(2, 1, 1))).astype(dtype)

    return Network(weights, layers, product, data)


def in_batches(x, size):
    return [x[start : start + size] for start in range(0, len(x), size)]


def assert_close(layers, expected, tolerance):
    """Means relative to the deviation, variances to themselves."""
    for bn, (mean, var) in zip(layers, expected, strict=True):
        assert np.max(np.abs(bn.running_mean - mean) / np.sqrt(var)) <= tolerance
        np.testing.assert_allclose(bn.running_var, var, rtol=tolerance)
