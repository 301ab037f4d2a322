"""Layers: parameters, running statistics and modes over the two passes of `bnext.spine`.

normalization   both passes
modes           which statistics are used and moved, what trains
checks          rank, dtype, channels and place of the input
state           parameters and running statistics: state dicts, copies, moves to another device
batch           the batch-normalization layers
cells           both passes of layers that normalize each example for itself
group, instance these layers
recomputed      outputs that are made again
"""

from bnext.layers.batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.layers.group import GroupNorm
from bnext.layers.instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from bnext.layers.recomputed import Recomputed

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Recomputed",
]
