"""Layers that meet in another group than their own while a pass over data runs.

`micro_batches` and `update_statistics` let layers normalize by statistics of their own making. A
visit says so beside the layer, which stays as it is: the calls of the context (`contextvars`) in
which the visit is set look here, and calls of other threads do not see it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from bnext.sync.group import Group

__all__ = ["VISITS", "Latest", "Visit", "check_at_rest", "visits_of"]


# The input of the latest forward call and what it saved, of each member by its rank; None: alone.
Latest = dict[int | None, tuple[Any, Any]]


class Visit(NamedTuple):
    """A layer's stay in a group.

    Attributes
    ----------
    group : Group
        By whose statistics the layer normalizes; the running ones are neither used nor moved.
    latest : dict
        Latest that wait for their backward pass, as the layer keeps its own ones.
    """

    group: Group
    latest: Latest


# The visits of layers. A mapping is replaced as a whole, never changed: to set it and to set the
# one before are calls of C, in which no signal handler runs.
VISITS: ContextVar[Mapping[Any, Visit]] = ContextVar("bnext_visits", default={})  # noqa: B039


def visits_of(layers: Iterable[Any], group: Group) -> Mapping[Any, Visit]:
    """Give the visits of now, and those of `layers` to `group`."""
    return {**VISITS.get(), **{layer: Visit(group, {}) for layer in layers}}


def check_at_rest(layers: Sequence[Any]) -> None:
    """RuntimeError for a layer that is on a visit: it would merge statistics twice."""
    visits = VISITS.get()
    for place, layer in enumerate(layers):
        if layer in visits:
            raise RuntimeError(
                f"layers[{place}]: expected a layer at rest, got one in the middle of "
                "update_statistics or of a step of micro_batches, which cannot be nested"
            )
