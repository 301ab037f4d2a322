"""The normalization layers of Flax NNX, over bnext's kernels."""

from __future__ import annotations

from collections.abc import Collection
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
from bnext.arguments import chosen_names
from bnext.jax.flax_norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from bnext.jax.formulas import param_dtype
from bnext.jax.functional import batch_norm, move_running, normalize, normalize_by_counted
from bnext.jax.weighting import broadcast_mask

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "convert", "revert"]


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
        mask : array of bool, optional
            Which values the statistics are of, as in Flax: it broadcasts against x. Every value is
            normalized, and gradients go through all of them. Channels with masks of their own make
            the call Flax's own. Where no more than one value of a channel counts, running
            statistics stay.
        residual : array, shape of `x`, optional
            Added before the activation.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        given = self.use_running_average if use_running_average is None else use_running_average
        if given is None:
            raise ValueError(
                "use_running_average: expected True or False, here or in the layer, got None"
            )
        positions = None
        if mask is not None and not given:
            positions = broadcast_mask(mask, x, self.axis)
            if positions is None:
                return self._by_flax(x, mask, residual)
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
        if mask is None:
            y, batch = batch_norm(x, scale, bias, axis_name=self.axis_name, **options)
        else:
            y, batch = normalize_by_counted(
                x, scale, bias, positions, axis_name=self.axis_name, **options
            )
        moved = move_running(self.mean[...], self.var[...], batch, 1 - self.momentum, bessel=False)
        self.mean[...], self.var[...] = moved
        return y

    def _by_flax(self, x: Any, mask: Any, residual: Any) -> Any:
        if self.activation is not None or residual is not None:
            raise ValueError(
                f"mask: expected one that is the same for all channels beside an activation or a "
                f"residual, got one of shape {jnp.shape(mask)}"
            )
        return super().__call__(x, use_running_average=False, mask=mask)


LAYERS: dict[str, tuple[type, type]] = {
    "batch": (nnx.BatchNorm, BatchNorm),
    "layer": (nnx.LayerNorm, LayerNorm),
    "rms": (nnx.RMSNorm, RMSNorm),
    "group": (nnx.GroupNorm, GroupNorm),
    "instance": (nnx.InstanceNorm, InstanceNorm),
}


def _check(layer: nnx.BatchNorm) -> None:
    if not isinstance(layer.axis, int):
        raise ValueError(f"axis: expected one axis, got {layer.axis!r}")
    if layer.axis_index_groups is not None:
        raise ValueError("axis_index_groups: expected None, got groups")


def convert(model: Any, *, norms: str | Collection[str] = "batch") -> Any:
    """Make the layers of a model that are Flax's batch normalization bnext's, in place.

    So it does for other norms, if they are named.

    Parameters
    ----------
    model : flax.nnx.Module
        Every `flax.nnx.BatchNorm` in it becomes a `BatchNorm`; its variables stay the same objects.
    norms : str or collection of str
        Which layers are exchanged: "batch", "layer" (`LayerNorm`), "rms" (`RMSNorm`), "group"
        (`GroupNorm`), "instance" (`InstanceNorm`), several of these, or "all". Subclasses of Flax's
        layers stay as they are.

    Returns
    -------
    flax.nnx.Module
        The model.

    Raises
    ------
    ValueError
        A layer of batch normalization has more than one axis, or groups of an axis; `norms` has
        another name. Nothing has changed then.
    """
    classes = dict(LAYERS[name] for name in chosen_names(norms, "norms", LAYERS))
    layers = [each for _, each in nnx.iter_modules(model) if type(each) in classes]
    for layer in layers:
        if isinstance(layer, nnx.BatchNorm):
            _check(layer)
    for layer in layers:
        if isinstance(layer, nnx.BatchNorm):
            layer.activation, layer.negative_slope = None, 0.01
        layer.__class__ = classes[type(layer)]
    return model


def revert(model: Any) -> Any:
    """Make the layers of a model Flax's own again, in place.

    Parameters
    ----------
    model : flax.nnx.Module
        Every layer of this module in it becomes Flax's.

    Returns
    -------
    flax.nnx.Module
        The model.

    Raises
    ------
    ValueError
        A layer has an activation, which Flax's layer lacks. Nothing has changed then.
    """
    classes = {ours: theirs for theirs, ours in LAYERS.values()}
    layers = [each for _, each in nnx.iter_modules(model) if type(each) in classes]
    for layer in layers:
        if getattr(layer, "activation", None) is not None:
            raise ValueError(f"model: expected layers without activation, got {layer.activation!r}")
    for layer in layers:
        if isinstance(layer, BatchNorm):
            del layer.activation, layer.negative_slope
        layer.__class__ = classes[type(layer)]
    return model
