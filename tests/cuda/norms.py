"""What tests of norms of examples by the emulated kernels share."""

from ..optional import import_emulated
from .there import There

MODULE = import_emulated()  # at once: of a thousand tests all need it
HERE = There()
# One value of a channel, small planes, planes of odd lengths, few long slabs, slabs wider than a
# block's columns, one example, one group, a group for each channel.
CELLS = (
    ((9, 20), 4), ((7, 6, 1), 3), ((5, 12, 2, 2), 4), ((3, 8, 5, 7), 8), ((2, 6, 64, 65), 2),
    ((1, 4, 90, 130), 1), ((4, 32, 7, 14), 8), ((2, 130, 3, 3), 2), ((7, 33, 2, 1), 11),
    ((1, 3, 33_001), 3), ((3, 5, 1, 2, 17), 5), ((2, 24, 4, 4), 3),
)  # fmt: skip
