"""Which positions of an input count, and how much: masks, lengths and weights in a program.

As in `bnext.weighting`, a position is an index of all axes but the channels', and whatever the
arguments are, they become one array over positions: whether each counts (bools), or its weight,
with 0 where it does not. Shapes and dtypes are checked while a program is traced. Values are not
known then: lengths are clipped, and a weight that is negative or not finite becomes NaN, which
makes every result NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnext.arguments import values_of
from bnext.jax.formulas import param_dtype
from bnext.weighting import over_positions

__all__ = ["broadcast_mask", "in_arguments", "named", "positions_of"]


def named(positions: Any) -> dict[str, Any]:
    """Give positions by the name that handlers have for them; nothing of None."""
    if positions is None:
        return {}
    return {"counts" if positions.dtype == np.bool_ else "weights": positions}


def in_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Find positions among arguments by such names."""
    return {name: each for name, each in arguments.items() if name in ("counts", "weights")}


def positions_of(
    x: Any, axis: int, mask: Any, sample_weight: Any, lengths: Any
) -> jax.Array | None:
    """Check these arguments of a call, and make one array of them.

    Parameters
    ----------
    x : array
        The input of the call.
    axis : int
        Which of its axes has the channels, from the front.
    mask, sample_weight, lengths
        As `bnext.jax.batch_norm` takes them.

    Returns
    -------
    array or None
        Bools, or weights of the dtype of parameters; None where nothing was given.

    Raises
    ------
    ValueError, TypeError
        As `bnext.jax.batch_norm`.
    """
    if mask is None and sample_weight is None and lengths is None:
        return None
    if mask is not None and lengths is not None:
        raise ValueError("lengths: expected None beside a mask, got both")
    positions = x.shape[:axis] + x.shape[axis + 1 :]
    counts = None
    if mask is not None:
        counts = _mask(mask, x.shape, axis)
    elif lengths is not None:
        counts = _lengths(lengths, positions)
    if sample_weight is None:
        assert counts is not None
        return jnp.broadcast_to(counts, positions)
    weights = _weights(sample_weight, x, axis)
    if counts is not None:
        weights = jnp.where(counts, weights, 0)
    return jnp.broadcast_to(weights, positions)


def broadcast_mask(mask: Any, x: Any, axis: int) -> Any:
    """Give a mask that broadcasts against x, as Flax takes one, as a mask of positions.

    None where channels have masks of their own.
    """
    mask = jnp.asarray(mask)
    if mask.ndim > x.ndim:
        return None
    mask = mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape)
    return mask.astype(np.bool_) if mask.shape[axis] == 1 else None


def _array(given: Any, name: str) -> Any:
    return given if isinstance(given, jax.Array) else jnp.asarray(values_of(given, name))


def _mask(mask: Any, shape: tuple[int, ...], axis: int) -> Any:
    values = _array(mask, "mask")
    if values.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {values.dtype}")
    return over_positions(values, "mask", shape, axis, by_example=False)


def _lengths(lengths: Any, positions: tuple[int, ...]) -> Any:
    values = _array(lengths, "lengths")
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"lengths: expected dtype int64 or another of integers, got {values.dtype}")
    if len(positions) != 2:
        raise ValueError(
            "lengths: expected x of 3 dimensions, examples, channels and one more, got "
            f"{len(positions) + 1}"
        )
    if values.shape != positions[:1]:
        raise ValueError(f"lengths: expected shape {positions[:1]}, got {values.shape}")
    return jnp.arange(positions[1]) < values[:, None]


def _weights(weights: Any, x: Any, axis: int) -> Any:
    values = _array(weights, "sample_weight")
    real = jnp.issubdtype(values.dtype, jnp.floating) or jnp.issubdtype(values.dtype, jnp.integer)
    if not real:
        raise TypeError(f"sample_weight: expected an array of real numbers, got {values.dtype}")
    values = lax.stop_gradient(values).astype(param_dtype(x))
    values = jnp.where((values >= 0) & jnp.isfinite(values), values, jnp.nan)
    return over_positions(values, "sample_weight", x.shape, axis, by_example=True)
