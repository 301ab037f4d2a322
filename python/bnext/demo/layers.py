"""The layers around normalization, in plain NumPy: forward and backward of each.

A layer keeps the values of its latest forward pass that its backward pass needs. Linear and
convolutional layers have no bias: normalized networks have the bias of the normalization, plain
networks a `Bias` layer in place of the normalization.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import bnext

Array: TypeAlias = npt.NDArray[np.floating[Any]]


class Layer(ABC):
    """One step of a network: ``y = forward(x)``, then ``dx = backward(dy)``."""

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Output of the layer for the batch `x`."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """Gradient with respect to the latest `x`, given the gradient with respect to `y`."""

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Each parameter with its gradient of the latest backward pass."""
        yield from ()


class Linear(Layer):
    """``y = x @ weight.T``: shape (N, in) to (N, out), with `weight` of shape (out, in)."""

    def __init__(self, weight: Array) -> None:
        self.weight = weight
        self.weight_grad = np.zeros_like(weight)
        self._x: Array = np.empty(0, weight.dtype)

    def forward(self, x: Array) -> Array:
        """``x @ weight.T``."""
        self._x = x
        y: Array = x @ self.weight.T
        return y

    def backward(self, dy: Array) -> Array:
        """``dx = dy @ weight``, ``weight_grad = dy.T @ x``."""
        self.weight_grad = dy.T @ self._x
        return dy @ self.weight

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Yield the weight."""
        yield self.weight, self.weight_grad


class Conv2d(Layer):
    """Convolution with zero padding that keeps the size, divided by `stride`, via im2col.

    Shape (N, in, H, W) to (N, out, ceil(H/stride), ceil(W/stride)), with `weight` of shape
    (out, in, K, K), K odd. Every output pixel's patch becomes one column, so that the convolution
    is one matrix product per example.
    """

    def __init__(self, weight: Array, stride: int = 1) -> None:
        self.weight = weight
        self.weight_grad = np.zeros_like(weight)
        self.stride = stride
        self._columns: Array = np.empty(0, weight.dtype)
        self._shape: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """Multiply the weight, one row per output channel, with the columns."""
        kernel = self.weight.shape[-1]
        pad = kernel // 2
        examples, channels, rows, columns = x.shape
        # np.pad does the same, but takes several times as long for a few images.
        padded = np.zeros((examples, channels, rows + 2 * pad, columns + 2 * pad), x.dtype)
        padded[:, :, pad : pad + rows, pad : pad + columns] = x
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
        windows = windows[:, :, :: self.stride, :: self.stride].transpose(0, 1, 4, 5, 2, 3)
        height, width = windows.shape[-2:]
        # (N, in·K·K, H'·W'): this reshape is the copy that im2col is.
        self._columns = windows.reshape(examples, channels * kernel * kernel, height * width)
        self._shape = x.shape
        y = self._matrix() @ self._columns
        return y.reshape(examples, len(self.weight), height, width)

    def backward(self, dy: Array) -> Array:
        """``weight_grad`` from the columns, ``dx`` by adding the columns' gradients up."""
        examples, _, height, width = dy.shape
        dy_rows = dy.reshape(examples, len(self.weight), height * width)
        per_example = dy_rows @ self._columns.transpose(0, 2, 1)
        self.weight_grad = per_example.sum(axis=0).reshape(self.weight.shape)
        return self._overlap_add(self._matrix().T @ dy_rows, height, width)

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Yield the weight."""
        yield self.weight, self.weight_grad

    def _matrix(self) -> Array:
        return self.weight.reshape(len(self.weight), -1)

    def _overlap_add(self, columns: Array, height: int, width: int) -> Array:
        """Sum the columns' entries back onto the pixels they were copied from (col2im)."""
        examples, channels, rows, cols = self._shape
        kernel, stride = self.weight.shape[-1], self.stride
        pad = kernel // 2
        padded = np.zeros((examples, channels, rows + 2 * pad, cols + 2 * pad), columns.dtype)
        taps = columns.reshape(examples, channels, kernel, kernel, height, width)
        for i in range(kernel):
            for j in range(kernel):
                below, right = i + stride * height, j + stride * width
                padded[:, :, i:below:stride, j:right:stride] += taps[:, :, i, j]
        return padded[:, :, pad : pad + rows, pad : pad + cols]


class Flatten(Layer):
    """Shape (N, ...) to (N, features)."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """Lay each example out in a row."""
        self._shape = x.shape
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: Array) -> Array:
        """Restore the shape of `x`."""
        return dy.reshape(self._shape)


class Relu(Layer):
    """``y = max(x, 0)``."""

    def __init__(self) -> None:
        self._y: Array = np.empty(0, np.float32)

    def forward(self, x: Array) -> Array:
        """``max(x, 0)``."""
        self._y = np.maximum(x, 0)
        return self._y

    def backward(self, dy: Array) -> Array:
        """`dy` where `x` was positive, else 0."""
        return dy * (self._y > 0)


class Bias(Layer):
    """``y = x + bias``, one value per channel (axis 1), for the plain networks."""

    def __init__(self, bias: Array) -> None:
        self.bias = bias
        self.bias_grad = np.zeros_like(bias)

    def forward(self, x: Array) -> Array:
        """``x + bias``."""
        return x + self.bias.reshape(-1, *(1,) * (x.ndim - 2))

    def backward(self, dy: Array) -> Array:
        """``dx = dy``; ``bias_grad`` is its sum over all but the channels."""
        self.bias_grad = dy.sum(axis=(0, *range(2, dy.ndim)))
        return dy

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Yield the bias."""
        yield self.bias, self.bias_grad


class Normalization(Layer):
    """A bnext layer in a network, with a clock around its calls."""

    def __init__(self, bn: bnext.BatchNorm1d | bnext.BatchNorm2d) -> None:
        self.bn = bn
        self.seconds = 0.0

    def forward(self, x: Array) -> Array:
        """Normalize by the batch's statistics in training, by the running ones in inference."""
        start = perf_counter()
        y = self.bn(x)
        self.seconds += perf_counter() - start
        return y

    def backward(self, dy: Array) -> Array:
        """Take the gradient through the batch's mean and variance."""
        start = perf_counter()
        dx = self.bn.backward(dy)
        self.seconds += perf_counter() - start
        return dx

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Yield the weight and the bias of the bnext layer."""
        bn = self.bn
        for value, gradient in ((bn.weight, bn.weight_grad), (bn.bias, bn.bias_grad)):
            if value is not None and gradient is not None:
                yield value, gradient
