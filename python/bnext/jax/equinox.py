"""The normalization layers of Equinox, over bnext's kernels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

try:
    import equinox as eqx
except ModuleNotFoundError as error:
    if error.name != "equinox":
        raise
    raise ModuleNotFoundError(
        "bnext.jax.equinox: expected Equinox to be installed (pip install equinox), found none",
        name="equinox",
    ) from None

import jax
import jax.numpy as jnp

from bnext import _core
from bnext.jax.equinox_norms import GroupNorm, LayerNorm, RMSNorm
from bnext.jax.formulas import param_dtype
from bnext.jax.functional import batch_norm, move_running, normalize

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]


class BatchNorm(eqx.nn.StatefulLayer):
    """Batch normalization as Equinox has it: of one example, inside of `jax.vmap`.

    Parameters
    ----------
    input_size : int
        The number of channels.
    axis_name : hashable or sequence of them
        The axis of `jax.vmap` along which the batch lies. (Of `jax.shard_map` too.)
    eps : float
        Added to the variance.
    channelwise_affine : bool
        Whether there are a weight and a bias.
    momentum : float
        The weight of the old average, as in Equinox.
    inference : bool
        Whether running statistics are used; `equinox.nn.inference_mode` toggles it.
    dtype : dtype, optional
        Of parameters and statistics; JAX's default float.
    activation : str, optional
        Applied last; see `bnext.jax.batch_norm`.
    negative_slope : float
        Slope of "leaky_relu" below 0.

    Notes
    -----
    This is Equinox's layer with ``mode="batch"``: training normalizes by the batch, and running
    statistics, of the biased variance, are divided by ``1 - momentum**batches`` where they are
    used. Parameters and state have the names and the shapes that they have there: `weight`, `bias`,
    `batch_state_index` (mean and variance) and `batch_counter`.
    """

    weight: jax.Array | None
    bias: jax.Array | None
    batch_counter: eqx.nn.StateIndex
    batch_state_index: eqx.nn.StateIndex
    axis_name: Hashable | Sequence[Hashable]
    inference: bool
    input_size: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    channelwise_affine: bool = eqx.field(static=True)
    momentum: float = eqx.field(static=True)
    activation: str | None = eqx.field(static=True)
    negative_slope: float = eqx.field(static=True)

    def __init__(
        self, input_size: int, axis_name: Hashable | Sequence[Hashable], eps: float = 1e-5,
        channelwise_affine: bool = True, momentum: float = 0.99, inference: bool = False,
        dtype: Any = None, *, activation: str | None = None, negative_slope: float = 0.01,
    ) -> None:  # fmt: skip
        _core.check_activation(activation)
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        self.weight = jnp.ones(input_size, dtype) if channelwise_affine else None
        self.bias = jnp.zeros(input_size, dtype) if channelwise_affine else None
        self.batch_counter = eqx.nn.StateIndex(jnp.array(0))
        statistics = jnp.zeros(input_size, dtype), jnp.ones(input_size, dtype)
        self.batch_state_index = eqx.nn.StateIndex(statistics)
        self.axis_name = axis_name
        self.inference = inference
        self.input_size = input_size
        self.eps = _core.check_eps(eps)
        self.channelwise_affine = channelwise_affine
        self.momentum = momentum
        self.activation = activation
        self.negative_slope = _core.check_negative_slope(negative_slope)

    def __call__(
        self, x: Any, state: eqx.nn.State, *, key: Any = None, inference: bool | None = None,
        residual: Any = None,
    ) -> tuple[Any, eqx.nn.State]:  # fmt: skip
        """Normalize an example.

        Parameters
        ----------
        x : array, shape (C, ...)
            An example of the batch.
        state : equinox.nn.State
            Has the running statistics.
        key : None
            Ignored, as Equinox's layer does.
        inference : bool, optional
            Takes precedence over the layer's own.
        residual : array, shape of `x`, optional
            Added before the activation.

        Returns
        -------
        y : array, shape (C, ...)
            The normalized values.
        state : equinox.nn.State
            With running statistics that have moved, unless these were used.
        """
        del key
        parameters = param_dtype(x)
        weight, bias = (
            each if each is None else each.astype(parameters) for each in (self.weight, self.bias)
        )
        options: dict[str, Any] = {
            "eps": self.eps, "channel_axis": 0, "activation": self.activation,
            "negative_slope": self.negative_slope, "residual": residual,
        }  # fmt: skip
        mean, var = state.get(self.batch_state_index)
        count = state.get(self.batch_counter)
        if self.inference if inference is None else inference:
            weighed = jnp.where(count == 0, 1, 1 - self.momentum**count)
            mean, var = ((each / weighed).astype(parameters) for each in (mean, var))
            return normalize(x, mean, var, weight, bias, **options), state
        y, moments = batch_norm(x, weight, bias, axis_name=self.axis_name, **options)
        moved = move_running(mean, var, moments, 1 - self.momentum, bessel=False)
        state = state.set(self.batch_state_index, moved)
        return y, state.set(self.batch_counter, count + 1)
