"""The norms of Flax NNX that normalize each example by itself, over bnext's kernels.

A layer is a subclass of Flax's, with its arguments and variables. Calls that the kernels do not
have are Flax's own: with a mask, of parts on several devices, over axes that the functions do not
have, of other dtypes, and of one value to be normalized.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx

from bnext import _core
from bnext.jax.cell_norms import group_norm, instance_norm
from bnext.jax.formulas import param_dtype
from bnext.jax.row_norms import normalized_rows

__all__ = ["GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, over kernels if `reduction_axes` are the last axes.

    The same arguments, parameters (`scale`, `bias`) and results, and an instance of Flax's layer.
    Statistics are exact sums, whatever `use_fast_variance` says.

    Parameters
    ----------
    num_features : int
        The number of channels.
    epsilon : float
        Added to the variance.
    dtype, param_dtype, use_bias, use_scale, promote_dtype, rngs
        As in Flax.
    bias_init, scale_init, bias_metadata, scale_metadata
        As in Flax.
    reduction_axes, feature_axes : int or sequence of int
        Which axes are normalized together, and which have parameters, as in Flax.
    axis_name, axis_index_groups, use_fast_variance
        As in Flax; with an `axis_name` calls are Flax's own.
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x.

        Parameters
        ----------
        x : array, shape (..., C)
            The result has the layer's `dtype`; without one, the dtype that Flax promotes it to with
            its parameters.
        mask : array of bool, optional
            Flax's; the call is Flax's own then.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        y = None if mask is not None else _of_rows(self, x, centered=True)
        return super().__call__(x, mask=mask) if y is None else y


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, over kernels if `reduction_axes` are the last axes.

    The same arguments, parameter (`scale`) and results, and an instance of Flax's layer.

    Parameters
    ----------
    num_features : int
        The number of channels.
    epsilon : float
        Added to the mean of squares.
    dtype, param_dtype, use_scale, scale_init, scale_metadata, promote_dtype, rngs
        As in Flax.
    reduction_axes, feature_axes : int or sequence of int
        As in `LayerNorm`.
    axis_name, axis_index_groups, use_fast_variance
        As in Flax; with an `axis_name` calls are Flax's own.
    """

    def __call__(self, x: Any, mask: Any = None) -> Any:
        """Normalize x.

        Parameters
        ----------
        x, mask
            As in `LayerNorm`.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        y = None if mask is not None else _of_rows(self, x, centered=False)
        return super().__call__(x, mask=mask) if y is None else y


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, over kernels if `reduction_axes` are all but the first, as without any.

    The same arguments, parameters (`scale`, `bias`) and results, and an instance of Flax's layer.

    Parameters
    ----------
    num_features : int
        The number of channels.
    num_groups, group_size : int, optional
        Groups that the channels are divided into, or channels of a group.
    epsilon : float
        Added to the variance.
    dtype, param_dtype, use_bias, use_scale, promote_dtype, rngs
        As in Flax.
    bias_init, scale_init, bias_metadata, scale_metadata
        As in Flax.
    reduction_axes : sequence of int, optional
        Which axes are normalized together, as in Flax.
    axis_name, axis_index_groups, use_fast_variance
        As in Flax; with an `axis_name` calls are Flax's own.
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x.

        Parameters
        ----------
        x : array, shape (N, ..., C)
            As in `LayerNorm`.
        mask : array of bool, optional
            Flax's; the call is Flax's own then.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        y = None
        if mask is None and _all_but_first(self.reduction_axes, jnp.ndim(x)):
            taken = _taken(self, x)
            if taken is not None and taken[0].size > self.num_groups:
                x_, scale, bias = taken
                y = group_norm(x_, self.num_groups, scale, bias, eps=self.epsilon)
        return super().__call__(x, mask=mask) if y is None else y


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, over kernels if `feature_axes` are one.

    The same arguments, parameters (`scale`, `bias`) and results, and an instance of Flax's layer.

    Parameters
    ----------
    num_features : int
        The number of channels.
    epsilon : float
        Added to the variance.
    dtype, param_dtype, use_bias, use_scale, promote_dtype, rngs
        As in Flax.
    bias_init, scale_init, bias_metadata, scale_metadata
        As in Flax.
    feature_axes : int or sequence of int
        Which axes have channels, as in Flax.
    axis_name, axis_index_groups, use_fast_variance
        As in Flax; with an `axis_name` calls are Flax's own.
    """

    def __call__(self, x: Any, *, mask: Any = None) -> Any:
        """Normalize x.

        Parameters
        ----------
        x : array, shape (N, ..., C)
            As in `LayerNorm`.
        mask : array of bool, optional
            Flax's; the call is Flax's own then.

        Returns
        -------
        array, shape of `x`
            The normalized values.
        """
        y = None
        axes = _axes(self.feature_axes, jnp.ndim(x))
        if mask is None and len(axes) == 1 and axes[0] > 0:
            taken = _taken(self, x)
            if taken is not None and math.prod(taken[0].shape[1:]) > taken[0].shape[axes[0]]:
                x_, scale, bias = taken
                y = instance_norm(x_, scale, bias, eps=self.epsilon, channel_axis=axes[0])
        return super().__call__(x, mask=mask) if y is None else y


def _axes(axes: Any, rank: int) -> list[int]:
    """Give axes from the front, in order."""
    several = axes if isinstance(axes, tuple | list) else (axes,)
    return sorted({a + rank if a < 0 else a for a in several})


def _all_but_first(axes: Any, rank: int) -> bool:
    return rank > 1 and (axes is None or _axes(axes, rank) == list(range(1, rank)))


def _taken(layer: Any, x: Any) -> tuple[Any, Any, Any] | None:
    """Give x, scale and bias in the dtypes that kernels take; None of a call that is Flax's."""
    if layer.axis_name is not None:
        return None
    x = jnp.asarray(x)
    own = (layer.scale, getattr(layer, "bias", None))
    scale, bias = (each if each is None else each[...] for each in own)
    inputs = (x, scale, bias) if hasattr(layer, "bias") else (x, scale)
    x = layer.promote_dtype(inputs, dtype=layer.dtype)[0]
    if not _core.is_data_dtype(x.dtype) or x.size == 0:
        return None
    parameters = param_dtype(x)
    scale, bias = (each if each is None else each.astype(parameters) for each in (scale, bias))
    return x, scale, bias


def _of_rows(layer: Any, x: Any, *, centered: bool) -> Any:
    rank = jnp.ndim(x)
    axes, features = (_axes(each, rank) for each in (layer.reduction_axes, layer.feature_axes))
    if not axes or axes != list(range(axes[0], rank)) or not set(features) <= set(axes):
        return None
    taken = _taken(layer, x)
    if taken is None:
        return None
    x, scale, bias = taken
    shape = x.shape[axes[0] :]
    beside = tuple(x.shape[a] if a in features else 1 for a in axes)
    scale, bias = (
        each if each is None else jnp.broadcast_to(each.reshape(beside), shape)
        for each in (scale, bias)
    )
    return normalized_rows(x, shape, scale, bias, layer.epsilon, centered=centered)
