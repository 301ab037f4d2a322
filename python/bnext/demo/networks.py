"""The two networks of the demo, each with and without batch normalization.

Fully connected: f^1 = W^1 x, then f^l = W^l sigma(BN(f^(l-1))), without biases, since the bias of
the normalization takes their place. Convolutional: the same with a convolution for each W but the
last, normalized per channel over the effective batch of m·height·width values. sigma is ReLU.

Without normalization, sigma(BN(f)) becomes sigma(f + bias): the plain network lacks only the
normalization.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

import bnext
from bnext.demo.layers import Array, Bias, Conv2d, Flatten, Layer, Linear, Normalization, Relu

Kind = Literal["dense", "conv"]

PIXELS = 8  # images of 8 x 8, one channel
CLASSES = 10
DENSE_WIDTHS = (128, 128, 128, 128)
CONV_CHANNELS = (16, 32, 64)
CONV_STRIDES = (1, 2, 2)

DESCRIPTIONS: dict[Kind, str] = {
    "dense": "fully connected, 64-128-128-128-128-10",
    "conv": "convolutional, 3x3: 16 at 8x8, 32 at 4x4, 64 at 2x2, then linear to 10",
}


class Network:
    """A chain of layers.

    Parameters
    ----------
    layers : list of Layer
        From images of shape (N, 1, 8, 8) to logits of shape (N, 10).
    watched : Layer
        The layer whose output is recorded: the input of the last sigma.
    """

    def __init__(self, layers: list[Layer], watched: Layer) -> None:
        self.layers = layers
        self.watched = watched
        self.watched_output: Array = np.empty(0, np.float32)

    def forward(self, x: Array) -> Array:
        """Logits of the images `x`; keeps the output of the watched layer."""
        for layer in self.layers:
            x = layer.forward(x)
            if layer is self.watched:
                self.watched_output = x
        return x

    def backward(self, dy: Array) -> None:
        """Fill in the gradients of all parameters."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def descend(self, rate: float) -> None:
        """One step of gradient descent on all parameters."""
        for layer in self.layers:
            for value, gradient in layer.parameters():
                np.subtract(value, rate * gradient, out=value)

    def train(self, mode: bool = True) -> None:
        """Normalize by the statistics of the batch, or else by the running ones."""
        for layer in self.normalizations():
            layer.bn.train(mode)

    def normalization_seconds(self) -> float:
        """Time spent in normalization so far."""
        return sum(layer.seconds for layer in self.normalizations())

    def normalizations(self) -> Iterator[Normalization]:
        """Go through the normalizing layers, from the input to the output."""
        return (layer for layer in self.layers if isinstance(layer, Normalization))


def build(kind: Kind, *, normalized: bool, seed: int) -> Network:
    """Make a network; its weights depend on `seed` alone, normalized or not."""
    make = dense_network if kind == "dense" else conv_network
    return make(normalized=normalized, seed=seed)


def dense_network(*, normalized: bool, seed: int) -> Network:
    """Make the fully connected network."""
    generator = np.random.default_rng(seed)
    layers: list[Layer] = [Flatten()]
    features = PIXELS * PIXELS
    for width in DENSE_WIDTHS:
        layers.append(Linear(_hidden_weight(generator, width, features)))
        layers.append(Normalization(bnext.BatchNorm1d(width)) if normalized else _bias(width))
        layers.append(Relu())
        features = width
    layers.append(Linear(_output_weight(generator, features)))
    return Network(layers, watched=layers[-3])


def conv_network(*, normalized: bool, seed: int) -> Network:
    """Make the convolutional network."""
    generator = np.random.default_rng(seed)
    layers: list[Layer] = []
    channels, pixels = 1, PIXELS
    for width, stride in zip(CONV_CHANNELS, CONV_STRIDES, strict=True):
        layers.append(Conv2d(_hidden_weight(generator, width, channels, 3, 3), stride))
        layers.append(Normalization(bnext.BatchNorm2d(width)) if normalized else _bias(width))
        layers.append(Relu())
        channels, pixels = width, pixels // stride
    layers.append(Flatten())
    layers.append(Linear(_output_weight(generator, channels * pixels * pixels)))
    return Network(layers, watched=layers[-4])


def _hidden_weight(generator: np.random.Generator, *shape: int) -> Array:
    """Draw with variance 2/fan-in, which keeps the size of a signal through ReLU layers.

    It is the best start for the plain networks (He et al. 2015); for the normalized networks the
    size does not matter.
    """
    fan_in = int(np.prod(shape[1:]))
    weight: Array = generator.standard_normal(shape) * np.sqrt(2 / fan_in)
    return weight.astype(np.float32)


def _output_weight(generator: np.random.Generator, features: int) -> Array:
    """Draw with variance 1/fan-in: no ReLU follows."""
    weight: Array = generator.standard_normal((CLASSES, features)) / np.sqrt(features)
    return weight.astype(np.float32)


def _bias(width: int) -> Bias:
    return Bias(np.zeros(width, np.float32))
