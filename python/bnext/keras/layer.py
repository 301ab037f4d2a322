"""The layer of Keras, over the kernels of its backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from bnext import _core
from bnext.keras.backends import Call, kernels

__all__ = ["BatchNormalization"]

KERNELS = kernels()
ACTIVATIONS: dict[str, Callable[[Any, float], Any]] = {  # in Keras's operations
    "relu": lambda z, _: ops.relu(z),
    "relu6": lambda z, _: ops.relu6(z),
    "leaky_relu": lambda z, slope: ops.leaky_relu(z, slope),
    "silu": lambda z, _: ops.silu(z),
    "hardswish": lambda z, _: ops.hard_silu(z),
    "gelu": lambda z, _: ops.gelu(z, approximate=False),
    "gelu_tanh": lambda z, _: ops.gelu(z, approximate=True),
    "sigmoid": lambda z, _: ops.sigmoid(z),
    "tanh": lambda z, _: ops.tanh(z),
}


@keras.saving.register_keras_serializable(package="bnext")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, with an activation and a residual if wanted.

    The same arguments, weights and modes, and an instance of Keras's layer. Files of weights fit
    both. Layers with `renorm`, and batches of one value per channel are computed by Keras's own
    layer; on PyTorch, calls with a mask too.

    Parameters
    ----------
    axis : int
        Which axis of the inputs has the channels.
    momentum : float
        The weight of the old average.
    epsilon : float
        Added to the variance.
    activation : str, optional
        Applied last: "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh",
        "sigmoid" or "tanh".
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    **options
        The other arguments of `keras.layers.BatchNormalization`: `center`, `scale`, initializers,
        regularizers, constraints, `renorm`, `name`, `dtype` and others.

    Raises
    ------
    ValueError
        `activation` is not one of the names, `epsilon` is negative, `negative_slope` is not finite;
        `synchronized` is set, which Keras has for TensorFlow alone. On JAX the statistics of a
        distributed batch are the whole batch's anyway.
    """

    def __init__(
        self, axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, *args: Any,
        activation: str | None = None, negative_slope: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        _core.check_activation(activation)
        super().__init__(axis, momentum, epsilon, *args, **options)
        _core.check_eps(self.epsilon)
        self.activation = None if activation == "none" else activation
        self.negative_slope = _core.check_negative_slope(negative_slope)

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None, residual: Any = None
    ) -> Any:
        """Normalize inputs, by the batch's statistics, which move the running ones, or by these.

        Parameters
        ----------
        inputs : tensor, shape (N, ..., C) with C at `axis`
            The result has the layer's compute dtype.
        training : bool, optional
            Whether to normalize by the batch; a layer that is not trainable never does.
        mask : tensor, one axis less than `inputs`, optional
            Positions that the batch's statistics are of, as in Keras: every value is normalized.
        residual : tensor, shape of `inputs`, optional
            Added before the activation.

        Returns
        -------
        tensor, shape of `inputs`
            The normalized values.
        """
        by_batch = bool(training) and self.trainable
        axis = self.axis % len(inputs.shape)
        alone = math.prod(inputs.shape) <= inputs.shape[axis]
        refused = mask is not None and by_batch and not self._takes(mask, inputs)
        if refused or self.renorm or len(inputs.shape) < 2 or (by_batch and alone):
            return self._by_keras(inputs, training, mask, residual)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype not in ("float16", "bfloat16"):
            dtype = keras.backend.result_type(dtype, "float32")
        wide = "float64" if dtype == "float64" else "float32"
        x = ops.cast(inputs, dtype)
        weight = ops.cast(self.gamma, wide) if self.scale else None
        bias = ops.cast(self.beta, wide) if self.center else None
        residual = residual if residual is None else ops.cast(residual, dtype)
        of = Call(self.epsilon, axis, self.activation, self.negative_slope)
        if by_batch:
            y, mean, var = self._train(of, x, weight, bias, residual, mask)
            if mean is not None:
                self._move(self.moving_mean, mean)
                self._move(self.moving_variance, var)
        else:
            running = (ops.cast(each, wide) for each in (self.moving_mean, self.moving_variance))
            y = KERNELS.infer(of, x, *running, weight, bias, residual)
        return ops.cast(y, self.compute_dtype)

    def _takes(self, mask: Any, inputs: Any) -> bool:
        """Whether the kernels take a mask: Keras has its positions before the last axis."""
        last = self.axis % len(inputs.shape) == len(inputs.shape) - 1
        fits = tuple(mask.shape) == tuple(inputs.shape[:-1])
        return KERNELS.train_masked is not None and last and fits

    def _train(self, of: Call, *arrays: Any) -> tuple[Any, Any, Any]:
        *data, mask = arrays
        if mask is None:
            return KERNELS.train(of, *data)
        assert KERNELS.train_masked is not None
        return KERNELS.train_masked(of, *data, ops.cast(mask, "bool"))

    def _move(self, running: Any, found: Any) -> None:
        found = ops.cast(found, running.dtype)
        running.assign(running * self.momentum + found * (1.0 - self.momentum))

    def _by_keras(self, inputs: Any, training: bool | None, mask: Any, residual: Any) -> Any:
        y = super().call(inputs, training=training, mask=mask)
        if residual is not None:
            y = y + ops.cast(residual, y.dtype)
        if self.activation is None:
            return y
        return ops.cast(ACTIVATIONS[self.activation](y, self.negative_slope), y.dtype)

    def get_config(self) -> dict[str, Any]:
        """Give the arguments, as Keras stores them in files of models.

        Returns
        -------
        dict
            The arguments by their names.
        """
        config: dict[str, Any] = super().get_config()
        return {**config, "activation": self.activation, "negative_slope": self.negative_slope}
