"""Layers that meet in another group than their own while a pass over data runs.

During a pass of `micro_batches` or `update_statistics`, layers normalize by the statistics of its
group. The layers themselves do not change: each call looks for a visit in its context
(`contextvars`). Calls in other threads do not see the visit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from bnext.groups.group import Group

__all__ = ["VISITS", "Latest", "Visit", "check_at_rest", "latest_call", "on_visit"]

Result = TypeVar("Result")

# Input, `Saved` and residual of the latest forward call, by the rank of the member; None without a
# group.
Latest = dict[int | None, tuple[Any, Any, Any]]


class Visit(NamedTuple):
    """A layer's stay in another group than its own."""

    group: Group  # its statistics normalize; running statistics are neither used nor moved
    latest: Latest  # calls of the visit, apart from the layer's own


# The visits of layers. The mapping itself never changes.
VISITS: ContextVar[Mapping[Any, Visit]] = ContextVar("bnext_visits", default={})  # noqa: B039


def on_visit(layers: Iterable[Any], group: Group, body: Callable[[], Result]) -> Result:
    """Call `body` while `layers` visit `group`; give its result."""
    before = VISITS.get()
    during = {**before, **{layer: Visit(group, {}) for layer in layers}}
    # To set a mapping is one call of C, in which no signal handler runs.
    try:
        VISITS.set(during)
        return body()
    finally:
        VISITS.set(before)


def check_at_rest(layers: Sequence[Any]) -> None:
    """RuntimeError for a layer that is on a visit already."""
    visits = VISITS.get()
    for place, layer in enumerate(layers):
        if layer in visits:
            raise RuntimeError(
                f"layers[{place}]: expected a layer at rest, got one in the middle of "
                "update_statistics or of a step of micro_batches, which cannot be nested"
            )


def latest_call(group: Group | None, latest: Latest, what: str) -> tuple[int | None, Any]:
    """Give the member, and what its latest forward call left."""
    member = None if group is None else group.rank_or_none
    if member not in latest:
        if group is not None:
            group.check_open()
        raise RuntimeError(
            f"{what}: expected a forward call before it, since the latest one was consumed or "
            "there was none"
        )
    return member, latest[member]
