"""Gradient accumulation with the statistics, and the gradients, of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from bnext.running import move_running
from bnext.statistics.layers import checked_layers, common_group, lent
from bnext.statistics.replay import ReplayGroup, Turn
from bnext.sync.group import announcing

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = ["MicroBatches", "micro_batches"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def micro_batches(layers: Iterable[BatchNorm]) -> MicroBatches:
    """Context in which several micro-batches are normalized as the one batch that they are.

    Gradient accumulation splits a batch that does not fit into memory. Normalized by themselves,
    micro-batches give another network: worse statistics, other gradients. Here each layer has the
    statistics of their union, and the backward pass goes through these, so that the sum of the
    micro-batches' gradients is the gradient of the big batch.

    Parameters
    ----------
    layers : iterable of BatchNorm
        Layers of the network that normalize by the batch. Others (frozen, or in evaluation mode)
        are left as they are.

    Returns
    -------
    context manager
        It gives a `MicroBatches`, whose `run` goes through the micro-batches.

    Raises
    ------
    ValueError, TypeError
        `layers` has none, one twice, something else than layers, or layers of different groups.

    Notes
    -----
    Memory is paid for with compute. The statistics of a layer are known when all micro-batches have
    come to it, so a network of L layers takes L rounds that end early in the forward pass, L that
    end early in the backward pass, and one to the end. In each, every micro-batch is run again from
    its start.

    Examples
    --------
    >>> with bnext.micro_batches(layers) as union:                        # doctest: +SKIP
    ...     for gradients in union.run(step, pieces):
    ...         total = [a + b for a, b in zip(total, gradients)]
    """
    return MicroBatches(layers)


class MicroBatches:
    """What `micro_batches` gives; see there.

    Attributes
    ----------
    rounds : int
        How many rounds the latest `run` took.
    """

    def __init__(self, layers: Iterable[BatchNorm]) -> None:
        self._layers = checked_layers(layers)
        self._group = common_group(self._layers)
        self._open = False
        self._number = 0  # of micro-batches, in the first round
        self.rounds = 0

    def __enter__(self) -> MicroBatches:
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False

    def run(self, step: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
        """Run ``step(piece)`` for each micro-batch as often as it takes; give the last results.

        Parameters
        ----------
        step : callable
            Forward and backward pass of one micro-batch; returns its gradients. It is called
            several times for each, and ended early by an exception in all but the last, so it
            should have no effect but its result (and those of the layers). Gradients of the
            layers' own parameters are in `weight_grad` and `bias_grad` after it, and are sums over
            the micro-batch, which is to be added up like the others.
        pieces : iterable
            The micro-batches, of any sizes, also empty; gone through several times, in one order.

        Yields
        ------
        object
            What `step` returned for each, in order.

        Raises
        ------
        ValueError
            There are no micro-batches, they differ from round to round, or do not call the same
            layers; or all have one value per channel together.
        RuntimeError
            The context has been left.

        Notes
        -----
        Running statistics move once, by the union, after the last result. An error before that
        leaves them alone.
        """
        if not self._open:
            raise RuntimeError("run: expected a call inside of `with bnext.micro_batches(...)`")
        if isinstance(pieces, Iterator):
            raise ValueError(
                "pieces: expected an iterable that can be gone through several times, got an "
                f"iterator ({type(pieces).__name__}), which ends after one round"
            )
        layers = [layer for layer in self._layers if not layer._statistics_of_call()[0]]
        moving = [layer._statistics_of_call()[1] for layer in layers]
        replay = ReplayGroup(layers, self._group, once=False)
        self.rounds = 0
        with announcing(self._group) if self._group else nullcontext():
            with lent(layers, replay):
                again = True
                while again:
                    yield from self._round(replay, step, pieces)
                    again = replay.end_round()
                    self.rounds += 1
            for header, merged in replay.points:
                if header.direction == "forward" and moving[header.layer]:
                    layer = layers[header.layer]
                    move_running(layer, merged.total_count, merged.first, merged.second)

    def _round(
        self, replay: ReplayGroup, step: Callable[[Piece], Result], pieces: Iterable[Piece]
    ) -> Iterator[Result]:
        number = 0
        for piece in pieces:
            number += 1
            turn = Turn(replay, partial(step, piece))
            turn.go_on(hold=False)
            if turn.ended:
                yield turn.result
        if self.rounds == 0:
            self._number = number
        if number == 0 or number != self._number:
            expected = self._number if self._number else "at least one"
            raise ValueError(f"pieces: expected {expected} in every round, got {number}")
