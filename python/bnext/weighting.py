"""Which positions of an input count, and how much: masks, lengths and weights for kernels.

A position is an index of all axes but the channels'. Whatever the arguments are, they become one
thing: for each position a weight of at least 0. A position of weight 0 does not count: what is
there is never part of a sum, NaN and infinities neither, and has gradients of 0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from numpy import ndarray

from bnext import _core
from bnext.arguments import values_of
from bnext.arrays import engine_of
from bnext.arrays.libraries import library_of

__all__ = [
    "ZERO", "Masked", "Weighting", "check_masked", "check_positions", "names_positions",
    "over_positions", "total_weight", "weighting_of",
]  # fmt: skip

Masked = Literal["zero", "normalized", "unchanged"]
ZERO: Masked = "zero"  # the default, which a call that leaves it out hands on as this object
# Whether each position counts (bytes), its weight or None, what y has at others, and the name of
# the argument that errors are about.
Weighting = tuple[npt.NDArray[np.uint8], npt.NDArray[Any] | None, str, str]

OUTSIDES = ("zero", "normalized", "unchanged")
WEIGHTS = {"float64": np.float64}  # by the dtype of x; others: float32

Function = TypeVar("Function", bound=Any)
KEYWORDS: dict[str, str | None] = {
    "mask": None,
    "sample_weight": None,
    "lengths": None,
    "offsets": None,
    "masked": "zero",
}


def names_positions(function: Function) -> Function:
    """Give a function the signature that has these arguments in place of its ``**positions``.

    CPython looks up the default of each argument that is only given by name: for these five it
    would take a twentieth of a small call.
    """
    signature = inspect.signature(function)
    named = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    given = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation="Any")
        for name, default in KEYWORDS.items()
    ]
    function.__signature__ = signature.replace(parameters=[*named, *given])
    return function


def check_positions(function: Any, positions: Mapping[str, Any]) -> None:
    """TypeError for a name that is none of the five, as the interpreter words it."""
    for name in positions:
        if name not in KEYWORDS:
            raise TypeError(
                f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
            )


def weighting_of(
    x: Any,
    channel_axis: Any,
    mask: Any = None,
    sample_weight: Any = None,
    lengths: Any = None,
    masked: Any = "zero",
    offsets: Any = None,
) -> Weighting | None:
    """Check these arguments of a call, and give what an engine takes.

    Parameters
    ----------
    x : array
        The input of the call.
    channel_axis : int
        Which axis of it has the channels.
    mask, sample_weight, lengths, masked, offsets
        As `bnext.batch_norm_forward` takes them.

    Returns
    -------
    Weighting or None
        None where nothing was given, and where all positions count once.

    Raises
    ------
    ValueError
        A shape does not fit, a weight is negative or not finite in the dtype of the parameters, a
        length is not from 0 to the axis' extent, offsets decrease or leave the axis, `mask` was
        given beside `lengths` or `offsets`, or `masked` is not one of the three.
    TypeError
        `mask` is not of bools, `lengths` or `offsets` not of integers, `sample_weight` not of real
        numbers; it is a tensor that requires a gradient, of which there is none.
    """
    check_masked(masked)
    if mask is None and sample_weight is None and lengths is None and offsets is None:
        return None
    for other, given in (("lengths", lengths), ("offsets", offsets)):
        if mask is not None and given is not None:
            raise ValueError(f"{other}: expected None beside a mask, got both")
    shape, dtype = _described(x)
    axis = _core.check_axis(channel_axis, len(shape))
    positions = shape[:axis] + shape[axis + 1 :]
    counts = weights = None
    name = "sample_weight"
    if mask is not None:
        name, counts = "mask", _mask(mask, shape, axis)
    elif offsets is not None:
        segments = Segments(offsets, lengths, positions)
        name, counts = "offsets", segments.counts()
        sample_weight = segments.spread(sample_weight)
    elif lengths is not None:
        name, counts = "lengths", _lengths(lengths, shape, axis)
    if sample_weight is not None:
        weights = _weights(sample_weight, shape, axis, np.dtype(WEIGHTS.get(dtype, np.float32)))
        positive = weights > 0
        counts = positive if counts is None else counts & positive
        if (np.where(counts, weights, 1) == 1).all():
            weights = None
    assert counts is not None
    if weights is None and counts.all():
        return None
    ready = np.ascontiguousarray(np.broadcast_to(counts, positions)).view(np.uint8)
    if weights is not None:
        weights = np.ascontiguousarray(np.broadcast_to(weights, positions))
    return ready, weights, masked, name


def check_masked(masked: Any) -> None:
    """Refuse anything but the three."""
    if masked not in OUTSIDES:
        text = repr(masked) if isinstance(masked, str) else type(masked).__name__
        raise (ValueError if isinstance(masked, str) else TypeError)(
            f"masked: expected 'zero', 'normalized' or 'unchanged', got {text}"
        )


def total_weight(weighting: Weighting) -> float:
    """Sum of the weights of all positions: an integer where none has a weight of its own."""
    counts, weights, *_ = weighting
    return int(counts.sum()) if weights is None else math.fsum(weights[counts > 0].tolist())


class Segments:
    """Examples that follow each other along the first axis of the positions.

    Example b has positions ``offsets[b]`` to ``offsets[b + 1]``, or the first ``lengths[b]`` of
    them.
    """

    def __init__(self, offsets: Any, lengths: Any, positions: tuple[int, ...]) -> None:
        ends = _integers(offsets, "offsets")
        if ends.ndim != 1 or ends.size == 0:
            raise ValueError(
                f"offsets: expected shape (B + 1,) for B examples, got {tuple(ends.shape)}"
            )
        if not positions:
            raise ValueError("offsets: expected x with examples beside its channels, got none")
        if (np.diff(ends) < 0).any():
            raise ValueError("offsets: expected integers that do not decrease, got some that do")
        if ends[0] < 0 or ends[-1] > positions[0]:
            wrong = ends[0] if ends[0] < 0 else ends[-1]
            raise ValueError(f"offsets: expected integers from 0 to {positions[0]}, got {wrong}")
        self.positions: tuple[int, ...] = positions
        self.begins: npt.NDArray[np.int64] = ends[:-1]
        self.sizes: npt.NDArray[np.int64] = np.diff(ends)
        self.taken: npt.NDArray[np.int64] = self.sizes
        if lengths is not None:
            self.taken = _integers(lengths, "lengths")
            if self.taken.shape != self.sizes.shape:
                raise ValueError(
                    f"lengths: expected shape {self.sizes.shape} beside offsets, got "
                    f"{tuple(self.taken.shape)}"
                )
            wrong = self.taken[(self.taken < 0) | (self.taken > self.sizes)]
            if wrong.size:
                raise ValueError(
                    "lengths: expected integers from 0 to the extent of each example, got "
                    f"{wrong[0]}"
                )

    def counts(self) -> npt.NDArray[np.bool_]:
        """Give what counts, of a shape that broadcasts to the positions."""
        changes = np.zeros(self.positions[0] + 1, np.int64)
        np.add.at(changes, self.begins, 1)
        np.add.at(changes, self.begins + self.taken, -1)
        inside = np.cumsum(changes[:-1]) > 0
        return inside.reshape(-1, *(1,) * (len(self.positions) - 1))

    def spread(self, weights: Any) -> Any:
        """Give weights of examples, shape (B,), as weights of positions; others as they are."""
        if weights is None or getattr(weights, "shape", None) != self.sizes.shape:
            return weights
        library = library_of(weights)
        readable = weights if library is None else library.readable(weights, "sample_weight")
        given = values_of(readable, "sample_weight")
        spread = np.zeros(self.positions[0], given.dtype)
        begin = int(self.begins[0]) if len(self.begins) else 0
        spread[begin : begin + int(self.sizes.sum())] = np.repeat(given, self.sizes)
        return np.broadcast_to(
            spread.reshape(-1, *(1,) * (len(self.positions) - 1)), self.positions
        )


def _integers(given: Any, name: str) -> npt.NDArray[np.int64]:
    values = values_of(given, name)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected dtype int64 or another of integers, got {values.dtype}")
    return values.astype(np.int64)


def _described(x: Any) -> tuple[tuple[int, ...], str]:
    """Shape of x, and the name of its dtype."""
    if not isinstance(x, ndarray):
        engine: Any = engine_of(x)
        x = engine.as_array(x=x, name="x")
        if not isinstance(x, ndarray):
            shape, dtype = engine.inspect(x=x)
            return tuple(shape), str(dtype)
    return x.shape, x.dtype.name


def over_positions(
    values: Any, name: str, shape: tuple[int, ...], axis: int, *, by_example: bool
) -> Any:
    """`values`, of a shape that broadcasts to the shape of the positions."""
    positions = shape[:axis] + shape[axis + 1 :]
    given = values.shape
    if by_example and len(given) == 1 and len(positions) > 1 and given == positions[:1]:
        return values.reshape(given + (1,) * (len(positions) - 1))
    if len(given) == len(shape) and given[axis] == 1:
        values = values.reshape(given[:axis] + given[axis + 1 :])
    if len(values.shape) == len(positions) and all(
        one in (1, other) for one, other in zip(values.shape, positions, strict=True)
    ):
        return values
    with_one = (*shape[:axis], 1, *shape[axis + 1 :])
    examples = f", {positions[:1]}" if by_example and len(positions) > 1 else ""
    raise ValueError(
        f"{name}: expected shape {positions} or {with_one}{examples} (an axis may be 1), "
        f"got {given}"
    )


def _mask(mask: Any, shape: tuple[int, ...], axis: int) -> npt.NDArray[np.bool_]:
    values = values_of(mask, "mask")
    if values.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {values.dtype}")
    of_positions: npt.NDArray[np.bool_] = over_positions(
        values, "mask", shape, axis, by_example=False
    )
    return of_positions


def _lengths(lengths: Any, shape: tuple[int, ...], axis: int) -> npt.NDArray[np.bool_]:
    values = _integers(lengths, "lengths")
    positions = shape[:axis] + shape[axis + 1 :]
    if len(positions) != 2:
        raise ValueError(
            "lengths: expected x of 3 dimensions, examples, channels and one more, got "
            f"{len(shape)}"
        )
    if values.shape != positions[:1]:
        raise ValueError(f"lengths: expected shape {positions[:1]}, got {values.shape}")
    extent = positions[1]
    if values.size and (values.min() < 0 or values.max() > extent):
        wrong = values[(values < 0) | (values > extent)][0]
        raise ValueError(f"lengths: expected integers from 0 to {extent}, got {wrong}")
    return np.arange(extent) < values[:, None]


def _weights(
    weights: Any, shape: tuple[int, ...], axis: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    if (library := library_of(weights)) is not None:
        weights = library.readable(weights, "sample_weight")  # which would get no gradient
    given = values_of(weights, "sample_weight")
    if given.dtype.kind not in "fiu" and not _core.is_data_dtype(given.dtype):
        raise TypeError(f"sample_weight: expected an array of real numbers, got {given.dtype}")
    with np.errstate(all="ignore"):
        values = given.astype(dtype)
    if values.size and not (values.min() >= 0 and math.isfinite(values.max())):
        wrong = given[~((values >= 0) & np.isfinite(values))].reshape(-1)[0]
        raise ValueError(
            f"sample_weight: expected weights of at least 0, finite in {dtype}, got {wrong}"
        )
    of_positions: npt.NDArray[Any] = over_positions(
        values, "sample_weight", shape, axis, by_example=True
    )
    return of_positions
