"""Measurements: each library's time for one operation of one case, beside a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import bnext
from bnext.bench.cases import Case, draw
from bnext.bench.heap import recycled_pages
from bnext.bench.libraries import ROOM, Copier, Pages, Prepare, import_torch
from bnext.bench.load import LoadMeter
from bnext.bench.timing import Call, Timing, alternate
from bnext.bench.traffic import Operation, floor_bytes

# Many turns in a round, so that one has no pause even where most have; rounds until one is not
# quicker by a fifth.
BUSY_TURNS = 15
MOST_ROUNDS = 5
QUICKER = 0.8

OPERATIONS: tuple[Operation, ...] = get_args(Operation)


@dataclass(frozen=True)
class Measurement:
    """The times of one operation of one case, taken in turns on the same data."""

    case: Case
    operation: Operation
    pages: Pages
    timings: dict[str, Timing]  # of each library
    copy: Timing
    busy: bool = False  # others took processors meanwhile

    @property
    def nbytes(self) -> int:
        """Size of `x`, and of `y`."""
        return self.case.nbytes

    def ratio(self, library: str) -> float:
        """Time of `library` over bnext's, by `typical`; below 1 is a loss."""
        return self.typical(self.timings[library]) / self.typical(self.timings["bnext"])

    def typical(self, timing: Timing) -> float:
        """Seconds that stand for all turns: the median, or the quickest turn on a busy machine.

        Where others take processors, most turns contain a pause, and one paused thread makes the
        others wait. The quickest turn has no pause.
        """
        return timing.best if self.busy else timing.median

    def bandwidth(self, library: str) -> float:
        """Floor bytes per second; the library may really move more."""
        return floor_bytes(self.operation, self.nbytes) / self.typical(self.timings[library])

    @property
    def copy_bandwidth(self) -> float:
        """Bytes per second of the copy of an array of the same size: read and written."""
        return floor_bytes("copy", self.nbytes) / self.typical(self.copy)

    def share_of_copy(self, library: str) -> float:
        """`bandwidth` as a share of the copy's: 1 where only the bytes take time."""
        return self.bandwidth(library) / self.copy_bandwidth

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types of JSON."""
        return {
            "case": self.case.name,
            "shape": list(self.case.shape),
            "channels_last": self.case.channels_last,
            "dtype": self.case.dtype,
            "aligned": self.case.aligned,
            "operation": self.operation,
            "pages": self.pages,
            "busy": self.busy,
            "floor_bytes": floor_bytes(self.operation, self.nbytes),
            "seconds": {name: vars(timing) for name, timing in self.timings.items()},
            "copy_seconds": vars(self.copy),
            "copy_bytes_per_second": self.copy_bandwidth,
            "bytes_per_second": {name: self.bandwidth(name) for name in self.timings},
            "share_of_copy": {name: self.share_of_copy(name) for name in self.timings},
            "ratio": {name: self.ratio(name) for name in self.timings if name != "bnext"},
        }


@contextlib.contextmanager
def threads_set_to(number: int) -> Iterator[None]:
    """Let bnext and PyTorch (NumPy has one anyway) use `number` threads."""
    libraries = [library for library in (bnext, import_torch()) if library is not None]
    before = [library.get_num_threads() for library in libraries]
    for library in libraries:
        library.set_num_threads(number)
    try:
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set_num_threads(threads)


def measure(
    cases: Sequence[Case],
    *,
    pages: Pages,
    libraries: Mapping[str, Prepare],
    threads: int,
    seconds: float,
    operations: Collection[Operation] = OPERATIONS,
    copier: type[Copier] = Copier,
    busy_seconds: float | None = None,
) -> Iterator[Measurement]:
    """Measure `operations` of each of the `cases`.

    Parameters
    ----------
    pages : {"warm", "fresh"}
        Whether outputs go to mapped memory or are allocated by the library. Measure "fresh" first:
        `recycled_pages` changes the allocator.
    libraries : mapping of str to callable
        A function for each that prepares its calls, as in `bnext.bench.libraries.LIBRARIES`;
        "bnext" is among them. A library without an operation with these pages is left out of it.
    threads : int
        For each library, and for the copy.
    seconds : float
        For each operation of each case, unless three turns take longer.
    copier : type
        The class that copies.
    busy_seconds : float, optional
        Where others took processors meanwhile, measure again for so long: more turns, of which the
        quickest count. By default, measure once.

    Yields
    ------
    Measurement
        One for each case and operation, at once.
    """
    with threads_set_to(threads), contextlib.closing(copier(threads)) as yardstick:
        for case in cases:
            data = draw(case)
            copies = yardstick.calls(data)
            calls = {name: prepare(data) for name, prepare in libraries.items()}
            for operation in operations:
                compared = {
                    name: of_library[operation, pages]
                    for name, of_library in calls.items()
                    if (operation, pages) in of_library
                }
                room = ROOM.get(operation, 0) * case.nbytes if pages == "warm" else 0
                with recycled_pages(room) if room else contextlib.nullcontext():
                    meter = LoadMeter()
                    timings = alternate({**compared, **copies}, seconds)
                    busy = busy_seconds is not None and meter.read().is_busy
                    if busy_seconds is not None and busy:
                        timings = _among_neighbours({**compared, **copies}, busy_seconds)
                copy = min((timings.pop(name) for name in copies), key=lambda t: t.median)
                yield Measurement(case, operation, pages, timings, copy, busy)


def _among_neighbours(calls: Mapping[str, Call], seconds: float) -> dict[str, Timing]:
    """Time `calls` where most turns have pauses, until the quickest turn of each is settled."""
    found = alternate(calls, seconds, BUSY_TURNS)
    for _ in range(MOST_ROUNDS - 1):
        more = alternate(calls, seconds, BUSY_TURNS)
        settled = all(more[name].best >= QUICKER * found[name].best for name in calls)
        found = {
            name: replace(more[name], best=min(more[name].best, found[name].best)) for name in calls
        }
        if settled:
            break
    return found
