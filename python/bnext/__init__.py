"""Batch normalization at the price of a memory copy.

Layers (`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`, `BatchNorm`) and functions
(`batch_norm_forward`, `batch_norm_backward`, `normalize`, `moments`) over C++ kernels that read the
data once, sum in a fixed order, and give the same bits for any number of threads.
"""

from bnext import cuda, functional, sync
from bnext._core import Saved, __version__
from bnext.devices import DeviceSaved
from bnext.estimators import Cumulative, DebiasedExponential, Estimator, Exponential
from bnext.functional import batch_norm_backward, batch_norm_forward, moments, normalize
from bnext.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.moments import Moments
from bnext.runtime import (
    apply_environment,
    empty_cache,
    get_num_threads,
    set_num_threads,
    show_config,
    use_isa,
)

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Cumulative",
    "DebiasedExponential",
    "DeviceSaved",
    "Estimator",
    "Exponential",
    "Moments",
    "Saved",
    "__version__",
    "batch_norm_backward",
    "batch_norm_forward",
    "cuda",
    "empty_cache",
    "functional",
    "get_num_threads",
    "moments",
    "normalize",
    "set_num_threads",
    "show_config",
    "sync",
    "use_isa",
]

apply_environment()
del apply_environment
