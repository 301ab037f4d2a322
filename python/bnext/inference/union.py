"""Gradient accumulation with the statistics, and the gradients, of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from bnext.groups.exchange import GroupError
from bnext.groups.group import error_text
from bnext.groups.visits import check_at_rest, on_visit
from bnext.inference.layers import checked_layers, common_group
from bnext.inference.replay import ReplayGroup, Turn
from bnext.layers import BatchNorm
from bnext.layers.variants import variant_of
from bnext.writes import Writes

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
    RuntimeError
        A layer is in the middle of `update_statistics`, or of a step of another one of these.

    Notes
    -----
    Memory is paid for with compute. The statistics of a layer are known when all micro-batches have
    come to it, so a network of L layers takes L rounds that end early in the forward pass, L that
    end early in the backward pass, and one to the end. In each, every micro-batch is run again from
    its start.

    Layers normalize by the union in the calls of ``step``, which are made in the thread that runs
    it, and by themselves at all other times: in other threads, in the body of a loop over the
    results, and after the context, however it was left. A loop that stops early moves no running
    statistics. Members of a group have a replica of each layer.

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
        common_group(self._layers)
        for place, layer in enumerate(self._layers):
            if variant := variant_of(layer):
                raise ValueError(
                    f"layers[{place}]: expected a layer that normalizes by the whole batch, got "
                    f"one with {variant}"
                )
        self._open = False
        self._runs: list[Run] = []  # that have begun and not ended
        self.rounds: int = 0

    def __enter__(self) -> MicroBatches:
        if self._open:
            raise RuntimeError(
                "micro_batches: expected a context that is not open, got an open one"
            )
        self._open = True
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._open = False
        runs, self._runs = self._runs, []
        for run in runs:  # with results that are still held
            run.announce(error)

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
            The context is not open, or has been left; a step begins another run of its layers; or
            members of a group share a layer.
        ValueError, TypeError
            A running statistic that is to move cannot be written.

        Notes
        -----
        Running statistics move once, by the union, after the last result, those of all layers or
        none. An error before that leaves them alone.
        """
        self._check_is_open()
        if isinstance(pieces, Iterator):
            raise ValueError(
                "pieces: expected an iterable that can be gone through several times, got an "
                f"iterator ({type(pieces).__name__}), which ends after one round"
            )
        return self._results(step, pieces)

    def _check_is_open(self) -> None:
        if not self._open:
            raise RuntimeError("run: expected a call inside of `with bnext.micro_batches(...)`")

    def _results(
        self, step: Callable[[Piece], Result], pieces: Iterable[Piece]
    ) -> Iterator[Result]:
        self._check_is_open()
        run = Run(self._layers)
        self._runs.append(run)
        self.rounds = 0
        try:
            again = True
            while again:
                for turn in run.turns(step, pieces):
                    if turn.ended:
                        yield turn.result
                        if run not in self._runs:
                            raise RuntimeError(
                                "run: expected its results to be taken inside of `with "
                                "bnext.micro_batches(...)`, which has been left"
                            )
                self.rounds += 1
                again = run.replay.end_round()
            run.finish()
        except BaseException as error:
            if run in self._runs:
                run.announce(error)
            raise
        finally:
            if run in self._runs:
                self._runs.remove(run)


class Run:
    """The rounds of one union of micro-batches; layers that normalize by the batch take part."""

    def __init__(self, layers: list[BatchNorm]) -> None:
        check_at_rest(layers)
        self._layers = layers
        self._group = common_group(layers)
        self._visiting: list[BatchNorm] = []
        self._moving: set[int] = set()
        for place, layer in enumerate(layers):
            uses, moves = layer.statistics_of_call()
            if not uses:
                self._visiting.append(layer)
                if moves:
                    layer.running.check_movable(f"layers[{place}].")
                    self._moving.add(place)
        self.replay: ReplayGroup = ReplayGroup(layers, self._group, once=False)
        self._number: int | None = None  # of micro-batches, in the first round

    def turns(self, step: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Turn]:
        """Run the step of each micro-batch as far as it comes, with the layers on a visit."""
        number = 0
        for piece in pieces:
            number += 1
            turn = Turn(self.replay, partial(step, piece))
            on_visit(self._visiting, self.replay, partial(turn.go_on, hold=False))
            yield turn
        if self._number is None:
            self._number = number
        if number == 0 or number != self._number:
            expected = self._number if self._number else "at least one"
            raise ValueError(f"pieces: expected {expected} in every round, got {number}")

    def finish(self) -> None:
        """Move the running statistics, of all layers or none."""
        writes = Writes()
        for header, merged in self.replay.points:
            if header.direction == "forward" and header.layer in self._moving:
                running = self._layers[header.layer].running
                running.prepare(writes, *merged[:3], f"layers[{header.layer}].")
        writes.commit()

    def announce(self, error: BaseException | None) -> None:
        """Tell the other members of the layers' group, which wait for this one, of its end."""
        if self._group is None or isinstance(error, GroupError):
            return
        if error is None or isinstance(error, GeneratorExit):
            self._group.fail("left micro_batches before the last result")
        else:
            self._group.fail(error_text(error))
