"""`from_convention`, `to_convention`: a layer in the convention of another library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bnext.arguments import values_of
from bnext.inference.conventions import reading, rules
from bnext.inference.conventions.hyperparameters import (
    bessel_of,
    checked,
    epsilon_of,
    momentum_of,
    text_of,
)
from bnext.inference.conventions.libraries import convention_of
from bnext.inference.conventions.record import Convention
from bnext.inference.conventions.rules import Rule, Start, Steps, Values
from bnext.layers import BatchNorm
from bnext.running import check_tracked

__all__ = ["from_convention", "to_convention"]

ATTRIBUTES = ("weight", "bias", "running_mean", "running_var")
OURS: Start = "blended"  # by PyTorch's rule, which is a layer's by default


def to_convention(
    bn: Any,
    convention: str,
    *,
    count: int | None = None,
    steps: Steps | None = None,
    bessel: bool | None = None,
    prefix: str = "",
    ndim: int | None = None,
) -> dict[str, Any]:
    """Give a layer's arrays and hyperparameters in another library's convention.

    Without `count` and `steps`, inference stays: the other library gives the layer's results.
    With them, the statistics are what the other library would have stored after the same
    batches: with d the decay and k the number of batches, the initial value has the weight d^k, and
    is kept out of Bessel's correction,

        v_unbiased = d^k + (v_biased - d^k) n / (n - 1),

    and averages without initial values (haiku, sonnet) get none.

    Parameters
    ----------
    bn : BatchNorm, or mapping of str to array
        A layer with running statistics, also one of PyTorch's, or its state dict, which may have
        ``momentum`` and ``eps`` as well.
    convention : str
        Name of the convention, such as "keras" or "flax"; docs/conventions.md has all of them.
    count : int, optional
        n, the values per channel of every batch. Needed for the exact statistics where one side has
        Bessel's correction and the other has not. Batches of unequal sizes have no exact conversion
        then, and need none otherwise.
    steps : int or math.inf, optional
        k, the number of batches that the statistics were averaged over; ``num_batches_tracked`` if
        not given. Infinity: the initial values have decayed.
    bessel : bool, optional
        Whether the other library's variance has Bessel's correction, where that depends on the
        shape of its input, on a kernel or on its version.
    prefix : str
        Goes before the name of each array.
    ndim : int, optional
        Axes of the layer's input, for libraries whose arrays have as many (haiku, sonnet, objax).

    Returns
    -------
    dict
        NumPy arrays, copied, under the names of the convention's parameters and statistics, in its
        shapes; its hyperparameters under their names and in their meanings, without the prefix.
        Parameters that the layer lacks are left out, or 1 and 0 where the library requires them.

    Raises
    ------
    ValueError
        There is no such convention, it cannot express the layer, the layer has no running
        statistics, a statistic is not finite or a variance negative, a number is needed and was not
        given, or `count` is less than 2.
    TypeError
        `count` is not an integer, or an argument of another wrong type.
    """
    record = convention_of(convention)
    bn = _layer_of(bn)
    check_tracked(bn, "bn")
    count, known = checked(count, steps)
    text_of(prefix, "prefix")
    if record.folded:
        return _folded(record, bn, prefix)
    values = Values(*(values_of(getattr(bn, n), n).astype(np.float64) for n in ATTRIBUTES[2:]))
    rules.check_finite("running_mean", values.mean)
    rules.check_finite("running_var", values.var, variance=True)
    source = rules.rule_of(bn.estimator)
    if source.decay is None and not (record.cumulative or record.start is None):
        raise ValueError(
            f"bn: expected an exponential average, as {convention}'s, got a cumulative"
        )
    moved = bool(values.mean.any() or (values.var != 1.0).any())
    known = _steps_of(bn, known, moved)
    if count is not None or steps is not None:
        if record.start is None:
            raise ValueError(
                f"count, steps: expected None, as {record.title} stores the statistics that it is "
                "given"
            )
        target = _rule(
            record,
            source.momentum,
            bessel_of(record, record.moves_bessel if bessel is None else bessel),
        )
        values = _converted(values, source, target, known, count)
        moved = moved and known != 0
    arrays = _parameters(record, bn)
    arrays |= reading.shown(record, values, known, source.decay, bn.dtype, moved)
    reading.formed(record, arrays, bn.channel_axis, ndim)
    found: dict[str, Any] = {prefix + name: array for name, array in arrays.items()}
    if record.start is not None:
        given = bn.decay if record.momentum_weighs == "old" else bn.momentum
        found[record.momentum_name] = given
    found[record.eps_name] = bn.eps
    return found


def from_convention(
    convention: str,
    values: Mapping[str, Any],
    *,
    channel_axis: int | None = None,
    count: int | None = None,
    steps: Steps | None = None,
    bessel: bool | None = None,
    prefix: str = "",
    eps: float | None = None,
    decay: float | None = None,
    train_as: Literal["pytorch"] | None = None,
) -> BatchNorm:
    """Make a layer from another library's arrays and hyperparameters.

    The layer infers as the other library does, and goes on training as the other library would: its
    estimator follows the convention. With `count` or ``train_as="pytorch"`` it is what PyTorch's
    layer of that momentum would be after the same batches, and goes on as PyTorch's.

    Parameters
    ----------
    convention : str
        Name of the convention, such as "keras" or "flax"; docs/conventions.md has all of them.
    values : mapping
        Arrays of any library under the names of the convention's statistics and, if it has them,
        parameters; may be nested. Shapes are (C,), or (1, ..., C) and (1, C, 1, 1). Its momentum
        in its meaning, and its epsilon, or else the convention's defaults.
    channel_axis : int, optional
        The axis of the input with the channels; by default the convention's.
    count : int, optional
        n, the values per channel of every batch that the variance was estimated from, for the
        variance of PyTorch's convention.
    steps : int or math.inf, optional
        k, the number of batches that the statistics were averaged over, unless the convention
        stores it. The layer's counter begins there. Infinity: the initial values have decayed.
    bessel : bool, optional
        Whether the stored variance has Bessel's correction, where that depends on the shape of the
        library's input, on a kernel or on its version.
    prefix : str
        What stands before the names of the layer's arrays, in a checkpoint with more of them:
        ``"features.bn1."``.
    eps, decay : float, optional
        In place of the convention's epsilon, and of its weight of the old average.
    train_as : {"pytorch"}, optional
        By whose rule the statistics move, if not by the convention's.

    Returns
    -------
    BatchNorm
        In training mode, with the dtype of the statistics, at least float32.

    Raises
    ------
    ValueError
        There is no such convention, a name is missing or unknown, shapes differ, a statistic is not
        finite or a variance negative, the counter is negative or no whole number, `count` is less
        than 2, or a number is needed and was not given; the error says which.
    TypeError
        An array is not of real numbers, or has a mask; `count` is not an integer.

    Warns
    -----
    UserWarning
        The initial values are taken to have decayed, since the number of batches is not known.
    """
    record = convention_of(convention)
    count, known = checked(count, steps)
    text_of(prefix, "prefix")
    if train_as not in (None, "pytorch"):
        raise ValueError(f"train_as: expected 'pytorch' or None, got {train_as!r}")
    if record.folded:
        raise ValueError(
            f"convention: expected one with statistics, got {convention!r}, which keeps a scale "
            "and a shift (convert the model that was exported to it)"
        )
    named = reading.named_arrays(record, values, prefix)
    arrays = reading.stored(record, named.arrays)
    epsilon = epsilon_of(record, named.numbers, eps)
    momentum = momentum_of(record, named.numbers, decay, convention)
    arrays.extra["eps"] = epsilon
    if known is None and (record.counts == "batches" or momentum is None):
        known = reading.stored_steps(record, arrays)
    usable, known = reading.usable(record, arrays, known, Rule(OURS, True, momentum).decay)
    switched = count is not None or train_as == "pytorch"
    if record.start is None:
        if count is not None:
            raise ValueError(
                f"count: expected None, as {record.title} keeps the statistics that it was given; "
                "name the convention of the library that trained them"
            )
        source = target = Rule(OURS, True, momentum)
    else:
        asked = record.moves_bessel if bessel is None and not switched else bessel
        source = target = _rule(record, momentum, bessel_of(record, asked))
        if switched:
            target = Rule(source.start if momentum is None else OURS, True, momentum)
        usable = _converted(usable, source, target, known, count)
    if target.start == "first":
        known = 1 if known is None else known  # at least: the next batch is no longer the first
    elif target.start in ("debiased", "divided") and known is None:
        raise ValueError(
            "steps: expected the number of batches that the statistics were averaged over "
            "(math.inf where the initial values have decayed), got None"
        )
    elif known is not None and math.isinf(known) and target.start != OURS:
        target = Rule(OURS, target.bessel, target.momentum)
    bn = _layer(record, arrays, epsilon, target, channel_axis)
    _fill(bn, record, arrays, usable)
    if known is not None and math.isfinite(known) and bn.num_batches_tracked is not None:
        bn.num_batches_tracked[...] = int(known)
    return bn


# --- parts of both --------------------------------------------------------------------------------


def _converted(
    values: Values, source: Rule, target: Rule, steps: Steps | None, count: int | None
) -> Values:
    """Convert; where nobody knows the number of batches, the initial values have decayed."""
    alike = source.start == target.start == OURS
    if steps is None and alike and source.bessel != target.bessel and count is not None:
        if source.decay:
            warnings.warn(
                "steps: not given and not stored; the initial variance 1 is taken to have decayed "
                "(pass the number of batches, or math.inf)",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        steps = math.inf
    return rules.convert(values, source, target, steps, count)


def _rule(record: Convention, momentum: float | None, bessel: bool) -> Rule:
    start: Start = "cumulative" if momentum is None or record.start is None else record.start
    return Rule(start, bessel, momentum)


def _steps_of(bn: BatchNorm, steps: Steps | None, moved: bool) -> Steps | None:
    """Give the number of batches; None where it was not counted."""
    if steps is not None or bn.num_batches_tracked is None:
        return steps
    counted = int(bn.num_batches_tracked)
    return None if counted == 0 and moved else counted


def _parameters(record: Convention, bn: BatchNorm) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, ours, neutral in zip(record.names[:2], ATTRIBUTES[:2], (1, 0), strict=True):
        array = getattr(bn, ours)
        if array is not None:
            found[name] = values_of(array, ours)
        elif record.needs_parameters:
            found[name] = np.full(bn.num_features, neutral, bn.dtype)
    if record.unit_weight_flag and found:
        found[record.unit_weight_flag] = np.array(False)
    return found


def _folded(record: Convention, bn: BatchNorm, prefix: str) -> dict[str, Any]:
    affine = bn.as_affine()
    names = (prefix + name for name in record.names[:2])
    return {n: array.astype(bn.dtype) for n, array in zip(names, affine, strict=True)}


def _layer_of(bn: Any) -> Any:
    """Give a layer of bnext: of a state dict, of a layer of PyTorch's, or as it is."""
    if isinstance(bn, BatchNorm):
        return bn
    if isinstance(bn, Mapping):
        try:
            return from_convention("pytorch", bn)
        except ValueError as error:
            text = str(error).removeprefix("values: ")
            raise ValueError(
                f"bn: in a state dict of PyTorch's kind (others are from_convention's): {text}"
            ) from None
    names = (*ATTRIBUTES, "num_batches_tracked", "momentum", "eps")
    if not all(hasattr(bn, name) for name in names):
        raise TypeError(f"bn: expected a layer or a state dict, got {type(bn).__name__}")
    check_tracked(bn, "bn")
    given = {name: getattr(bn, name) for name in names}
    momentum = given.pop("momentum")
    found = {name: value for name, value in given.items() if value is not None}
    return from_convention("pytorch", {**found, "momentum": momentum})


def _layer(
    record: Convention,
    arrays: reading.Stored,
    eps: float,
    rule: Rule,
    channel_axis: int | None,
) -> BatchNorm:
    mean: npt.NDArray[Any] = arrays.arrays[record.names[2]]
    return BatchNorm(
        arrays.features,
        eps=eps,
        affine=any(name in arrays.arrays for name in record.names[:2]),
        channel_axis=record.channel_axis if channel_axis is None else channel_axis,
        dtype=np.float64 if mean.dtype == np.float64 else np.float32,
        estimator=rule.estimator(),
    )


def _fill(bn: BatchNorm, record: Convention, arrays: reading.Stored, values: Values) -> None:
    """Put parameters and statistics into a new layer, each rounded once."""
    weight = record.names[0]
    new = dict(zip(ATTRIBUTES[2:], values, strict=True))
    for name, ours in zip(record.names[:2], ATTRIBUTES[:2], strict=True):
        if name in arrays.arrays:
            new[ours] = arrays.arrays[name]
    if weight in arrays.arrays and _unit_weight(record, arrays):
        new["weight"] = np.ones(arrays.features)
    for ours, array in new.items():
        with np.errstate(all="ignore"):
            getattr(bn, ours)[...] = array
    rules.check_finite(record.names[2], values_of(bn.running_mean, record.names[2]))
    rules.check_finite(record.names[3], values_of(bn.running_var, record.names[3]), variance=True)


def _unit_weight(record: Convention, arrays: reading.Stored) -> bool:
    """Whether the weight is 1, whatever is stored."""
    flag, weight = record.unit_weight_flag, arrays.arrays[record.names[0]]
    if not flag:
        return False
    if flag in arrays.extra:
        return bool(values_of(arrays.extra[flag], flag))
    if record.unit_weight is None and (weight != 1).any():
        raise ValueError(
            f"{flag}: expected True (the weight is 1, whatever {record.names[0]} is) or False, as "
            f"the model of {record.title} has it, got None"
        )
    return bool(record.unit_weight)
