"""Programs of `jax.jit` whose arrays lie in shards: each device computes on its shard.

XLA divides the operations of a program among devices. A foreign function is opaque to it, so it
would put whole arrays together for each device. `across` tells it how an operation of a call is
divided: along the axes that `jax.vmap` has added and along channels there is nothing to exchange;
along the other axes of x lie parts of one batch, which are merged as under `jax.shard_map`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import NamedSharding, PartitionSpec

from bnext.jax.foreign import (
    Factors,
    Operation,
    Struct,
    call,
    varying_axes,
    words_of_flags,
)

__all__ = ["Arrays", "across", "alike", "phase"]

Arrays = Mapping[str, Any]
Body = Callable[[Any, Arrays], Arrays]


class Plan(NamedTuple):
    """An operation as XLA divides it; a constant of the program."""

    body: Body
    how: Operation
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    # For each axis that vmap has added, the oldest first: which arguments have it. It is their
    # first axis, before older ones, and all results have it.
    mapped: tuple[tuple[bool, ...], ...] = ()

    def factors(self, name: str, rank: int, place: int | None = None) -> Factors:
        """Name the factors of the axes of an array; None is for axes that are not divided.

        Parameters
        ----------
        name : str
            Of an argument or a result.
        rank : int
            The number of its axes.
        place : int, optional
            Its place among the arguments; a result has none.
        """
        levels = [
            f"m{level}"
            for level, has in reversed(list(enumerate(self.mapped)))
            if place is None or has[place]
        ]
        return [*levels, *self.how.factors(name, rank - len(levels))]

    def all_factors(self, ranks: Sequence[int]) -> list[Factors]:
        """Name the factors of all arguments and all results."""
        names = (*self.arguments, *self.results)
        places = (*range(len(self.arguments)), *(None,) * len(self.results))
        return [self.factors(*each) for each in zip(names, ranks, places, strict=True)]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A body which is one call of a handler."""

    name: str
    results: tuple[tuple[str, Struct], ...]

    def __call__(self, how: Operation, arguments: Arrays) -> Arrays:
        return call(self.name, how, arguments, dict(self.results))


def across(
    body: Body, how: Operation, arguments: Mapping[str, Any], results: Sequence[str]
) -> Mapping[str, Any]:
    """Compute `body` of the arguments that are not None, divided as these are.

    Parameters
    ----------
    body : callable
        From how and arguments to results, all by their names. `how.axes` names axes of a mesh where
        the arguments are parts of a batch.
    how : Operation
        Of the call.
    arguments : mapping
        Arrays; None stays away.
    results : sequence of str
        What is wanted of the results.
    """
    given = {name: array for name, array in arguments.items() if array is not None}
    composed = how.axes and not isinstance(body, Phase)
    if composed or not _in_shards(given):
        return _with_words(body, how, given)
    plan = Plan(body, how, tuple(given), tuple(results))
    return dict(zip(results, _compute(plan, *given.values()), strict=True))


def phase(
    name: str, how: Operation, arguments: Arrays, results: Mapping[str, Struct]
) -> Mapping[str, Any]:
    """Call a handler with parts of a batch, which lie along an axis of vmap's or of a mesh.

    The first is divided where the arrays are: `jax.vmap` has the batch, a mesh has shards of it.
    """
    return across(Phase(name, tuple(results.items())), how, arguments, tuple(results))


def _in_shards(given: Arrays) -> bool:
    """Whether a program may divide the arrays: there are devices, and nobody has divided them."""
    if jax.device_count() == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return False
    return not any(varying_axes(array) for array in given.values())


# --- meshes with explicit axes --------------------------------------------------------------------


def alike(how: Operation, **given: Any) -> list[Any]:
    """Give arrays with the types that go with the type of x; None stays None.

    Gradients are the other way then: each has the type of its array.
    """
    mesh = _explicit_mesh(array for array in given.values() if array is not None)
    if mesh is None:
        return list(given.values())
    whole = how.over({})  # where vmap's axis has the batch, axes of x are still divided
    x = given["x"]
    entries = dict(zip(whole.factors("x", x.ndim), jax.typeof(x).sharding.spec, strict=True))

    def cast(name: str, array: Any) -> Any:
        factors = whole.factors(name, array.ndim)
        of = PartitionSpec(*(factor and entries[factor] for factor in factors))
        return jax.sharding.reshard(array, NamedSharding(mesh, of))

    return [each if each is None else cast(name, each) for name, each in given.items()]


def _explicit_mesh(given: Iterable[Any]) -> Any:
    """Find the mesh whose axes are part of the types of arrays; None if there is none."""
    for array in given:
        sharding = jax.typeof(array).sharding
        if any(entry is not None for entry in sharding.spec):
            return sharding.mesh
    return None


def _by_shard_map(plan: Plan, mesh: Any, given: Sequence[Any]) -> Sequence[Any]:
    """Compute on the shards that the types of arrays tell."""
    described = [
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=jax.typeof(each).sharding)
        for each in given
    ]
    count = len(described)
    structs = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in described]
    described += jax.eval_shape(_function(plan, plan.how), *structs)
    found = _division(plan, mesh, described)
    specs = [each.spec for each in _shardings(plan, mesh, described, found)]
    arrays = [
        jax.sharding.reshard(array, NamedSharding(mesh, spec))
        for array, spec in zip(given, specs, strict=False)
    ]
    function = jax.shard_map(
        _function(plan, _of_parts(plan, mesh, found)), mesh=mesh,
        in_specs=tuple(specs[:count]), out_specs=tuple(specs[count:]), check_vma=False,
    )  # fmt: skip
    results: Sequence[Any] = function(*arrays)
    return results


# --- flags ----------------------------------------------------------------------------------------


def _with_words(body: Body, how: Operation, arguments: Arrays) -> Arrays:
    """Compute, where flags that have the shape of x may be among the arguments."""
    flags = arguments.get("flags")
    if flags is None or flags.dtype != jnp.uint8:
        return body(how, arguments)
    (words,), _ = words_of_flags(flags)
    bits = jnp.pad(flags.reshape(-1), (0, words * 16 - flags.size)).reshape(-1, 16)
    packed = (bits.astype(jnp.uint16) << jnp.arange(16, dtype=jnp.uint16)).sum(1, dtype=jnp.uint16)
    return body(how, {**arguments, "flags": packed})


def _with_bits(plan: Plan, how: Operation, arguments: Arrays) -> Sequence[Any]:
    """Compute, with flags that have the shape of x: the words of a shard are no part of all words.

    In a program of one device they cost a byte for each value in place of a bit.
    """
    found = dict(_with_words(plan.body, how, arguments))
    flags = found.get("flags")
    if flags is not None and not plan.how.axes:
        x = arguments["x"]
        bits = (flags[:, None] >> jnp.arange(16, dtype=flags.dtype)) & 1
        found["flags"] = bits.reshape(-1)[: x.size].reshape(x.shape).astype(jnp.uint8)
    return tuple(found[name] for name in plan.results)


# --- division -------------------------------------------------------------------------------------


def _function(plan: Plan, how: Operation) -> Callable[..., Sequence[Any]]:
    """Give the function that computes on arrays, or on the shards of one device."""

    def function(*arrays: Any) -> Sequence[Any]:
        return _with_bits(plan, how, dict(zip(plan.arguments, arrays, strict=True)))

    for has in plan.mapped:
        function = jax.vmap(function, [0 if each else None for each in has])
    return function


def _compute(plan: Plan, *arrays: Any) -> Sequence[Any]:
    mesh = _explicit_mesh(arrays)
    return _divided(plan)(*arrays) if mesh is None else _by_shard_map(plan, mesh, arrays)


@functools.lru_cache(maxsize=4096)
def _divided(plan: Plan) -> Callable[..., Sequence[Any]]:
    """Give the function for arrays that may be in shards."""
    partitioned = custom_partitioning(_function(plan, plan.how))
    partitioned.def_partition(
        partition=functools.partial(_partition, plan),
        infer_sharding_from_operands=functools.partial(_infer, plan),
        sharding_rule=functools.partial(_rule, plan),
    )
    # Without jit, a call outside of every program would compute on whole arrays.
    function = custom_vmap(jax.jit(lambda *arrays: partitioned(*arrays)))

    @function.def_vmap
    def mapped(_: int, has: Sequence[bool], *arrays: Any) -> tuple[Any, Any]:
        more = plan._replace(mapped=(*plan.mapped, tuple(has)))
        return _compute(more, *arrays), (True,) * len(plan.results)

    return function


def _rule(plan: Plan, mesh: Any, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
    """Tell Shardy which axes of arguments and results go together."""
    del mesh
    ranks = [len(each.shape) for each in (*arguments, *results)]
    whole: list[str] = []  # factors of axes that are not divided

    def named(factor: str | None) -> str:
        if factor is not None:
            return factor
        whole.append(f"w{len(whole)}")
        return whole[-1]

    mappings = [
        ArrayMapping(*(named(factor) for factor in each)) for each in plan.all_factors(ranks)
    ]
    count = len(plan.arguments)
    return SdyShardingRule(
        tuple(mappings[:count]), tuple(mappings[count:]), need_replication_factors=tuple(whole)
    )


def _names(entry: Any) -> tuple[Any, ...]:
    """Give the axes of a mesh along which an axis of an array is divided."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _division(plan: Plan, mesh: Any, described: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """Find the axes of a mesh that divide each factor: the first array that is divided decides."""
    found: dict[str, tuple[Any, ...]] = {}
    used: set[Any] = set()
    every = plan.all_factors([len(each.shape) for each in described])
    for each, factors in zip(described, every, strict=True):
        if not isinstance(each.sharding, NamedSharding):
            continue
        for factor, extent, entry in zip(factors, each.shape, each.sharding.spec, strict=False):
            names = _names(entry)
            parts = math.prod(mesh.shape[name] for name in names)
            # What does not come out even, or would be divided along two axes, stays whole.
            divides = parts > 1 and extent % parts == 0 and not used & set(names)
            if divides and factor and factor not in found:
                found[factor] = names
                used |= set(names)
    return found


def _shardings(plan: Plan, mesh: Any, described: Sequence[Any], found: Any) -> list[Any]:
    every = plan.all_factors([len(each.shape) for each in described])
    return [
        NamedSharding(mesh, PartitionSpec(*(found.get(factor) for factor in factors)))
        for factors in every
    ]


def _of_parts(plan: Plan, mesh: Any, found: Mapping[str, tuple[Any, ...]]) -> Operation:
    """Give how of a call on shards.

    Ranks are in the order of the axes of x, the first the slowest: as values lie in memory.
    """
    if plan.how.axes:
        return plan.how
    return plan.how.over({
        int(factor[1:]): tuple((name, mesh.shape[name]) for name in names)
        for factor, names in found.items()
        if factor[0] == "d"
    })  # fmt: skip


def _infer(plan: Plan, mesh: Any, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
    """Tell GSPMD the shardings of results."""
    described = [*arguments, *(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in results)]
    found = _division(plan, mesh, described)
    return tuple(_shardings(plan, mesh, described, found)[len(arguments) :])


def _partition(plan: Plan, mesh: Any, arguments: Sequence[Any], results: Sequence[Any]) -> Any:
    """Give the function that each device computes, and how arguments and results are divided."""
    described = [*arguments, *results]
    found = _division(plan, mesh, described)
    shardings = _shardings(plan, mesh, described, found)
    how = _of_parts(plan, mesh, found)
    count = len(arguments)
    return mesh, _function(plan, how), tuple(shardings[count:]), tuple(shardings[:count])
