"""Layers: parameters, running statistics and modes over the two passes of `bnext.spine`.

normalization   modes and both passes
checks          rank, dtype, channels and place of the input
state           parameters and running statistics: state dicts, copies, moves to another device
batch           the batch-normalization layers
"""

from bnext.layers.batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
