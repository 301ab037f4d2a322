"""Foreign functions of XLA: how programs of JAX call the kernels.

What a handler gets is described in csrc/xla: arrays by their names, and numbers. Numbers in float64
(statistics, sums) are pairs of words in a program, since JAX has no float64 by default.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.core import extend_axis_env_nd  # which has no public name

from bnext import _core
from bnext.jax import gpu

__all__ = [
    "ROWS", "SHARD_ROWS", "Factors", "How", "Operation", "Struct", "add_parts", "call", "call_by",
    "gathered", "register", "shards_of", "together", "varying_axes", "words", "words_of_flags",
    "words_of_total",
]  # fmt: skip

ROWS = len(_core.ROWS)
SHARD_ROWS = 4  # n, mean, mean_low and m2
Struct = tuple[tuple[int, ...], Any]  # shape and dtype of a result


Factors = list[str | None]  # of the axes of an array, by name; None: an axis that stays whole
DATA = ("x", "dy", "residual", "y", "dx", "dresidual")  # these have the shape of x
POSITIONS = ("counts", "weights")  # these have it without channels
CHANNELS_AT = {  # which axis has the channels, from the back
    "weight": -1, "bias": -1, "mean": -1, "var": -1, "dweight": -1, "dbias": -1, "values": -1,
    "statistics": -2, "shard": -2, "shards": -2, "sums": -2,
}  # fmt: skip


class Operation(Protocol):
    """What of a call is no array; a constant of the program."""

    @property
    def axes(self) -> tuple[tuple[Any, int], ...]:
        """Names and sizes of the axes that have parts of the batch."""

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""

    def factors(self, name: str, rank: int) -> Factors:
        """Name the factors of the axes of an argument or a result: "d0" goes with axis 0 of x."""

    def over(self, axes: Mapping[int, tuple[tuple[Any, int], ...]]) -> Operation:
        """Give the operation on shards, by the axes of x that axes of a mesh divide."""


class How(NamedTuple):
    """What of a call of batch normalization is no array; a constant of the program."""

    eps: float
    channel_axis: int  # from the front
    axes: tuple[tuple[Any, int], ...]  # names and sizes of those that have parts of the batch
    activation: str | None
    negative_slope: float
    residual: bool
    masked: str | None = None  # what y has where positions do not count; None: all count

    @property
    def parts(self) -> int:
        """How many parts the batch has."""
        return math.prod(size for _, size in self.axes)

    def attributes(self) -> dict[str, Any]:
        """Give what handlers read of it."""
        return {
            "channel_axis": np.int64(self.channel_axis), "eps": np.float64(self.eps),
            "activation": self.activation or "none",
            "negative_slope": np.float64(self.negative_slope), "residual": self.residual,
            **({} if self.masked is None else {"masked": self.masked}),
        }  # fmt: skip

    @property
    def keeps_flags(self) -> bool:
        """Whether the forward pass leaves flags, by which the backward pass does without z."""
        return self.residual and self.activation in ("relu", "relu6", "leaky_relu")

    @property
    def reads_residual(self) -> bool:
        """Whether the backward pass reads the residual."""
        return self.residual and self.activation is not None and not self.keeps_flags

    @property
    def writes_dresidual(self) -> bool:
        """Whether the gradient by the residual is not dy."""
        return self.residual and (self.activation is not None or self.masked is not None)

    def factors(self, name: str, rank: int) -> Factors:
        """Name the factors of an array; of parts along an axis of vmap's, none is divided."""
        found: Factors = [None] * rank
        if self.axes:
            return found
        if name in DATA or name == "flags":
            # Flags of a program in which the batch may be divided have the shape of x.
            return [f"d{axis}" for axis in range(rank)]
        if name in POSITIONS:
            return [f"d{axis}" for axis in range(rank + 1) if axis != self.channel_axis]
        if name in CHANNELS_AT:
            found[CHANNELS_AT[name]] = f"d{self.channel_axis}"
        return found

    def over(self, axes: Mapping[int, tuple[tuple[Any, int], ...]]) -> How:
        """Give how of a call on shards, whose parts lie along all axes but the channels'."""
        parts = (axes[axis] for axis in sorted(axes) if axis != self.channel_axis)
        return self._replace(axes=tuple(each for part in parts for each in part))


def register() -> None:
    """Tell XLA the handlers; ImportError in a build that has none."""
    targets = _core.foreign_targets()
    if targets is None:
        raise ImportError(
            "bnext.jax: expected a build with foreign functions for JAX, got one without: the "
            "headers that jaxlib brings along were not there when bnext was built. With jax "
            "installed, build again: "
            "pip install --force-reinstall --no-deps . -C cmake.define.BNEXT_XLA=ON"
        )
    for name, handler in targets.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    gpu.register()


def words(*shape: int) -> Struct:
    """Describe an array of numbers in float64 as words."""
    return (*shape, 2), jnp.uint32


def words_of_flags(x: Any) -> Struct:
    """Describe the flags of all values of x, a bit each."""
    return ((x.size + 15) // 16 + 2,), jnp.uint16


@contextlib.contextmanager
def _axes_in_reach(how: Operation) -> Iterator[tuple[Any, ...]]:
    """Bind the axes of a call: `jax.vmap` has taken its axis away when it calls a backward rule."""
    missing = []
    for name, size in how.axes:
        try:
            lax.axis_size(name)
        except NameError:
            missing.append((name, size))
    with extend_axis_env_nd(missing) if missing else contextlib.nullcontext():
        yield tuple(name for name, _ in how.axes)


def add_parts(how: Operation, values: Any) -> Any:
    """Add what the parts of a batch have."""
    if not how.axes:
        return values
    with _axes_in_reach(how) as names:
        return lax.psum(values, names)


def gathered(how: How, part: Any) -> Any:
    """Give what all parts of the batch have, in the order of ranks.

    A sum of words to which each part adds its own, and zeros: nothing is rounded, and `shard_map`
    knows that the result is the same everywhere.
    """
    if not how.axes:
        return part[None]
    with _axes_in_reach(how) as names:
        rank = lax.axis_index(names)
    mine = (jnp.arange(how.parts) == rank).reshape(-1, *(1,) * part.ndim)
    return add_parts(how, jnp.where(mine, part[None], jnp.zeros_like(part)[None]))


def words_of_total(total: float) -> Any:
    """Give a number that is known while a program is traced as words."""
    return jnp.asarray(np.array([total], np.float64).view(np.uint32))


def shards_of(how: How, total: Any, channels: int) -> Any:
    """Give moments of shards as a backward pass needs them: the first has the whole weight."""
    shards = jnp.zeros((how.parts, SHARD_ROWS, channels, 2), jnp.uint32)
    return shards.at[0, 0].set(total)


def varying_axes(array: Any) -> frozenset[Any]:
    """Name the axes of a mesh along which an array differs, as far as `shard_map` knows."""
    axes: frozenset[Any] = jax.typeof(array).manual_axis_type.varying
    return axes


def together(*arrays: Any) -> list[Any]:
    """Give arrays that differ along the same axes of a mesh; None stays None.

    An array that is the same everywhere becomes one that differs, whose gradient is the sum of the
    gradients of all devices.
    """
    axes = frozenset[Any]().union(*(varying_axes(each) for each in arrays if each is not None))

    def cast(array: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(array), key=str))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return [each if each is None else cast(each) for each in arrays]


def _struct(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Describe a result, which differs along the axes of a mesh along which `like` does."""
    of = jax.typeof(like)
    if not of.manual_axis_type.varying:
        return jax.ShapeDtypeStruct(shape, dtype)
    sharding = jax.sharding.NamedSharding(of.sharding.mesh, jax.P(*(None,) * len(shape)))
    manual = of.manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding, manual_axis_type=manual)


def call(
    name: str, how: Operation, arguments: Mapping[str, Any], results: Mapping[str, Struct]
) -> dict[str, Any]:
    """Call a handler with the arguments that are not None; give its results, by name."""
    found = call_by(name, arguments, results, how.attributes())
    return dict(zip(results, found, strict=True))


def call_by(
    name: str, arguments: Mapping[str, Any], results: Mapping[str, Struct],
    attributes: Mapping[str, Any],
) -> Sequence[Any]:  # fmt: skip
    """Do `call`, with any attributes. The first argument has the axes that slices have."""
    names = tuple(each for each, array in arguments.items() if array is not None)
    arrays = together(*(arguments[each] for each in names))
    # An attribute of 1.0 equals one of 1 and of True: the types are part of the constants.
    constants = tuple((name, value, type(value)) for name, value in attributes.items())
    found: Sequence[Any] = _program(name, names, tuple(results.items()), constants)(*arrays)
    return found


@functools.lru_cache(maxsize=4096)
def _program(
    name: str, names: tuple[str, ...], results: tuple[tuple[str, Struct], ...],
    constants: tuple[tuple[str, Any, type], ...],
) -> Callable[..., Any]:  # fmt: skip
    """Make a call for the platform of the program that it becomes part of.

    Without `jax.jit`, a call outside of every program would go to JAX's default platform, and not
    where its arrays are.
    """
    structs = dict(results)
    attributes = {name: value for name, value, _ in constants}

    def cpu(*arrays: Any) -> Sequence[Any]:
        given = dict(zip(names, arrays, strict=True))
        return _invoke(f"bnext_{name}", given, structs, attributes)

    def cuda(*arrays: Any) -> Sequence[Any]:
        given = dict(zip(names, arrays, strict=True))
        return gpu.call(_invoke, name, given, structs, attributes)

    def program(*arrays: Any) -> Any:
        return lax.platform_dependent(*arrays, cpu=cpu, cuda=cuda)

    program.__name__ = f"call_{name}"
    return jax.jit(program)


def _invoke(
    target: str, arguments: Mapping[str, Any], results: Mapping[str, Struct],
    attributes: Mapping[str, Any],
) -> Sequence[Any]:  # fmt: skip
    """Call a target of XLA's, whose arrays have names."""
    first = next(iter(arguments.values()))
    structs = [_struct(first, *result) for result in results.values()]
    # Under vmap, arrays get further axes in front, of extent 1 where they are not mapped: nothing
    # is copied for each of the mapped calls.
    found: Sequence[Any] = jax.ffi.ffi_call(target, structs, vmap_method="expand_dims")(
        *arguments.values(),
        arguments=" ".join(arguments),
        results=" ".join(results),
        rank=np.int64(first.ndim),
        **attributes,
    )
    return found
