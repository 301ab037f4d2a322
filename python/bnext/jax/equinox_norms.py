"""The norms of Equinox that normalize each example by itself, over bnext's kernels.

A layer is a subclass of Equinox', with its arguments and arrays, and sees one example, as there.
Calls that the kernels do not have are Equinox' own: of other dtypes, of other shapes, and of one
value to be normalized.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from bnext import _core
from bnext.jax.cell_norms import group_norm
from bnext.jax.formulas import param_dtype
from bnext.jax.row_norms import normalized_rows

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]

NONE: Any = object()  # no state was given


class LayerNorm(eqx.nn.LayerNorm):
    """`equinox.nn.LayerNorm`, over kernels: the same arguments, arrays and results.

    Parameters
    ----------
    shape : int or sequence of int
        The shape of an example.
    eps : float
        Added to the variance.
    use_weight, use_bias : bool
        Whether there are a weight and a bias.
    dtype : dtype, optional
        Of parameters; JAX's default float.
    elementwise_affine : bool, optional
        Both of these, as Equinox has it from earlier days.
    """

    def __call__(self, x: Any, state: Any = NONE, *, key: Any = None) -> Any:
        """Normalize an example.

        Parameters
        ----------
        x : array, shape of the layer
            All of its values are normalized together.
        state : equinox.nn.State, optional
            Returned as it is, beside y.
        key : None
            Ignored, as Equinox's layer does.

        Returns
        -------
        y : array, shape of `x`
            The normalized values, of the dtype of `x`; with a state, a pair of both.
        """
        del key
        return _answer(super().__call__, x, state, _rows(self, x, centered=True))


class RMSNorm(eqx.nn.RMSNorm):
    """`equinox.nn.RMSNorm`, over kernels: the same arguments, arrays and results.

    Parameters
    ----------
    shape : int or sequence of int
        The shape of an example.
    eps : float
        Added to the mean of squares.
    use_weight, use_bias : bool
        Whether there are a weight and a bias.
    dtype : dtype, optional
        Of parameters; JAX's default float.
    """

    def __call__(self, x: Any, state: Any = NONE, *, key: Any = None) -> Any:
        """Normalize an example.

        Parameters
        ----------
        x, state, key
            As in `LayerNorm`.

        Returns
        -------
        y : array, shape of `x`
            As from `LayerNorm`.
        """
        del key
        return _answer(super().__call__, x, state, _rows(self, x, centered=False))


class GroupNorm(eqx.nn.GroupNorm):
    """`equinox.nn.GroupNorm`, over kernels: the same arguments, arrays and results.

    Parameters
    ----------
    groups : int
        Groups that the channels are divided into.
    channels : int, optional
        The number of channels; needed for parameters.
    eps : float
        Added to the variance.
    channelwise_affine : bool
        Whether there are a weight and a bias.
    dtype : dtype, optional
        Of parameters; JAX's default float.
    """

    def __call__(self, x: Any, state: Any = NONE, *, key: Any = None) -> Any:
        """Normalize an example.

        Parameters
        ----------
        x : array, shape (C, ...)
            Each group of channels is normalized by itself.
        state, key
            As in `LayerNorm`.

        Returns
        -------
        y : array, shape of `x`
            As from `LayerNorm`.
        """
        del key
        y = None
        x = jnp.asarray(x)
        if _core.is_data_dtype(x.dtype) and x.ndim > 0 and x.size > self.groups:
            y = group_norm(x[None], self.groups, *_affine(self, x), eps=self.eps, channel_axis=1)[0]
        return _answer(super().__call__, x, state, y)


def _affine(layer: Any, x: Any) -> tuple[Any, Any]:
    parameters = param_dtype(x)
    weight, bias = (
        each if each is None else each.astype(parameters) for each in (layer.weight, layer.bias)
    )
    return weight, bias


def _rows(layer: Any, x: Any, *, centered: bool) -> Any:
    """Give y; None of a call that is Equinox' own."""
    x = jnp.asarray(x)
    if x.shape != layer.shape or not layer.shape or not _core.is_data_dtype(x.dtype):
        return None
    return normalized_rows(x, layer.shape, *_affine(layer, x), layer.eps, centered=centered)


def _answer(theirs: Any, x: Any, state: Any, y: Any) -> Any:
    if y is None:
        y = theirs(x)
    return y if state is NONE else (y, state)
