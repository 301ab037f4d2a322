"""The inputs of the tests: shapes and memory layouts as data, and values drawn fresh for each test.

A case is a shape, a channel axis and a `Memory`: how the array lies in the bytes around it. Sizes
are no multiples of vector widths, and every way an array can be strided stands here once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 64


@dataclass(frozen=True)
class Memory:
    """How an array lies in memory.

    `order` lists its axes from the slowest to the fastest (None: C order), `steps` gives the step
    of a slice along an axis (negative: walked backwards), `margins` the elements before and after
    it that belong to a larger array, `offset` the bytes its memory is off a 64-byte boundary.
    """

    order: tuple[int, ...] | None = None
    steps: Mapping[int, int] = field(default_factory=dict)
    margins: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    offset: int = 0

    def allocate(self, shape, dtype, fill=np.nan):
        """The surrounding array, filled with `fill`, and the view of `shape` that lies in it."""
        order = self.order or tuple(range(len(shape)))
        steps = [self.steps.get(axis, 1) for axis in range(len(shape))]
        margins = [self.margins.get(axis, (0, 0)) for axis in range(len(shape))]
        windows = [
            slice(before, before + size * abs(step), abs(step))
            for size, step, (before, _) in zip(shape, steps, margins, strict=True)
        ]
        extents = [w.stop + after for w, (_, after) in zip(windows, margins, strict=True)]
        stored = [extents[axis] for axis in order]

        nbytes = math.prod(stored) * np.dtype(dtype).itemsize
        raw = np.empty(nbytes + ALIGNMENT + self.offset, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT + self.offset
        flat = raw[start : start + nbytes].view(dtype)
        whole = flat.reshape(stored).transpose(np.argsort(order))
        whole[...] = fill
        backwards = tuple(axis for axis, step in enumerate(steps) if step < 0)
        return whole, np.flip(whole[tuple(windows)], backwards)

    def place(self, values):
        """A copy of `values` that lies like this, in memory that otherwise holds NaN."""
        _, view = self.allocate(values.shape, values.dtype)
        view[...] = values
        return view


@dataclass(frozen=True)
class Case:
    """A shape with its channels at `channel_axis`, lying in memory like `memory`."""

    name: str
    shape: tuple[int, ...]
    channel_axis: int = 1
    memory: Memory = Memory()

    def __str__(self):
        return self.name

    @property
    def channels(self):
        return self.shape[self.channel_axis]

    @property
    def count(self):
        """Values in one channel."""
        axis = self.channel_axis % len(self.shape)
        return math.prod(self.shape[:axis] + self.shape[axis + 1 :])

    def per_channel(self, values):
        """One value a channel, in a shape that broadcasts against the case's."""
        shape = [1] * len(self.shape)
        shape[self.channel_axis] = self.channels
        return np.reshape(values, shape)

    def x(self, rng, dtype):
        """Ordinary data: each channel normal, with a mean and a deviation of its own."""
        mean = self.per_channel(rng.uniform(-2, 2, self.channels))
        std = self.per_channel(rng.uniform(0.5, 2, self.channels))
        return self.memory.place((rng.normal(size=self.shape) * std + mean).astype(dtype))

    def dy(self, rng, dtype):
        """A gradient: normal, about a mean that is not 0."""
        return self.memory.place(rng.normal(0.25, 1, self.shape).astype(dtype))

    def weight(self, rng, dtype):
        """Magnitudes about 1, of either sign."""
        sign = rng.choice([-1.0, 1.0], self.channels)
        return (sign * rng.uniform(0.5, 2, self.channels)).astype(dtype)

    def bias(self, rng, dtype):
        return rng.normal(size=self.channels).astype(dtype)

    def pairs(self, rng, dtype, mean):
        """Values mean + d and mean - d in random places: the mean is known before they are drawn.

        With `mean` (one a channel) and d multiples of 1/8 all values are exact, and so is
        m2 = 2 * sum(d^2), which is returned beside them. An odd value out is the mean itself.
        """
        half = self.count // 2
        d = rng.integers(1, 33, size=(self.channels, half)) / 8.0
        rows = np.zeros((self.channels, self.count))
        rows[:, :half] = d
        rows[:, half : 2 * half] = -d
        rows = rng.permuted(rows, axis=1) + np.asarray(mean)[:, None]
        axis = self.channel_axis % len(self.shape)
        moved = (self.channels, *self.shape[:axis], *self.shape[axis + 1 :])
        values = np.moveaxis(rows.reshape(moved), 0, axis).astype(dtype)
        return self.memory.place(values), 2 * (d**2).sum(axis=1)

    def poisoned(self, dtype):
        """An output that lies like the input and holds NaN, so that what is not written shows."""
        return self.memory.allocate(self.shape, dtype)[1]


NHWC = (0, 2, 3, 1)
NDHWC = (0, 2, 3, 4, 1)

DENSE = [
    Case("NC", (64, 20)),
    Case("NC-few-rows", (7, 2011)),
    Case("NC-many-rows", (4099, 5)),
    Case("NC-wide", (131, 257)),
    Case("NC-one-channel", (37, 1)),
    Case("NC-two-values", (2, 17)),
    Case("C-first", (3, 53), channel_axis=0),
    Case("C-last-alone", (53, 3), channel_axis=-1),
    Case("NCL", (3, 17, 29)),
    Case("NCL-inner-1", (9, 17, 1)),
    Case("NCL-long", (1, 3, 20011)),
    Case("NCHW-7x7", (5, 50, 7, 7)),
    Case("NCHW-one-channel", (4, 1, 9, 11)),
    Case("NCHW-three-channels", (3, 3, 31, 33)),
    Case("NCHW-257", (2, 257, 5, 3)),
    Case("NCHW-inner-1", (33, 17, 1, 1)),
    Case("NCHW-one-example", (1, 6, 13, 11)),
    Case("NCHW-two-values", (2, 7, 1, 1)),
    Case("NCHW-many-chunks", (5, 2, 97, 101)),
    Case("NCHW-2x2", (17, 51, 2, 2)),
    Case("NCHW-2x2-many-strips", (3, 1031, 2, 2)),
    Case("NCHW-3x3-many-chunks", (301, 17, 3, 3)),
    Case("NCHW-2x3-one-example", (1, 37, 2, 3)),
    Case("NCL-2-many-chunks", (1001, 3, 2)),
    Case("NCL-5-two-channels", (131, 2, 5)),
    Case("NCL-7", (9, 131, 7)),
    Case("NCL-8", (33, 67, 8)),
    Case("NCL-15", (33, 19, 15)),
    Case("NCL-16", (33, 19, 16)),
    Case("NCDHW", (2, 6, 3, 5, 7)),
    Case("channels-inside-5d", (2, 3, 5, 4, 3), channel_axis=2),
    Case("NHWC", (3, 7, 5, 50), channel_axis=-1),
    Case("NHWC-three-channels", (3, 31, 33, 3), channel_axis=-1),
    Case("NHWC-one-channel", (4, 9, 11, 1), channel_axis=3),
    Case("NHWC-257", (2, 5, 3, 257), channel_axis=3),
    Case("NHWC-many-chunks", (5, 61, 67, 17), channel_axis=-1),
    Case("NLC", (9, 29, 17), channel_axis=2),
    Case("NDHWC", (2, 3, 5, 7, 6), channel_axis=-1),
]

STRIDED = [
    Case("NCHW-stored-NHWC", (3, 50, 7, 5), memory=Memory(order=NHWC)),
    Case("NCHW-stored-NHWC-257", (2, 257, 5, 3), memory=Memory(order=NHWC)),
    Case("NCDHW-stored-NDHWC", (2, 6, 3, 5, 7), memory=Memory(order=NDHWC)),
    Case("NHWC-stored-NCHW", (3, 7, 5, 19), channel_axis=-1, memory=Memory(order=(0, 3, 1, 2))),
    Case("NC-stored-CN", (53, 19), memory=Memory(order=(1, 0))),
    Case("NCHW-stored-CNHW", (5, 6, 7, 9), memory=Memory(order=(1, 0, 2, 3))),
    Case("NCHW-stored-NCWH", (5, 6, 7, 9), memory=Memory(order=(0, 1, 3, 2))),
    Case("NCHW-stored-WHCN", (5, 6, 7, 9), memory=Memory(order=(3, 2, 1, 0))),
    Case("NCHW-stored-HNCW", (5, 6, 7, 9), memory=Memory(order=(2, 0, 1, 3))),
    Case("batch-every-second", (5, 17, 7, 7), memory=Memory(steps={0: 2})),
    Case("batch-every-second-NC", (33, 19), memory=Memory(steps={0: 2})),
    Case("batch-backwards", (5, 17, 7, 7), memory=Memory(steps={0: -1})),
    Case("batch-backwards-NC", (33, 19), memory=Memory(steps={0: -1})),
    Case("channels-3-to-20", (5, 17, 7, 7), memory=Memory(margins={1: (3, 5)})),
    Case("channels-3-to-20-NC", (33, 17), memory=Memory(margins={1: (3, 5)})),
    Case("channels-3-to-20-NHWC", (3, 17, 7, 5), memory=Memory(order=NHWC, margins={1: (3, 5)})),
    Case("channels-3-to-20-2x2", (33, 17, 2, 2), memory=Memory(margins={1: (3, 5)})),
    Case("channels-every-second", (5, 9, 7, 7), memory=Memory(steps={1: 2})),
    Case("channels-every-second-2x2", (33, 9, 2, 2), memory=Memory(steps={1: 2})),
    Case("one-channel-every-second-NCL-7", (129, 1, 7), memory=Memory(steps={0: 2})),
    Case("batch-backwards-3x3", (33, 17, 3, 3), memory=Memory(steps={0: -1})),
    Case("NC-stored-CN-few-rows", (5, 53), memory=Memory(order=(1, 0))),
    Case("channels-every-second-NC", (33, 19), memory=Memory(steps={1: 2})),
    Case("channels-every-second-NHWC", (3, 7, 5, 9), 3, Memory(steps={3: 2})),
    Case("channels-every-second-stored-NHWC", (3, 9, 7, 5), 1, Memory(order=NHWC, steps={1: 2})),
    Case("channels-backwards", (5, 17, 7, 7), memory=Memory(steps={1: -1})),
    Case("channels-backwards-NC", (33, 19), memory=Memory(steps={1: -1})),
    Case("inner-cropped", (3, 5, 13, 11), memory=Memory(margins={2: (1, 2), 3: (2, 3)})),
    Case("inner-cropped-NHWC", (3, 7, 9, 5), memory=Memory(order=NHWC, margins={3: (1, 2)})),
    Case("inner-every-third", (3, 5, 29), memory=Memory(steps={2: 3})),
    Case("inner-backwards", (3, 5, 9, 11), memory=Memory(steps={3: -1})),
    Case("all-backwards", (3, 5, 9, 11), memory=Memory(steps={0: -2, 1: -1, 2: -1, 3: -3})),
    Case("off-by-4-bytes", (5, 17, 7, 7), memory=Memory(offset=4)),
    Case("off-by-4-bytes-NC", (33, 19), memory=Memory(offset=4)),
    Case("off-by-4-bytes-2x2", (33, 19, 2, 2), memory=Memory(offset=4)),
    Case("off-by-1-byte", (5, 17, 7, 7), memory=Memory(offset=1)),
    Case("off-by-1-byte-NC", (33, 19), memory=Memory(offset=1)),
]

CASES = DENSE + STRIDED

EMPTY = [
    Case("no-examples-NC", (0, 5)),
    Case("no-examples", (0, 5, 7, 7)),
    Case("no-channels-NC", (6, 0)),
    Case("no-channels", (6, 0, 3, 3)),
    Case("no-channels-NHWC", (6, 3, 3, 0), channel_axis=-1),
    Case("no-inner", (6, 5, 0, 3)),
    Case("no-inner-NHWC", (6, 0, 3, 5), channel_axis=-1),
    Case("nothing", (0, 0)),
]


def named(*names):
    """The cases of these names, in this order."""
    by_name = {case.name: case for case in CASES + EMPTY}
    return [by_name[name] for name in names]


# One of each kind, where a test is about something other than the layout.
FEW = named(
    "NC",
    "NC-many-rows",
    "NCHW-7x7",
    "NCHW-2x2",
    "NCHW-many-chunks",
    "NCHW-stored-NHWC",
    "channels-every-second",
    "inner-cropped",
)


# Ways for one array of four axes to lie in memory, for tests that put several arrays together.
MEMORIES_SHAPE = (3, 19, 5, 7)
MEMORIES = {
    "C": Memory(),
    "NHWC": Memory(order=NHWC),
    "CNHW": Memory(order=(1, 0, 2, 3)),
    "F": Memory(order=(3, 2, 1, 0)),
    "every-second-example": Memory(steps={0: 2}),
    "every-second-channel": Memory(steps={1: 2}),
    "channels-of-more": Memory(margins={1: (3, 5)}),
    "channels-of-more-NHWC": Memory(order=NHWC, margins={1: (3, 5)}),
    "backwards": Memory(steps={0: -1, 1: -1, 2: -1, 3: -1}),
    "cropped": Memory(margins={0: (1, 0), 1: (2, 1), 2: (0, 1), 3: (1, 1)}),
    "off-by-4-bytes": Memory(margins={0: (0, 1)}, offset=4),
    "off-by-1-byte": Memory(margins={0: (0, 1)}, offset=1),
}
