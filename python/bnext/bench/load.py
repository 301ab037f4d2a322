"""The load of the machine: the share of this process's processors that others take."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
# Columns of a processor's line in Linux's /proc/stat without work.
IDLE = (3, 4)  # idle, iowait
GUEST = 8  # from here on, times that user and nice include
SHORTEST = 0.05  # seconds; the system counts in hundredths
LEAST = 0.25  # of one processor: any system takes less in passing
LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Load:
    """The load by other processes during a measurement."""

    processors: int  # that this process may use
    taken: float  # of them, by others, on average; with time stolen from a virtual machine

    @property
    def is_busy(self) -> bool:
        """Whether the load makes times unreliable."""
        return self.taken > max(LEAST, LEAST_SHARE * self.processors)

    def __str__(self) -> str:
        """One line, for the user."""
        if not self.is_busy:
            return f"others took {self.taken:.1f} of {self.processors} processors"
        return (
            f"the machine is busy: {self.taken:.1f} of {self.processors} processors were taken by "
            "others during the measurement; times are no guide"
        )


class LoadMeter:
    """Measures the load from its creation on.

    On Linux: the time that each processor worked, without the time of this process. Elsewhere, and
    where the system does not tell: the load average, which lags behind and counts this process from
    its start.
    """

    def __init__(self) -> None:
        self._usable = usable_processors()
        self._average = _load_average()
        self._begin = self._now()

    def read(self) -> Load:
        """Give the load since the meter was made."""
        begun, ours, work = self._begin
        now, ours_now, work_now = self._now()
        taken = self._average
        if work is not None and work_now is not None and now - begun >= SHORTEST:
            taken = max(((work_now - work) - (ours_now - ours)) / (now - begun), 0.0)
        return Load(len(self._usable), min(taken, len(self._usable)))

    def _now(self) -> tuple[float, float, float | None]:
        """Give the time, and the processor seconds of this process and of all its processors."""
        return time.monotonic(), time.process_time(), _worked(self._usable)


def usable_processors() -> list[int]:
    """List the numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _worked(processors: list[int]) -> float | None:
    """Give the seconds that these processors have worked, or were taken away, since the boot."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        number = name.removeprefix("cpu")
        if name.startswith("cpu") and number.isdigit() and int(number) in processors:
            ticks += sum(int(n) for place, n in enumerate(counts[:GUEST]) if place not in IDLE)
    # A sandbox may show a file of zeros.
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def _load_average() -> float:
    """Give the number of threads ready to run in the last minute; 0 where it is unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
