"""A library's arrays, found by their names, checked, and given one form; and the way back.

Statistics come out as inference uses them, whatever the library stores: sums are divided by their
factor, and blended averages by 1 - d^k where the library does so before it uses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.arguments import counter_of, values_of
from bnext.inference.conventions.hyperparameters import axes_of
from bnext.inference.conventions.record import Convention
from bnext.inference.conventions.rules import Steps, Values, check_finite, complement, power

__all__ = ["SEPARATORS", "Stored", "named_arrays", "stored", "stored_steps", "usable"]

Array = npt.NDArray[Any]
SEPARATORS = ("/", ".", ":")  # in the names of checkpoints
GONE = 1e-20  # the weight of initial values that have decayed
HIDDEN = 0.02  # relative error of hidden values that rounding, also to 16 bits, explains


class Named(NamedTuple):
    """Arrays by the convention's names, and numbers by the library's."""

    arrays: dict[str, Any]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """The arrays of one layer, of shape (C,) each, as NumPy's."""

    arrays: dict[str, Array]  # by the convention's four names
    extra: dict[str, Any]  # counters, flags, hidden values
    features: int


def flat(values: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """Join the names of nested mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            for inner, item in flat(value, separator).items():
                found[f"{name}{separator}{inner}"] = item
        else:
            found[str(name)] = value
    return found


def named_arrays(record: Convention, values: Mapping[str, Any], prefix: str) -> Named:
    """Divide what was given into arrays and numbers; refuse names that are not the convention's."""
    if not isinstance(values, Mapping):
        raise TypeError(f"values: expected a mapping of names, got {type(values).__name__}")
    known = {*filter(None, record.names), *record.optional_names()}
    numbers = record.hyperparameters()
    found, unknown = Named({}, {}), []
    for full, value in flat(values).items():
        if full in numbers:
            found.numbers[full] = value
            continue
        name = _without(record, full, prefix)
        if name is None:
            continue  # of another layer
        name = record.aliases.get(name, name)
        if name not in known:
            unknown.append(full)
        elif name in found.arrays:
            raise ValueError(f"values: expected {name} once, got it again as {full}")
        else:
            found.arrays[name] = value
    if unknown:
        hint = "" if prefix else "; prefix= reads one layer of a whole checkpoint"
        first = unknown[0].removeprefix(prefix)[:1]
        if prefix and first in SEPARATORS:
            hint = f"; the prefix goes up to the name itself: {prefix + first!r}"
        raise ValueError(
            f"values: expected names among {sorted(known | numbers)}, got {unknown}{hint}"
        )
    mean, var = record.names[2:]
    if missing := [name for name in (mean, var) if name and name not in found.arrays]:
        got = sorted(map(str, values))
        where = f" with the prefix {prefix!r}" if prefix else ""
        raise ValueError(f"values: expected {' and '.join(missing)}{where}, got {got}")
    return found


def _without(record: Convention, full: str, prefix: str) -> str | None:
    """Give a name without collection and prefix; None if it has another prefix."""
    for collection in record.collections:
        full = full.removeprefix(collection)
    if prefix:
        bare = full.removeprefix(prefix)
        return None if bare == full else bare
    for usual in record.prefixes:
        full = full.removeprefix(usual)
    return full


def stored(record: Convention, arrays: Mapping[str, Any]) -> Stored:
    """Check dtypes, shapes and values; (1, ..., C) and (1, C, 1, 1) become (C,)."""
    four = {n: _vector(arrays[n], n) for n in record.names if n in arrays}
    extra = {name: arrays[name] for name in arrays if name not in four}
    for name in record.hidden or ():
        if name in extra:
            extra[name] = _vector(extra[name], name)
    mean, var = record.names[2:]
    features = four[mean].size
    if four[mean].ndim > 1:
        raise ValueError(
            f"{mean}: expected shape (C,), or C and axes of size 1, got {four[mean].shape}"
        )
    for name, array in {**four, **{n: extra[n] for n in record.hidden or () if n in extra}}.items():
        if array.shape != (features,):
            raise ValueError(f"{name}: expected shape ({features},), got {array.shape}")
    check_finite(mean, four[mean])
    check_finite(var, four[var], variance=True)
    return Stored(four, extra, features)


def _vector(value: Any, name: str) -> Array:
    if value is None:
        raise TypeError(f"{name}: expected an array of real numbers, got None")
    try:
        array = values_of(value, name)
    except ValueError:  # of nested lists
        raise TypeError(f"{name}: expected an array of real numbers, got unequal lists") from None
    if not (array.dtype.kind in "fiub" or np.can_cast(array.dtype, np.float64, "same_kind")):
        raise TypeError(f"{name}: expected an array of real numbers, got {array.dtype}")
    if array.dtype.kind not in "fiub":  # bfloat16 and others that NumPy does not have
        array = array.astype(np.float32)
    if array.ndim > 1 and max(array.shape) == array.size:
        return array.reshape(-1)
    return array


def stored_steps(record: Convention, arrays: Stored) -> int | None:
    """Give the number of batches, as far as the arrays tell it."""
    if (flag := record.first_flag) in arrays.extra and bool(values_of(arrays.extra[flag], flag)):
        return 0
    names = [name for name in record.counters if name in arrays.extra]
    counts = {counter_of(arrays.extra[name], name) for name in names}
    if len(counts) > 1:
        raise ValueError(f"{names[1]}: expected the same count as {names[0]}, got {sorted(counts)}")
    return counts.pop() if counts else None


def usable(
    record: Convention, arrays: Stored, steps: Steps | None, decay: float | None
) -> tuple[Values, Steps | None]:
    """Give the statistics as the library's inference uses them, and the number of batches."""
    mean, var = (arrays.arrays[name].astype(np.float64) for name in record.names[2:])
    if record.factor:
        scale, told = _of_factor(record, arrays, decay)
        mean, var, steps = mean * scale, var * scale, told if steps is None else steps
    if record.divided:
        if steps is None or decay is None:
            raise ValueError(
                f"steps: expected the number of batches, which {record.title} keeps as "
                f"{record.counters[0]}, got None"
            )
        if steps > 0:
            rest = complement(decay, steps)
            mean, var = mean / rest, var / rest
    if record.least_std:
        eps = arrays.extra["eps"]
        var = np.where(var + eps == 0, record.least_std**2 - eps, var)
    _check_hidden(record, arrays, steps, decay)
    return Values(mean, var), steps


def _of_factor(
    record: Convention, arrays: Stored, decay: float | None
) -> tuple[float, Steps | None]:
    """By what sums are multiplied; and the number of batches, which the factor tells."""
    if record.factor not in arrays.extra:
        raise ValueError(f"values: expected {record.factor}, got {sorted(arrays.arrays)}")
    array = values_of(arrays.extra[record.factor], record.factor)
    if array.size != 1 or not np.isfinite(array).all() or array.reshape(()) < 0:
        raise ValueError(f"{record.factor}: expected one number >= 0, got {array.tolist()}")
    factor = float(array.reshape(()))
    if factor == 0.0:
        return 0.0, 0
    # factor = (1 - d^k) / (1 - d), of which float32 keeps seven digits.
    if decay is None or not 0.0 < decay < 1.0:
        return 1.0 / factor, None
    left = 1.0 - factor * (1.0 - decay)
    if left < 1e-5:
        return 1.0 / factor, math.inf
    return 1.0 / factor, round(math.log(left) / math.log(decay))


def _check_hidden(
    record: Convention, arrays: Stored, steps: Steps | None, decay: float | None
) -> None:
    """ValueError where the average, the hidden value, the counter and the decay do not agree."""
    if record.hidden is None or steps is None or decay is None:
        return
    name, var = record.hidden[1], record.names[3]
    if name not in arrays.extra:
        return
    hidden, average = arrays.extra[name].astype(float), arrays.arrays[var].astype(float)
    expected = average * complement(decay, steps)
    if (abs(hidden - expected) > HIDDEN * abs(expected)).any():
        raise ValueError(
            f"{record.momentum_name}: expected the decay by which {name} and {var} differ after "
            f"{steps} batches, got {decay}"
        )


# --- the way back ---------------------------------------------------------------------------------


def shown(
    record: Convention,
    values: Values,
    steps: Steps | None,
    decay: float | None,
    dtype: np.dtype[Any],
    moved: bool,
) -> dict[str, Any]:
    """Give what the library stores where its inference is to use `values`: statistics, counters."""
    mean, var = values
    extra: dict[str, Any] = {}
    if record.hidden is not None or record.divided:
        steps = _counted(record, steps, decay, moved)
        scale = complement(decay, steps)  # type: ignore[arg-type]  # `_counted` has checked it
        if record.hidden is not None:
            extra |= dict(zip(record.hidden, (mean * scale, var * scale), strict=True))
        elif steps > 0:
            mean, var = mean * scale, var * scale
    if record.factor:
        if decay is None or decay == 1.0:
            raise ValueError(f"decay: expected a number other than 1, got {decay}")
        counted = math.inf if steps is None else steps
        factor = complement(decay, counted) / (1.0 - decay) if counted > 0 else float(var.any())
        mean, var = mean * factor, var * factor
        extra[record.factor] = np.array([factor], dtype)
    if record.first_flag:
        extra[record.first_flag] = np.array(not moved)
    arrays = dict(zip(record.names[2:], (mean, var), strict=True)) | extra
    found: dict[str, Any] = {}
    for name, array in arrays.items():
        with np.errstate(all="ignore"):  # what overflows is refused where it is read
            found[name] = array if array.dtype == bool else array.astype(dtype)
    for name in record.counters:
        if record.counts == "cumulative":
            found[name] = np.array(0 if steps is None or decay is not None else int(steps))
        elif steps is not None and math.isfinite(steps):
            found[name] = np.array(int(steps))
    return found


def _counted(record: Convention, steps: Steps | None, decay: float | None, moved: bool) -> int:
    """Give a number of batches that a counter can hold."""
    if decay is None:
        raise ValueError(f"bn: expected an exponential average, as {record.title}'s")
    if steps is None or (steps == 0 and moved):
        raise ValueError(
            f"steps: expected the number of batches of the statistics, which {record.title} stores "
            f"and divides by (math.inf where the initial values have decayed), got {steps}"
        )
    if math.isinf(steps):
        power(decay, steps)
        return 1 if decay == 0.0 else math.ceil(math.log(GONE) / math.log(abs(decay)))
    return int(steps)


def formed(record: Convention, arrays: dict[str, Any], channel_axis: int, ndim: int | None) -> None:
    """Give arrays the library's shape, in place of (C,), where it is another."""
    if record.form == "vector":
        return
    axes = axes_of(ndim, channel_axis, record.ndim)
    axis = channel_axis % axes
    named = record.form_of or (*record.names, *(record.hidden or ()))
    for name in named:
        if name in arrays:
            array = arrays[name]
            arrays[name] = array.reshape([array.size if n == axis else 1 for n in range(axes)])
    for name in record.trailing:
        if name in arrays:
            arrays[name] = arrays[name].reshape([-1, *[1] * (axes - 1 - axis)])
