"""PyTorch's batch normalization over bnext's kernels.

``bnext.torch.convert(model)`` exchanges the layers of a model, in one line; `revert` undoes it. The
layers are subclasses of `torch.nn`'s, and do what those do: same arguments, state dicts, modes and
errors. So does `functional.batch_norm`. This package is the only place of bnext that imports
PyTorch, and bnext's compiled parts know nothing of it.

context      PyTorch's state around a call, and whether tensors are plain
formats      memory formats of results
kernels      tensors to kernels and back: one forward and one backward function
formulas     the backward passes written in PyTorch, for gradients of gradients
gradients    both passes as autograd functions, for eager calls
operators    both passes as registered operators, for torch.compile and dispatch modes
roads        which of these a call takes
functional   the door of all calls
modules      BatchNorm1d, BatchNorm2d, BatchNorm3d
sync         SyncBatchNorm
lazy         LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
classes      which class stands for one of PyTorch's, or for a subclass of a user
reports      layers that are exchanged in a model, layers that stay, and why
conversion   convert, revert
tools        software that looks layers up by their classes, and gets bnext's entered
imports      doing something once a module has been imported
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
from bnext.torch.classes import ConversionWarning
from bnext.torch.conversion import convert, revert
from bnext.torch.lazy import LazyBatchNorm1d, LazyBatchNorm2d, LazyBatchNorm3d
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.torch.reports import Layer, Report, report
from bnext.torch.sync import SyncBatchNorm
from bnext.torch.tools import tell

# Where both packages bring an OpenMP runtime along, a process has two, whose threads take each
# other's cores (`csrc/cpu/parallel.hpp` says how much that costs). bnext uses PyTorch's.
_core.share_openmp(torch._C.__file__)
tell()

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConversionWarning",
    "Layer",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "Report",
    "SyncBatchNorm",
    "convert",
    "functional",
    "report",
    "revert",
]
