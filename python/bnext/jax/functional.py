"""Batch normalization as pure functions, inside and outside of JAX's transformations."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnext import _core
from bnext.jax import formulas, inference, training
from bnext.jax.arguments import arrays_of, described
from bnext.jax.foreign import How
from bnext.jax.weighting import positions_of
from bnext.weighting import Masked, check_masked

__all__ = [
    "Moments", "batch_norm", "moments", "move_running", "normalize", "normalize_by_counted",
]  # fmt: skip


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each channel, as arrays of a program.

    Attributes
    ----------
    count : array, shape ()
        Values per channel; of positions with weights, the sum of these.
    mean : array, shape (C,)
        Mean of each channel; float32, or float64 for float64 data.
    m2 : array, shape (C,)
        Sum of squared deviations from the mean.
    """

    count: jax.Array
    mean: jax.Array
    m2: jax.Array

    @property
    def var(self) -> jax.Array:
        """Biased variance ``m2 / count``; 0 where nothing counts."""
        return self.m2 / jnp.where(self.count == 0, 1, self.count)

    @property
    def unbiased_var(self) -> jax.Array:
        """Variance with Bessel's correction, ``m2 / (count - 1)``; NaN up to a count of 1."""
        return self.m2 / jnp.where(self.count > 1, self.count - 1, jnp.nan)

    def merge(self, other: Moments) -> Moments:
        """Moments of both batches together (Chan, Golub, LeVeque 1979).

        Parameters
        ----------
        other : Moments
            Of as many channels.

        Returns
        -------
        Moments
            In float32, or float64 where these are.
        """
        count = self.count + other.count
        share = other.count / jnp.where(count == 0, 1, count)
        delta = other.mean - self.mean
        m2 = self.m2 + (other.m2 + delta * delta * (self.count * share))
        return Moments(count, self.mean + delta * share, m2)


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = -1,
    axis_name: Hashable | None = None,
    residual: Any = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Any = None,
    sample_weight: Any = None,
    lengths: Any = None,
    masked: Masked = "zero",
) -> tuple[jax.Array, Moments]:
    """Normalize `x` by the mean and the biased variance of each of its channels.

    A pure function, for `jax.jit`, `jax.grad`, `jax.vmap`, `jax.lax.scan`, `jax.checkpoint` and
    `jax.shard_map`. Its gradient is a kernel as well, and can be differentiated again, in reverse
    or forward mode (Hessian-vector products). `jax.jvp` of the function itself is refused by JAX.

    Parameters
    ----------
    x : array, shape (N, ..., C) with C at `channel_axis`
        float32, bfloat16, float16, or float64 where JAX has it enabled; of any rank.
    weight, bias : array, shape (C,), optional
        Of the dtype of `x`, float32 for 16-bit data; 1 and 0 if not given.
    eps : float
        Added to the variance, in the square of the unit of `x`.
    channel_axis : int
        Which axis of `x` has the channels: the last, as JAX's users have it. (The functions for
        arrays of NumPy have 1.)
    axis_name : hashable or tuple, optional
        Axes of `jax.shard_map` or `jax.vmap` along which lie the other parts of the batch. Mean and
        variance are the whole batch's. They are merged exactly, in the order of the axis' indices.
    residual : array, shape of `x`, optional
        Added to the normalized values, before the activation; of the dtype of `x`.
    activation : str, optional
        The function that is applied last: "relu", "relu6", "leaky_relu", "silu", "hardswish",
        "gelu", "gelu_tanh", "sigmoid" or "tanh".
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    mask : array of bool, optional
        Which positions count, True: of the shape of `x` without its channels, or with 1 in their
        place; other axes may be 1 as well.
    sample_weight : array of real numbers, optional
        How often a position counts, from 0 on: of the shapes of `mask`, or (N,), one for each
        example. Rounded to the dtype of `weight`. No gradient goes through it.
    lengths : array of int, shape (N,), optional
        For `x` of (N, L, C) or (N, C, L): how many of the L positions of each example count, from
        the first on. Not beside `mask`.
    masked : {"zero", "normalized", "unchanged"}
        What `y` has at positions that do not count: 0, the normalized value, or `x`.

    Returns
    -------
    y : array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``, of the dtype of `x`.
    moments : Moments
        Of the whole batch, for `move_running` or whatever the caller does with them. Gradients go
        through them too.

    Raises
    ------
    ValueError
        While a program is traced: a shape does not fit, `x` has one value per channel, `eps` is
        negative or not finite, `channel_axis` is not an axis of `x`, `activation` is not one of the
        names, `negative_slope` is not finite; `masked` is not one of the names, `lengths` stands
        beside a mask.
    TypeError
        A dtype does not fit, or an argument is not an array.

    Notes
    -----
    Positions with weights are as in `bnext.batch_norm_forward`: a position of weight 0 does not
    count, and has a gradient of 0, whatever `y` has there; ``moments.count`` is the sum of weights
    of the whole batch, and a mask that is True everywhere is none, to the bit. Along `axis_name`
    a part may have no position that counts. A program does not raise for values: lengths are
    clipped, and a weight that is negative or not finite makes every result NaN.

    Arrays in shards need no `axis_name` under `jax.jit`: each device computes on its shard, and the
    statistics are the whole batch's.
    """
    x, weight, bias, residual = arrays_of(x=x, weight=weight, bias=bias, residual=residual)
    how = _how(x, eps, channel_axis, axis_name, activation, negative_slope, residual)
    kind = "forward" if axis_name is None else "shard"
    arrays = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    how, positions = _checked(kind, how, arrays, mask, sample_weight, lengths, masked)
    if axis_name is not None:
        _core.check_more_than_one(x.shape, formulas.count_of(how, x))
    y, values, count = training.normalized(how, x, weight, bias, residual, positions)
    return y, _moments(how, x, values, count)


def normalize(
    x: Any,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = -1,
    residual: Any = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Any = None,
    sample_weight: Any = None,
    lengths: Any = None,
    masked: Masked = "zero",
) -> jax.Array:
    """Normalize `x` by statistics that are given: inference with running ones.

    Parameters
    ----------
    x : array, shape (N, ..., C) with C at `channel_axis`
        As for `batch_norm`.
    mean, var : array, shape (C,)
        Of the dtype of `x`, float32 for 16-bit data.
    weight, bias : array, shape (C,), optional
        As for `batch_norm`.
    eps : float
        Added to `var`.
    channel_axis : int
        Which axis of `x` has the channels.
    residual, activation, negative_slope, mask, sample_weight, lengths, masked
        As for `batch_norm`.

    Returns
    -------
    array, shape of `x`
        ``act((x - mean) / sqrt(var + eps) * weight + bias + residual)``. Its gradients by all
        arrays are right, by `mean` and `var` too.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm`.
    """
    x, mean, var = arrays_of(x=x, mean=mean, var=var)
    weight, bias, residual = arrays_of(weight=weight, bias=bias, residual=residual)
    how = _how(x, eps, channel_axis, None, activation, negative_slope, residual)
    arrays = {
        "x": x, "mean": mean, "var": var, "weight": weight, "bias": bias, "residual": residual
    }  # fmt: skip
    how, positions = _checked("normalize", how, arrays, mask, sample_weight, lengths, masked)
    y: jax.Array = inference.normalized_by(how, x, mean, var, weight, bias, residual, positions)
    return y


def normalize_by_counted(
    x: Any, weight: Any, bias: Any, mask: Any, *, eps: float, channel_axis: int,
    axis_name: Hashable | None, residual: Any, activation: str | None, negative_slope: float,
) -> tuple[jax.Array, Moments]:  # fmt: skip
    """Normalize every value by the statistics of those that count, as Flax does with a mask.

    Values that do not count have gradients as well: statistics depend on the others.
    """
    (x,) = arrays_of(x=x)
    how = _how(x, 0.0, channel_axis, axis_name, None, 0.01, None)
    how, positions = _checked("shard", how, {"x": x}, mask, None, None, "normalized")
    values, count = training.shown_in_reverse(how, x, positions)
    batch = _moments(how, x, values, count)
    y = normalize(
        x, batch.mean, batch.var, weight, bias, eps=eps, channel_axis=channel_axis,
        residual=residual, activation=activation, negative_slope=negative_slope,
    )  # fmt: skip
    return y, batch


def moments(
    x: Any, *, channel_axis: int = -1, axis_name: Hashable | None = None, mask: Any = None,
    sample_weight: Any = None, lengths: Any = None,
) -> Moments:  # fmt: skip
    """Count, mean and sum of squared deviations of each channel.

    Parameters
    ----------
    x : array, shape (N, ..., C) with C at `channel_axis`
        As for `batch_norm`.
    channel_axis : int
        Which axis of `x` has the channels.
    axis_name : hashable or tuple, optional
        As for `batch_norm`.
    mask, sample_weight, lengths
        As for `batch_norm`.

    Returns
    -------
    Moments
        Of the whole batch. Derivatives of any order go through them, in either mode.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm`.
    """
    (x,) = arrays_of(x=x)
    how = _how(x, 0.0, channel_axis, axis_name, None, 0.01, None)
    how, positions = _checked("shard", how, {"x": x}, mask, sample_weight, lengths, "zero")
    return _moments(how, x, *training.shown(how, x, positions))


def move_running(
    running_mean: Any,
    running_var: Any,
    moments: Moments,
    momentum: Any = 0.1,
    *,
    bessel: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Move running statistics by the statistics of a batch.

    Parameters
    ----------
    running_mean, running_var : array, shape (C,)
        The statistics up to this batch.
    moments : Moments
        Of this batch.
    momentum : float or array
        Weight of the batch: ``running = (1 - momentum) * running + momentum * batch``, PyTorch's
        convention. An exponential average has a constant, a cumulative one ``1 / t`` for batch t.
    bessel : bool
        Whether the variance has Bessel's correction, as in PyTorch, or is biased, as in Flax.

    Returns
    -------
    running_mean, running_var : array, shape (C,)
        New arrays; of a batch that counts for no more than 1 the same as before. No gradient goes
        through them.
    """
    var = moments.unbiased_var if bessel else moments.var
    mean, var = lax.stop_gradient((moments.mean, var))
    moves = moments.count > 1
    moved = [
        jnp.where(moves, (1 - momentum) * old + momentum * new.astype(old.dtype), old)
        for old, new in ((jnp.asarray(running_mean), mean), (jnp.asarray(running_var), var))
    ]
    return moved[0], moved[1]


# --- arguments ------------------------------------------------------------------------------------


def _how(
    x: Any, eps: Any, channel_axis: Any, axis_name: Any, activation: Any, negative_slope: Any,
    residual: Any,
) -> How:  # fmt: skip
    _core.check_activation(activation)
    if x is None:
        raise TypeError("x: expected an array, got None")
    return How(
        eps=_core.check_eps(eps),
        channel_axis=_core.check_axis(channel_axis, x.ndim),
        axes=_axes(axis_name),
        activation=None if activation == "none" else activation,
        negative_slope=_core.check_negative_slope(negative_slope),
        residual=residual is not None,
    )


def _axes(axis_name: Any) -> tuple[tuple[Any, int], ...]:
    if axis_name is None:
        return ()
    names = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
    return tuple((name, lax.axis_size(name)) for name in names)


def _checked(
    kind: str, how: How, arrays: dict[str, Any], mask: Any, sample_weight: Any, lengths: Any,
    masked: Any,
) -> tuple[How, Any]:  # fmt: skip
    """Check the arrays of a call, and give what counts of x; None of all."""
    _core.check_described(kind, described(arrays), how.channel_axis, how.eps)
    check_masked(masked)
    positions = positions_of(arrays["x"], how.channel_axis, mask, sample_weight, lengths)
    return how._replace(masked=None if positions is None else masked), positions


def _moments(how: How, x: Any, values: Any, count: Any) -> Moments:
    count = formulas.count_of(how, x) if count is None else count
    return Moments(jnp.asarray(count, values.dtype), values[0], values[1])
