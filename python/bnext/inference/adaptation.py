"""Test-time adaptation: the statistics of a test batch, blended with the source's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnext._moments import Moments
from bnext.arrays.libraries import to_numpy
from bnext.functional import moments
from bnext.layers import BatchNorm
from bnext.layers.checks import taken
from bnext.running import check_tracked

__all__ = ["adapted_moments", "check_prior", "share_of_batch"]


def check_prior(prior: Any) -> float:
    """Give the weight of the source, a number of examples >= 0, perhaps infinite."""
    if isinstance(prior, bool) or not hasattr(prior, "__float__"):
        raise TypeError(f"prior: expected a number of examples, got {type(prior).__name__}")
    number = float(prior)
    if not number >= 0:
        raise ValueError(f"prior: expected a number of examples >= 0, got {number:g}")
    return number


def share_of_batch(examples: int, prior: float) -> float:
    """Weigh the statistics of a batch of n examples beside the source's: n / (prior + n)."""
    if examples == 0 or math.isinf(prior):
        return 0.0
    return examples / (prior + examples)


def adapted_moments(layer: BatchNorm, x: Any, prior: float = 16) -> Moments:
    """Blend the statistics of a test batch with a layer's running statistics.

    ``mean = (prior * running_mean + n * mean_x) / (prior + n)``, and so for the variances, for n
    examples in `x` (Schneider et al. 2020, "Improving robustness against common corruptions by
    covariate shift adaptation", eq. 1). The running statistics count as `prior` examples of the
    source. They stay as they are.

    Parameters
    ----------
    layer : BatchNorm
        Its running statistics are the source's.
    x : array, shape (N, C, ...) with C at the layer's `channel_axis`
        Input of the layer.
    prior : float
        How many examples the source's statistics count for: with 0 the statistics of `x`
        decide alone, with infinity the source's.

    Returns
    -------
    Moments
        With ``count`` of `x`; `bnext.normalize` takes its ``mean`` and ``var``.

    Raises
    ------
    ValueError
        `prior` is negative, the layer has no running statistics, or `x` does not fit the layer.
    TypeError
        An argument is of a wrong type.

    Notes
    -----
    The union of both samples is something else: ``bnext.moments(x) + bnext.Moments(k, layer.
    running_mean, k * layer.running_var)`` adds what their means are apart to the variance.
    """
    prior = check_prior(prior)
    if not isinstance(layer, BatchNorm):
        raise TypeError(f"layer: expected a layer of bnext, got {type(layer).__name__}")
    check_tracked(layer, "layer")
    x, engine = taken(layer, x)
    batch = moments(x, channel_axis=layer.channel_axis)
    shape, _ = engine.inspect(x=x)
    share = share_of_batch(shape[0] if batch.count > 0 else 0, prior)
    source = [to_numpy(row).astype(np.float64) for row in (layer.running_mean, layer.running_var)]
    count = batch.count
    if share == 0.0:
        mean, var = source
    else:
        own = to_numpy(batch.mean), to_numpy(batch.m2) / count
        mean, var = ((1 - share) * s + share * b for s, b in zip(source, own, strict=True))
    return Moments(max(count, 1), mean, var * max(count, 1))
