"""PyTorch's batch normalization over bnext's kernels.

``bnext.torch.convert(model)`` exchanges the layers of a model, in one line; `revert` undoes it. The
layers are subclasses of `torch.nn`'s, and do what those do: same arguments, state dicts, modes and
errors. So does `functional.batch_norm`. This package is the only place of bnext that imports
PyTorch, and bnext's compiled parts know nothing of it.

From the bottom: context, copies, formats, disguises, epilogues and kernels; formulas, gradients and
operators (the ways over the kernels), which roads and functional choose from; the layers
(recomputation, skipping, ghosts, modules, sync, lazy, frozen, batch_statistics, renorm); layer and
RMS normalization (row_gradients, row_operators, row_functional, row_modules); conversion of models
(tracing, patterns and fusion; forms, classes, norms, reports, conversion); what is done with models
(statistics and batches, freezing, folding, memory, adaptation, domains); and other tools that get
to know them (tools, imports).
"""

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "bnext.torch: expected PyTorch 2.6 or later to be installed (pip install torch), found "
        "none; the rest of bnext does without",
        name="torch",
    ) from None

from bnext import _core
from bnext.torch import functional
from bnext.torch.adaptation import Adaptation, adapt
from bnext.torch.cell_modules import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from bnext.torch.classes import ConversionWarning
from bnext.torch.conversion import convert, revert
from bnext.torch.domains import Domains
from bnext.torch.folding import Folded, FoldedLayer, fold
from bnext.torch.freezing import freeze, unfreeze
from bnext.torch.lazy import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from bnext.torch.memory import KeptMemory, keep_memory
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.torch.recomputation import recomputing
from bnext.torch.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bnext.torch.reports import Fused, Layer, Report, report
from bnext.torch.row_modules import LayerNorm, RMSNorm
from bnext.torch.statistics import update_statistics
from bnext.torch.sync import SyncBatchNorm
from bnext.torch.tools import tell

# Where both packages bring an OpenMP runtime along, a process has two, whose threads take each
# other's cores (`csrc/cpu/parallel.hpp` says how much that costs). bnext uses PyTorch's.
_core.share_openmp(torch._C.__file__)
tell()

__all__ = [
    "Adaptation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "ConversionWarning",
    "Domains",
    "Folded",
    "FoldedLayer",
    "Fused",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "KeptMemory",
    "Layer",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "RMSNorm",
    "Report",
    "SyncBatchNorm",
    "adapt",
    "convert",
    "fold",
    "freeze",
    "functional",
    "keep_memory",
    "recomputing",
    "report",
    "revert",
    "unfreeze",
    "update_statistics",
]
