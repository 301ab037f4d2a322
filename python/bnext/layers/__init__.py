"""Layers: parameters, running statistics and modes over the two passes of `bnext.spine`.

normalization   both passes
modes           which statistics are used and moved, what trains
checks          rank, dtype, channels and place of the input
holder          arrays by name: state dicts, copies, moves to another device
state           parameters and running statistics of channels
batch           the batch-normalization layers
renorm          the batch-renormalization layers
variants        training calls by ghosts, and renormalized ones
cells           both passes of layers that normalize each example for itself
group, instance these layers
rows            layer and RMS normalization
recomputed      outputs that are made again
"""

from bnext.layers.batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.layers.group import GroupNorm
from bnext.layers.instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from bnext.layers.recomputed import Recomputed
from bnext.layers.renorm import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bnext.layers.rows import LayerNorm, RMSNorm

__all__ = [
    "BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchRenorm", "BatchRenorm1d",
    "BatchRenorm2d", "BatchRenorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d",
    "InstanceNorm3d", "LayerNorm", "RMSNorm", "Recomputed",
]  # fmt: skip
