"""Batch normalization for Flax NNX: its layer, over bnext's kernels."""

from __future__ import annotations

from typing import Any

try:
    from flax import nnx
except ModuleNotFoundError as error:
    if error.name != "flax":
        raise
    raise ModuleNotFoundError(
        "bnext.jax.flax: expected Flax to be installed (pip install flax), found none", name="flax"
    ) from None

import jax.numpy as jnp

from bnext import _core
from bnext.jax.formulas import param_dtype
from bnext.jax.functional import batch_norm, move_running, normalize

__all__ = ["BatchNorm", "convert", "revert"]


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, with an activation and a residual if wanted.

    The same arguments, parameters (`scale`, `bias`), statistics (`mean`, `var`, of
    `flax.nnx.BatchStat`) and modes, and an instance of Flax's layer: states, filters, checkpoints
    and optimizers see no difference. Statistics are exact sums, whatever `use_fast_variance` says.

    Parameters
    ----------
    num_features : int
        The number of channels.
    activation : str, optional
        Applied last; see `bnext.jax.batch_norm`.
    negative_slope : float
        Slope of "leaky_relu" below 0.
    **options
        The arguments of `flax.nnx.BatchNorm`: `use_running_average`, `axis` (one), `momentum` (the
        weight of the old average), `epsilon`, `dtype`, `param_dtype`, `use_bias`, `use_scale`,
        `axis_name`, `rngs`, and others.

    Raises
    ------
    ValueError
        There is more than one `axis`, or `axis_index_groups` are given; `activation` is not one of
        the names.
    """

    def __init__(
        self, num_features: int, *, activation: str | None = None, negative_slope: float = 0.01,
        **options: Any,
    ) -> None:  # fmt: skip
        _core.check_activation(activation)
        super().__init__(num_features, **options)
        _check(self)
        self.activation = activation
        self.negative_slope: float = _core.check_negative_slope(negative_slope)

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None,
        residual: Any = None,
    ) -> Any:  # fmt: skip
        """Normalize x, by the batch's statistics, which move the running ones, or by these.

        Parameters
        ----------
        x : array, shape (N, ..., C) with C at `axis`
            The result has the layer's `dtype`; without one, the dtype that Flax promotes it to with
            statistics and parameters: for 16-bit data float32.
        use_running_average : bool, optional
            Takes precedence over the layer's own.
        mask : None
            Flax's layer takes one, this does not.
        residual : array, shape of `x`, optional
            Added before the activation.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        if mask is not None:
            raise ValueError("mask: expected None, got an array (flax.nnx.BatchNorm takes a mask)")
        given = self.use_running_average if use_running_average is None else use_running_average
        if given is None:
            raise ValueError(
                "use_running_average: expected True or False, here or in the layer, got None"
            )
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        dtype = self.dtype
        if dtype is None:
            beside = (each for each in (scale, bias) if each is not None)
            dtype = jnp.result_type(x, self.mean[...], *beside)
        x = jnp.asarray(x, dtype)
        parameters = param_dtype(x)
        scale, bias = (each if each is None else each.astype(parameters) for each in (scale, bias))
        options: dict[str, Any] = {
            "eps": self.epsilon, "channel_axis": self.axis, "activation": self.activation,
            "negative_slope": self.negative_slope,
            "residual": residual if residual is None else jnp.asarray(residual, dtype),
        }  # fmt: skip
        if given:
            mean, var = (each[...].astype(parameters) for each in (self.mean, self.var))
            return normalize(x, mean, var, scale, bias, **options)
        y, moments = batch_norm(x, scale, bias, axis_name=self.axis_name, **options)
        moved = move_running(
            self.mean[...], self.var[...], moments, 1 - self.momentum, bessel=False
        )
        self.mean[...], self.var[...] = moved
        return y


def _check(layer: nnx.BatchNorm) -> None:
    if not isinstance(layer.axis, int):
        raise ValueError(f"axis: expected one axis, got {layer.axis!r}")
    if layer.axis_index_groups is not None:
        raise ValueError("axis_index_groups: expected None, got groups")


def convert(model: Any) -> Any:
    """Make the layers of a model that are Flax's batch normalization bnext's, in place.

    Parameters
    ----------
    model : flax.nnx.Module
        Every `flax.nnx.BatchNorm` in it becomes a `BatchNorm`; its variables stay the same objects.

    Returns
    -------
    flax.nnx.Module
        The model.

    Raises
    ------
    ValueError
        A layer has more than one axis, or groups of an axis. Nothing has changed then.
    """
    layers = [each for _, each in nnx.iter_modules(model) if type(each) is nnx.BatchNorm]
    for layer in layers:
        _check(layer)
    for layer in layers:
        layer.activation, layer.negative_slope = None, 0.01
        layer.__class__ = BatchNorm
    return model


def revert(model: Any) -> Any:
    """Make the layers of a model Flax's own again, in place.

    Parameters
    ----------
    model : flax.nnx.Module
        Every `BatchNorm` in it becomes a `flax.nnx.BatchNorm`.

    Returns
    -------
    flax.nnx.Module
        The model.

    Raises
    ------
    ValueError
        A layer has an activation, which Flax's layer lacks. Nothing has changed then.
    """
    layers = [each for _, each in nnx.iter_modules(model) if type(each) is BatchNorm]
    for layer in layers:
        if layer.activation is not None:
            raise ValueError(f"model: expected layers without activation, got {layer.activation!r}")
    for layer in layers:
        del layer.activation, layer.negative_slope
        layer.__class__ = nnx.BatchNorm
    return model
