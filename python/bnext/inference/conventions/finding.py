"""Which conventions a set of names fits, and where a checkpoint has layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bnext.inference.conventions.hyperparameters import text_of
from bnext.inference.conventions.libraries import CONVENTIONS, convention_of
from bnext.inference.conventions.reading import SEPARATORS, flat
from bnext.inference.conventions.record import Convention

__all__ = ["Found", "chosen", "find_layers", "guess_convention"]


class Found(NamedTuple):
    """The names of one layer in a checkpoint."""

    prefix: str  # what stands before its names, without a collection
    candidates: tuple[str, ...]  # conventions that its names fit
    names: tuple[str, ...]  # full ones


def guess_convention(names: Iterable[str], *, prefix: str = "") -> list[str]:
    """List the conventions that the names of a layer's arrays fit.

    Names rarely tell a library: Keras and MindSpore share all four, and so do PyTorch, MLX, Jittor
    and e3nn, while the meaning of their values differs. So nothing is chosen.

    Parameters
    ----------
    names : iterable of str
        Names of the layer's arrays, as `from_convention` takes them: a mapping's, also nested.
    prefix : str
        What stands before the layer's names, in a checkpoint with more of them.

    Returns
    -------
    list of str
        Names of conventions. With ``num_batches_tracked`` PyTorch is one of four, which mean the
        same.

    Raises
    ------
    TypeError
        `names` is a str or no iterable, or `prefix` no str.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(
            f"names: expected names of arrays, or a mapping by them, got {type(names).__name__}"
        )
    text_of(prefix, "prefix")
    given = list(flat(names)) if isinstance(names, Mapping) else [str(name) for name in names]
    found = [name for name, record in CONVENTIONS.items() if _fits(record, given, prefix)]
    if "equinox-ema" in found and "counter" in {n.removeprefix(prefix) for n in given}:
        found.remove("equinox-ema")
    return found


def _fits(record: Convention, names: Iterable[str], prefix: str) -> bool:
    numbers = record.hyperparameters()
    bare = {_bare(record, name, prefix) for name in names if name not in numbers} - {None}
    known = {*filter(None, record.names), *record.optional_names()}
    return bool(bare) and bare <= known and _needed(record) <= bare


def _needed(record: Convention) -> set[str]:
    needed = {*filter(None, record.names[2:]), record.factor}
    if record.divided:
        needed |= set(record.counters)
    if record.folded or record.needs_parameters:
        needed |= set(record.names[:2])
    return needed - {""}


def _bare(record: Convention, name: str, prefix: str) -> str | None:
    """Give the convention's name of an array, None of another layer's."""
    for collection in record.collections:
        name = name.removeprefix(collection)
    if prefix:
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
    else:
        for usual in record.prefixes:
            name = name.removeprefix(usual)
    return record.aliases.get(name, name)


def find_layers(
    names: Iterable[str], conventions: Iterable[str] = (), prefix: str = ""
) -> list[Found]:
    """Find the layers of a checkpoint: sets of names with one prefix that fit conventions.

    Of all conventions, or those that are named. A name belongs to one layer: to the one that has
    the most names. Layers have the order of their names.
    """
    given = list(names)
    sets: dict[tuple[str, frozenset[str]], list[str]] = {}
    for key in conventions or CONVENTIONS:
        record = convention_of(key)
        if not record.folded:
            for place, members in _layers(record, given).items():
                sets.setdefault((place, members), []).append(key)
    claimed: set[str] = set()
    found = []
    for place, members in sorted(sets, key=lambda item: (-len(item[1]), len(item[0]))):
        if place.startswith(prefix) and not members & claimed:
            claimed |= members
            fitting = tuple(sets[place, members])
            found.append(Found(place, fitting, tuple(n for n in given if n in members)))
    order = {name: number for number, name in enumerate(given)}
    return sorted(found, key=lambda layer: order[layer.names[0]])


def _layers(record: Convention, names: list[str]) -> dict[str, frozenset[str]]:
    """Give the full names of each layer by its prefix, as far as this convention goes."""
    known = {*filter(None, record.names), *record.optional_names(), *record.aliases}
    usual = tuple(known)
    by_place: dict[str, dict[str, str]] = {}
    beside: dict[str, list[tuple[str, str]]] = {}  # names by what their last separator ends
    for full in names:
        bare = full
        for collection in record.collections:
            bare = bare.removeprefix(collection)
        beside.setdefault(_parent(bare), []).append((full, bare))
        if not bare.endswith(usual):
            continue
        endings = [k for k in known if bare.endswith(k) and _ends(record, bare[: -len(k)])]
        if endings:
            ending = max(endings, key=len)
            by_place.setdefault(bare[: -len(ending)], {})[full] = record.aliases.get(ending, ending)
    return {
        place: frozenset(members)
        for place, members in by_place.items()
        if _needed(record) <= set(members.values())
        and len(set(members.values())) == len(members)
        and not any(
            bare.startswith(place) and full not in members
            for full, bare in (beside.get(_parent(place), []) if place else [])
        )
    }


def _parent(name: str) -> str:
    """Give a name up to its last separator."""
    return name[: 1 + max(name.rfind(separator) for separator in SEPARATORS)]


def _ends(record: Convention, prefix: str) -> bool:
    """Whether a name can begin after this prefix."""
    return not prefix or prefix.endswith((*SEPARATORS, *(("_",) if record.underscores else ())))


def chosen(candidates: tuple[str, ...], layer: str) -> str:
    """Give the convention, if there is one, or several that mean the same; else ValueError."""
    first = _meaning(CONVENTIONS[candidates[0]])
    if all(_meaning(CONVENTIONS[name]) == first for name in candidates[1:]):
        return candidates[0]
    raise ValueError(
        f"convention: expected one of {', '.join(map(repr, candidates))}, which have the names of "
        f"{layer or 'the arrays'} and give different meanings to the values, got None"
    )


def _meaning(record: Convention) -> Any:
    return replace(record, title="", releases="", note="", prefixes=(), cumulative=False)
