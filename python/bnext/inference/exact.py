"""Statistics by their definition: layer after layer, each over the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from bnext._moments import Moments
from bnext.groups.group import Group
from bnext.groups.visits import on_visit
from bnext.inference.layers import Estimate, no_batch
from bnext.inference.progress import Watch
from bnext.inference.replay import ReplayGroup, Turn, drop
from bnext.layers import BatchNorm

__all__ = ["exact"]


def exact(
    network: Callable[[Any], Any],
    batches: Iterable[Any],
    layers: list[BatchNorm],
    group: Group | None,
    keep: int,
    watch: Watch,
) -> tuple[list[Estimate], list[int], list[int]]:
    """Estimates of each layer, how many batches each pass had, and how many each layer left out."""
    replay = ReplayGroup(layers, group, once=True)
    sizes: list[int] = []  # of the data set, in each pass

    def through() -> None:
        held: list[Turn] = []
        try:
            while len(replay.points) < len(layers):
                words = f"layer {len(replay.points) + 1} of {len(layers)}"
                if held:
                    held, _ = _round(watch(held, words), keep)
                else:
                    turns = (Turn(replay, partial(network, x)) for x in watch(batches, words))
                    held, size = _round(turns, keep)
                    sizes.append(size)
                    _check_sizes(sizes)
                if not replay.end_round():
                    replay.check_reached({point.header.layer for point in replay.points})
                if replay.points[-1].merged.total_count == 0:
                    raise no_batch(replay.left_out)
            # One batch to its end, where a second call of the last layer would show.
            last = held[0] if held else Turn(replay, partial(network, next(iter(batches))))
            last.go_on(hold=False)
        finally:
            drop(held)

    on_visit(layers, replay, through)
    moments = {point.header.layer: Moments(*point.merged[:3]) for point in replay.points}
    estimates = [Estimate.of(moments[place], layer) for place, layer in enumerate(layers)]
    return estimates, sizes, replay.left_out


def _round(turns: Iterable[Turn], keep: int) -> tuple[list[Turn], int]:
    """Let each batch come one layer further; give those that are held there, all or none.

    After an error none is held, so that nothing of the network goes on when its traceback dies.
    """
    held: list[Turn] = []
    number = 0
    size = 0
    try:
        for turn in turns:
            number += 1
            if keep > 0:
                held.append(turn)
            turn.go_on(hold=keep > 0)
            size += turn.bytes
            if size > keep > 0:
                drop(held)
                keep = 0
    except BaseException:
        drop(held)
        raise
    return held, number


def _check_sizes(sizes: list[int]) -> None:
    if sizes[0] == 0:
        raise ValueError("batches: expected at least one, got none")
    if sizes[-1] != sizes[0]:
        raise ValueError(
            f"batches: expected the same in every pass, got {sizes[0]} batches in the first and "
            f"{sizes[-1]} in pass {len(sizes)}"
        )
