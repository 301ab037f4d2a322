"""Statistics and hyperparameters in the conventions of other libraries.

All libraries normalize by ``weight * (x - mean) / sqrt(var + eps) + bias`` with their stored
variance, so inference stays the same without any change. Names and their meanings differ, and so do
the values that training stores later:

============ ============ ================= ============= ============== =================
convention   momentum is  stored variance   channels at   default decay  default eps
============ ============ ================= ============= ============== =================
"pytorch"    1 - decay    m2 / (n - 1)      axis 1        0.9            1e-5
"keras"      decay        m2 / n            the last axis 0.99           1e-3
"flax"       decay        m2 / n            the last axis 0.99           1e-5
"onnx"       decay        m2 / n            axis 1        0.9            1e-5
============ ============ ================= ============= ============== =================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bnext.arguments import count_of, counter_of, values_of
from bnext.estimators import Cumulative, Exponential
from bnext.layers import BatchNorm
from bnext.running import check_tracked

__all__ = ["from_convention", "to_convention"]


class _Convention(NamedTuple):
    names: tuple[str, str, str, str]  # of weight, bias, running_mean, running_var
    eps: str = "epsilon"
    counter: str = ""  # the name of the number of batches, where it is stored
    momentum_is_decay: bool = True
    bessel: bool = False
    channel_axis: int = 1
    decay: float = 0.9  # the default, as the next one
    default_eps: float = 1e-5
    needs_parameters: bool = False


CONVENTIONS = {
    "pytorch": _Convention(
        ("weight", "bias", "running_mean", "running_var"), eps="eps",
        counter="num_batches_tracked", momentum_is_decay=False, bessel=True,
    ),
    "keras": _Convention(
        ("gamma", "beta", "moving_mean", "moving_variance"), channel_axis=-1, decay=0.99,
        default_eps=1e-3,
    ),
    "flax": _Convention(("scale", "bias", "mean", "var"), channel_axis=-1, decay=0.99),
    "onnx": _Convention(("scale", "B", "input_mean", "input_var"), needs_parameters=True),
}  # fmt: skip
ATTRIBUTES = ("weight", "bias", "running_mean", "running_var")


def to_convention(bn: BatchNorm, convention: str, *, count: int | None = None) -> dict[str, Any]:
    """Give a layer's arrays and hyperparameters in another library's convention.

    Parameters
    ----------
    bn : BatchNorm
        With running statistics.
    convention : {"pytorch", "keras", "flax", "onnx"}
        Name of the convention.
    count : int, optional
        Values per channel of the batches that the variance was estimated from. If given, the
        variance is multiplied by ``(count - 1) / count``, or the inverse, where one side has
        Bessel's correction and the other has not: the result is the variance that the other library
        would have stored. Without `count` the variance stays, and so do the results of inference.

    Returns
    -------
    dict
        NumPy arrays, copied, under the names of the convention's parameters and statistics;
        ``momentum`` in its meaning, and ``eps`` or ``epsilon``. Parameters that the layer lacks are
        left out, except for ONNX, which requires them: 1 and 0.

    Raises
    ------
    ValueError
        There is no such convention, it has no cumulative average, the layer has no running
        statistics, or `count` is less than 2.
    TypeError
        `count` is not an integer.
    """
    words = _convention_of(convention)
    check_tracked(bn, "bn")
    weight, bias, _, var = words.names
    arrays = {name: getattr(bn, ours) for name, ours in zip(words.names, ATTRIBUTES, strict=True)}
    values: dict[str, Any] = {k: values_of(v, k) for k, v in arrays.items() if v is not None}
    if words.needs_parameters:
        values.setdefault(weight, np.ones(bn.num_features, bn.dtype))
        values.setdefault(bias, np.zeros(bn.num_features, bn.dtype))
    values[var] = _corrected(values[var], bn.estimator.bessel, words.bessel, count)
    momentum = bn.momentum
    if momentum is None and words.momentum_is_decay:
        raise ValueError(
            f"bn: expected an exponential average, as {convention}'s, got a cumulative"
        )
    values["momentum"] = bn.decay if words.momentum_is_decay else momentum
    values[words.eps] = bn.eps
    if words.counter and bn.num_batches_tracked is not None:
        values[words.counter] = np.array(bn.num_batches_tracked)
    return values


def from_convention(
    convention: str,
    values: Mapping[str, Any],
    *,
    channel_axis: int | None = None,
    count: int | None = None,
) -> BatchNorm:
    """Make a layer from another library's arrays and hyperparameters.

    Parameters
    ----------
    convention : {"pytorch", "keras", "flax", "onnx"}
        Name of the convention.
    values : mapping
        Arrays of any library under the names of the convention's statistics and, if it has them,
        parameters; ``momentum`` in its meaning, and ``eps`` or ``epsilon``, or else the
        convention's defaults.
    channel_axis : int, optional
        The axis of the input with the channels; by default the convention's.
    count : int, optional
        Values per channel of the batches that the variance was estimated from. If given, the
        variance gets Bessel's correction where it has none. Without `count` the variance stays, and
        the layer's estimator follows the convention.

    Returns
    -------
    BatchNorm
        In training mode, with the dtype of the statistics, at least float32.

    Raises
    ------
    ValueError
        There is no such convention, a name is missing or unknown, shapes differ, the counter is
        negative or no whole number, or `count` is less than 2.
    TypeError
        An array is not of real numbers, or has a mask; `count` is not an integer.
    """
    words = _convention_of(convention)
    known = {*words.names, "momentum", words.eps, words.counter} - {""}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"values: expected names among {sorted(known)}, got {unknown}")
    weight, bias, mean, var = words.names
    if missing := [name for name in (mean, var) if name not in values]:
        raise ValueError(f"values: expected {' and '.join(missing)}, got {sorted(values)}")
    arrays = {name: values_of(values[name], name) for name in words.names if name in values}
    features = arrays[mean].size
    for name, array in arrays.items():
        if array.shape != (features,):
            raise ValueError(f"{name}: expected shape ({features},), got {array.shape}")
        if not np.can_cast(array.dtype, np.float64, "same_kind"):
            raise TypeError(f"{name}: expected an array of real numbers, got {array.dtype}")
    bn = BatchNorm(
        features,
        eps=float(values.get(words.eps, words.default_eps)),
        affine=weight in arrays or bias in arrays,
        channel_axis=words.channel_axis if channel_axis is None else channel_axis,
        dtype=np.float64 if arrays[mean].dtype == np.float64 else np.float32,
        estimator=_estimator_of(words, values, words.bessel or count is not None),
    )
    wide = arrays[var].astype(np.float64)  # rounded once, to the layer's dtype
    arrays[var] = _corrected(wide, words.bessel, bn.estimator.bessel, count)
    for name, ours in zip(words.names, ATTRIBUTES, strict=True):
        if name in arrays:
            with np.errstate(all="ignore"):  # overflow in rounding is silent
                getattr(bn, ours)[...] = arrays[name]
    if words.counter and words.counter in values and bn.num_batches_tracked is not None:
        bn.num_batches_tracked[...] = counter_of(values[words.counter], words.counter)
    return bn


def _estimator_of(
    words: _Convention, values: Mapping[str, Any], bessel: bool
) -> Exponential | Cumulative:
    if words.momentum_is_decay:
        return Exponential(decay=values.get("momentum", words.decay), bessel=bessel)
    momentum = values.get("momentum", 1.0 - words.decay)
    return Cumulative(bessel=bessel) if momentum is None else Exponential(momentum, bessel=bessel)


def _corrected(var: Any, bessel: bool, wanted: bool, count: int | None) -> Any:
    if count is None:
        return var
    count = count_of(count, "count")
    if count < 2:
        raise ValueError(f"count: expected at least 2 values per channel, got {count}")
    if bessel == wanted:
        return var
    factor = count / (count - 1) if wanted else (count - 1) / count
    with np.errstate(all="ignore"):  # NaN and infinity are values like others
        return (var.astype(np.float64) * factor).astype(var.dtype)


def _convention_of(name: str) -> _Convention:
    if name not in CONVENTIONS:
        expected = ", ".join(map(repr, CONVENTIONS))
        raise ValueError(f"convention: expected one of {expected}, got {name!r}")
    return CONVENTIONS[name]
