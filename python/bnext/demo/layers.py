"""The layers around normalization, in plain NumPy: forward and backward of each.

A layer keeps the values of its latest forward pass that its backward pass needs, and the gradients
of its latest backward pass beside its parameters, as ``weight_grad`` and ``bias_grad``. Linear and
convolutional layers have no bias: normalized networks have the bias of the normalization, plain
networks a `Bias` layer in place of the normalization.
"""

from __future__ import annotations

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

    multiplications = 0  # so far, in matrix products of forward passes

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Output of the layer for the batch `x`."""

    @abstractmethod
    def backward(self, dy: Array) -> Array:
        """Gradient with respect to the latest `x`, given the gradient with respect to `y`."""

    def parameters(self) -> Iterator[tuple[Array, Array]]:
        """Each parameter with its gradient of the latest backward pass."""
        return _parameters(self)


def _parameters(owner: object) -> Iterator[tuple[Array, Array]]:
    for name in ("weight", "bias"):
        value, gradient = (getattr(owner, key, None) for key in (name, f"{name}_grad"))
        if value is not None and gradient is not None:
            yield value, gradient


class Linear(Layer):
    """``y = x @ weight.T``: shape (N, in) or (N, ...) to (N, out), `weight` of shape (out, in)."""

    def __init__(self, weight: Array) -> None:
        self.weight = weight

    def forward(self, x: Array) -> Array:
        """``x @ weight.T``, with each example laid out in a row."""
        self._shape = x.shape
        self._x = x.reshape(len(x), self.weight.shape[1])
        self.multiplications += len(x) * self.weight.size
        y: Array = self._x @ self.weight.T
        return y

    def backward(self, dy: Array) -> Array:
        """``dx = dy @ weight``, ``weight_grad = dy.T @ x``."""
        self.weight_grad = dy.T @ self._x
        dx: Array = dy @ self.weight
        return dx.reshape(self._shape)


class Conv2d(Layer):
    """Convolution with zero padding that keeps the size, divided by `stride`, via im2col.

    Shape (N, in, H, W) to (N, out, ceil(H/stride), ceil(W/stride)), with `weight` of shape
    (out, in, K, K), K odd. Every output pixel's patch becomes one column, so that the convolution
    is one matrix product per example.
    """

    def __init__(self, weight: Array, stride: int = 1) -> None:
        self.weight = weight
        self.stride = stride

    def forward(self, x: Array) -> Array:
        """Multiply the weight, one row per output channel, with the columns."""
        padded, inside = self._zeros_around(x.shape, x.dtype)
        inside[...] = x
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, self.weight.shape[2:], axis=(2, 3)
        )
        windows = windows[:, :, :: self.stride, :: self.stride].transpose(0, 1, 4, 5, 2, 3)
        self._x_shape, self._windows_shape = x.shape, windows.shape
        height, width = windows.shape[-2:]
        matrix = self._matrix()
        # (N, in·K·K, H'·W'): this reshape is the copy that im2col is.
        self._columns = windows.reshape(len(x), matrix.shape[1], height * width)
        self.multiplications += len(x) * height * width * self.weight.size
        y: Array = matrix @ self._columns
        return y.reshape(len(x), len(matrix), height, width)

    def backward(self, dy: Array) -> Array:
        """``weight_grad`` from the columns, ``dx`` by adding the columns' gradients up."""
        height, width = dy.shape[2:]
        dy_rows = dy.reshape(*dy.shape[:2], height * width)
        per_example = dy_rows @ self._columns.transpose(0, 2, 1)
        self.weight_grad = per_example.sum(axis=0).reshape(self.weight.shape)
        taps = (self._matrix().T @ dy_rows).reshape(self._windows_shape)
        padded, dx = self._zeros_around(self._x_shape, taps.dtype)
        # Entries of columns go back onto the pixels they were copied from (col2im).
        for i, j in np.ndindex(self.weight.shape[2:]):
            below, right = i + self.stride * height, j + self.stride * width
            padded[:, :, i : below : self.stride, j : right : self.stride] += taps[:, :, i, j]
        return dx

    def _matrix(self) -> Array:
        return self.weight.reshape(len(self.weight), -1)

    def _zeros_around(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Make zeros for images of `shape` with their padding; and a view without the padding."""
        # np.pad takes several times as long for a few images.
        pad = self.weight.shape[-1] // 2
        *outer, rows, columns = shape
        padded = np.zeros((*outer, rows + 2 * pad, columns + 2 * pad), dtype)
        return padded, padded[:, :, pad : pad + rows, pad : pad + columns]


class Relu(Layer):
    """``y = max(x, 0)``; `x` is the latest input."""

    x: Array

    def forward(self, x: Array) -> Array:
        """``max(x, 0)``."""
        self.x = x
        return np.maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        """`dy` where `x` was positive, else 0."""
        return dy * (self.x > 0)


class Bias(Layer):
    """``y = x + bias``, one value per channel (axis 1), for the plain networks."""

    def __init__(self, bias: Array) -> None:
        self.bias = bias

    def forward(self, x: Array) -> Array:
        """``x + bias``."""
        return x + self.bias.reshape(-1, *(1,) * (x.ndim - 2))

    def backward(self, dy: Array) -> Array:
        """``dx = dy``; ``bias_grad`` is its sum over all but the channels."""
        self.bias_grad = dy.sum(axis=(0, *range(2, dy.ndim)))
        return dy


class Normalization(Layer):
    """A bnext layer in a network, with a clock around its calls; `x` is the latest input."""

    x: Array

    def __init__(self, bn: bnext.BatchNorm1d | bnext.BatchNorm2d) -> None:
        self.bn = bn
        self.seconds: float = 0.0

    def forward(self, x: Array) -> Array:
        """Normalize by the batch's statistics in training, by the running ones in inference."""
        self.x = x
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
        """Each parameter of the bnext layer with its gradient."""
        return _parameters(self.bn)
