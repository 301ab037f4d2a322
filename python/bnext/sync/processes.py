"""What groups of processes share: one sum over all ranks for each exchange, with a header in it.

A sum costs each rank O(C), however many there are. Moments add up as sums about a shift that all
ranks have: the mean of the last exchange of that layer, which is the same to the bit everywhere.
With ``d = mean - shift``, the member brings ``n d`` and ``m2 + n d**2``, in float64, and

    mean = shift + D,  m2 = S2 - S1 D,  D = S1 / N

of the sums N, S1, S2. What cancels in m2 is ``N D**2``. Where that is not small beside m2, all
ranks see it alike, and add up once more about the mean that they have just found.

The header is a few small integers, each with its square: their sums are those of equal numbers only
if all are equal. Blocks have one size, whatever the header says, so that ranks that call different
things still meet. Only who calls a layer of more channels than a block has adds up the rest after.
"""

from __future__ import annotations

import abc
import time
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.sync.group import Calls, Float64Array, Group, GroupError, Header, Merged, error_text

__all__ = ["ProcessGroup"]

DTYPES = ("float32", "float64", "float16", "bfloat16")
FIELDS = ("layer", "step", "direction", "channels", "dtype")
# Sums of squares of 2**14 such numbers are integers that float64 has.
MODULUS = 1 << 19
HEAD = 2 * len(FIELDS) + 2  # each field and its square; how many failed; count
TEXT = 512  # bytes of what a rank says where something is wrong
# m2 has lost 10 of 53 bits where N D**2 is as much larger.
CANCELLED = 1024.0


class ProcessGroup(Group):
    """A group whose members are processes; subclasses say how numbers are added up among them."""

    def __init__(self, timeout: float, block: int = 512) -> None:
        super().__init__()
        if not 0 < timeout < 3.2e7:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout}")
        self.timeout = float(timeout)
        self.broken = ""
        self._block = block
        self._calls = Calls()
        self._exchanges = 0
        self._shifts: dict[tuple[int, int], Float64Array] = {}
        self._at = Header(-1, 0, "forward", 0, "float32")
        self._message = ""
        self._pending: list[Any] = []  # what an engine may still write to

    @abc.abstractmethod
    def _start_sum(self, buffer: Float64Array) -> Any:
        """Begin to add up `buffer` over all ranks, in place."""

    @abc.abstractmethod
    def _start_gather(self, row: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8]) -> Any:
        """Begin to collect the `row` of each rank into `rows`, shape (size, len(row))."""

    @abc.abstractmethod
    def _is_done(self, request: Any) -> bool:
        """Whether that has ended. Raises what the engine does where it failed."""

    # --- the protocol -----------------------------------------------------------------------------

    def begin(self, layer: Any) -> tuple[int, int]:
        """Count a forward call; see `Group`."""
        number, step, _ = self._calls.begin(layer)
        return number, step

    def merge_moments(
        self, header: Header, count: int, mean: Float64Array, m2: Float64Array
    ) -> Merged:
        """Merge Moments of the whole batch; see `Group`."""
        key = (header.layer, header.channels)
        shift = self._shifts.get(key)
        if shift is None:
            shift = np.zeros(header.channels)
        for last in (False, True):
            first, second = np.zeros(header.channels), np.zeros(header.channels)
            with np.errstate(all="ignore"):  # of NaN and infinities in the data
                if count:
                    d = mean - shift
                    first, second = count * d, m2 + count * d * d
                total, s1, s2 = self._sum(header, count, first, second)
                drift = s1 / max(total, 1)
                merged_m2 = np.maximum(s2 - s1 * drift, 0.0)
                merged_mean = shift + drift
                if last or not (s1 * drift > CANCELLED * merged_m2).any():
                    break
            shift = np.where(np.isfinite(merged_mean), merged_mean, 0.0)
        if total:
            self._shifts[key] = np.where(np.isfinite(merged_mean), merged_mean, 0.0)
        self._exchanges += 1
        return Merged(total, merged_mean, merged_m2, self._exchanges, self.size == 1)

    def merge_sums(
        self, header: Header, count: int, sum_dy: Float64Array, sum_dy_xmu: Float64Array
    ) -> Merged:
        """Add up sums over the whole batch; see `Group`."""
        if count == 0:
            sum_dy, sum_dy_xmu = np.zeros(header.channels), np.zeros(header.channels)
        total, first, second = self._sum(header, count, sum_dy, sum_dy_xmu)
        self._exchanges += 1
        return Merged(total, first, second, self._exchanges, self.size == 1)

    def fail(self, message: str) -> None:
        """Tell the other ranks, when they come, that this one cannot go on.

        It waits for them, for the time-out at most.
        """
        if self.broken or self._pending:  # nobody would understand another message
            return
        self._message = message
        buffer = np.zeros(HEAD + 2 * self._block)
        buffer[HEAD - 2] = 1.0
        try:
            self._finish(self._start_sum(buffer), buffer)
            self._say_what_is_wrong()
        except Exception as error:  # nobody came: this member's own error says why
            self.broken = self.broken or str(error)

    def __enter__(self) -> ProcessGroup:
        """Announce errors of the body to the other ranks."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, GroupError):
            self.fail(error_text(error))

    # --- sums -------------------------------------------------------------------------------------

    def _sum(
        self, header: Header, count: int, first: Float64Array, second: Float64Array
    ) -> tuple[int, Float64Array, Float64Array]:
        self._at = header
        if self.broken:
            raise self._error(self.broken)
        channels, block = header.channels, min(header.channels, self._block)
        fields = numbers_of(header)
        buffer = np.zeros(HEAD + 2 * self._block)
        buffer[0 : HEAD - 2 : 2] = fields
        buffer[1 : HEAD - 2 : 2] = fields**2
        buffer[HEAD - 1] = count
        buffer[HEAD : HEAD + block] = first[:block]
        buffer[HEAD + self._block : HEAD + self._block + block] = second[:block]
        self._run(self._start_sum, buffer)
        agree = np.array_equal(buffer[0 : HEAD - 2 : 2], self.size * fields) and np.array_equal(
            buffer[1 : HEAD - 2 : 2], self.size * fields**2
        )
        if buffer[HEAD - 2] > 0 or not agree:
            raise self._error(*self._say_what_is_wrong())
        total = int(buffer[HEAD - 1])
        parts = [
            buffer[HEAD : HEAD + block].copy(),
            buffer[HEAD + self._block : HEAD + self._block + block].copy(),
        ]
        if channels > block:
            rest = np.concatenate([first[block:], second[block:]])
            self._run(self._start_sum, rest)
            parts = [np.concatenate(pair) for pair in zip(parts, np.split(rest, 2), strict=True)]
        return total, parts[0], parts[1]

    def _run(self, start: Any, *arrays: Any) -> None:
        """Start and finish a collective; whatever goes wrong is a `GroupError`."""
        try:
            self._finish(start(*arrays), *arrays)
        except GroupError:
            raise
        except Exception as error:  # whatever the engine raises: a rank that died, mostly
            raise self._error(f"the exchange failed, as when a rank dies: {error}") from error

    def _finish(self, request: Any, *arrays: Any) -> None:
        began = time.monotonic()
        try:
            while not self._is_done(request):
                waited = time.monotonic() - began
                if waited > self.timeout:
                    raise self._error(f"time-out after {self.timeout:g} s: not all ranks have come")
                # Messages among processes of one machine take microseconds: look at first.
                if waited > 0.002:
                    time.sleep(min(0.001, waited / 20))
        except BaseException:
            self._pending.append((request, arrays))
            raise

    def _say_what_is_wrong(self) -> tuple[str, int | None]:
        """Reason and rank, from what each rank was about; all ranks come here together."""
        row = np.zeros(TEXT, np.uint8)
        numbers = " ".join(str(int(n)) for n in numbers_of(self._at))
        text = f"{numbers}|{self._message}".encode()[:TEXT]
        row[: len(text)] = np.frombuffer(text, np.uint8)
        rows = np.zeros((self.size, TEXT), np.uint8)
        self._run(self._start_gather, row, rows)
        said = [bytes(row).rstrip(b"\0").decode(errors="ignore").split("|", 1) for row in rows]
        reason, who = "the ranks disagree", None
        for rank, (_, message) in enumerate(said):
            if message:
                reason, who = f"rank {rank} {message}", rank
                break
        else:
            for rank, (numbers, _) in enumerate(said):
                if numbers != said[0][0]:
                    got = difference(numbers.split(), said[0][0].split())
                    reason, who = f"rank {rank} differs from rank 0: {got}", rank
                    break
        self.broken = reason
        return reason, who

    def _error(self, reason: str, rank: int | None = None) -> GroupError:
        self.broken = self.broken or reason
        layer, step, direction, *_ = self._at
        call = "a call without a layer" if layer < 0 else f"layer {layer}"
        text = f"{call}, step {step}, {direction}: {reason}"
        return GroupError(text, layer=layer, step=step, rank=rank, reason=reason)

    def __repr__(self) -> str:
        """Give the rank, the size, and what broke the group."""
        broken = f", broken: {self.broken}" if self.broken else ""
        return f"<bnext.sync.{type(self).__name__}: rank {self.rank} of {self.size}{broken}>"


def numbers_of(header: Header) -> Float64Array:
    """Give the fields of a header as numbers, small enough that sums of their squares are exact."""
    backward = int(header.direction == "backward")
    dtype = DTYPES.index(header.dtype)
    numbers = (header.layer + 1, header.step, backward, header.channels, dtype)
    return np.array([number % MODULUS for number in numbers], np.float64)


def difference(got: list[str], expected: list[str]) -> str:
    """Say what two headers differ in."""

    def text(field: str, number: str) -> str:
        if field == "layer":
            return f"layer {int(number) - 1}" if number != "0" else "no layer"
        if field == "direction":
            return ("forward", "backward")[int(number)]
        if field == "dtype":
            return DTYPES[int(number)]
        return f"{number} channels" if field == "channels" else f"step {number}"

    return ", ".join(
        f"{text(field, a)} instead of {text(field, b)}"
        for field, a, b in zip(FIELDS, got, expected, strict=True)
        if a != b
    )
