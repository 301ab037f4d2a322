"""The two networks of the demo, each with and without batch normalization.

Fully connected: f^1 = W^1 x, then f^l = W^l sigma(BN(f^(l-1))), without biases, since the bias of
the normalization takes their place. Convolutional: the same with a convolution for each W but the
last, normalized per channel over the effective batch of m·height·width values. sigma is ReLU.

Without normalization, sigma(BN(f)) becomes sigma(f + bias): the plain network lacks only the
normalization.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np

import bnext
from bnext.demo.layers import Array, Bias, Conv2d, Layer, Linear, Normalization, Relu
from bnext.demo.loss import Labels, softmax_cross_entropy

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
    """A chain of layers, from images of shape (N, 1, 8, 8) to logits of shape (N, 10)."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    def forward(self, x: Array) -> Array:
        """Logits of the images `x`."""
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def step(self, images: Array, labels: Labels, rate: float) -> float:
        """Take one step of gradient descent on all parameters; give the loss before it."""
        loss, dlogits = softmax_cross_entropy(self.forward(images), labels)
        self.backward(dlogits)
        self.descend(rate)
        return loss

    def backward(self, dy: Array) -> None:
        """Fill in the gradients of all parameters."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)

    def descend(self, rate: float) -> None:
        """Move all parameters against their gradients."""
        for layer in self.layers:
            for value, gradient in layer.parameters():
                np.subtract(value, rate * gradient, out=value)

    def train(self, mode: bool = True) -> None:
        """Normalize by the statistics of the batch, or else by the running ones."""
        for layer in self.normalizations():
            layer.bn.train(mode)

    def normalizations(self) -> list[Normalization]:
        """List the normalizing layers, from the input to the output."""
        return [layer for layer in self.layers if isinstance(layer, Normalization)]

    def last_relu(self) -> Relu:
        """Give the layer whose input is recorded."""
        return [layer for layer in self.layers if isinstance(layer, Relu)][-1]


def build(kind: Kind, *, normalized: bool, seed: int) -> Network:
    """Make a network; its weights depend on `seed` alone, normalized or not."""
    generator = np.random.default_rng(seed)
    batch_norm: type[bnext.BatchNorm1d | bnext.BatchNorm2d]
    products: list[Linear] | list[Conv2d]
    if kind == "dense":
        batch_norm = bnext.BatchNorm1d
        widths = pairwise((PIXELS * PIXELS, *DENSE_WIDTHS))
        products = [Linear(_hidden_weight(generator, n, m)) for m, n in widths]
        features = DENSE_WIDTHS[-1]
    else:
        batch_norm = bnext.BatchNorm2d
        sizes = zip(pairwise((1, *CONV_CHANNELS)), CONV_STRIDES, strict=True)
        products = [Conv2d(_hidden_weight(generator, n, m, 3, 3), s) for (m, n), s in sizes]
        features = CONV_CHANNELS[-1] * (PIXELS // math.prod(CONV_STRIDES)) ** 2
    layers: list[Layer] = []
    for product in products:
        width = len(product.weight)
        bias = Bias(np.zeros(width, np.float32))
        layers += [product, Normalization(batch_norm(width)) if normalized else bias, Relu()]
    return Network([*layers, Linear(_output_weight(generator, features))])


def _hidden_weight(generator: np.random.Generator, *shape: int) -> Array:
    """Draw with variance 2/fan-in, which keeps the size of a signal through ReLU layers.

    It is the best start for the plain networks (He et al. 2015); for the normalized networks the
    size does not matter.
    """
    weight: Array = generator.standard_normal(shape) * np.sqrt(2 / math.prod(shape[1:]))
    return weight.astype(np.float32)


def _output_weight(generator: np.random.Generator, features: int) -> Array:
    """Draw with variance 1/fan-in: no ReLU follows."""
    weight: Array = generator.standard_normal((CLASSES, features)) / np.sqrt(features)
    return weight.astype(np.float32)
