"""Batch normalization at the price of a memory copy.

Layers (`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`, `BatchNorm`) and functions
(`batch_norm_forward`, `batch_norm_backward`, `normalize`, `moments`, `recompute`) over C++ kernels
that read the data once, sum in a fixed order, and give the same bits for any number of threads.
"""

from typing import TYPE_CHECKING

from bnext import cuda, functional, on_demand
from bnext._core import RowSaved, Saved, __version__
from bnext._moments import Moments
from bnext.arrays import DeviceRowSaved, DeviceSaved
from bnext.functional import (
    batch_norm_backward,
    batch_norm_forward,
    moments,
    normalize,
    recompute,
)
from bnext.runtime import (
    apply_environment,
    empty_cache,
    get_num_threads,
    set_num_threads,
    show_config,
    use_isa,
)

if TYPE_CHECKING:
    from bnext import inference as inference
    from bnext import layers as layers
    from bnext import sync
    from bnext.double_backward import SecondGradients, batch_norm_double_backward
    from bnext.estimators import (
        Cumulative,
        DebiasedExponential,
        Estimator,
        Exponential,
        FirstBatchExponential,
    )
    from bnext.group_norm import (
        group_norm_backward,
        group_norm_forward,
        instance_norm_backward,
        instance_norm_forward,
    )
    from bnext.inference.adaptation import adapted_moments
    from bnext.inference.conventions import (
        from_convention,
        guess_convention,
        load_statistics,
        to_convention,
    )
    from bnext.inference.domains import Domains
    from bnext.inference.folding import Affine, fold, fold_into_next
    from bnext.inference.union import micro_batches
    from bnext.inference.update import update_statistics
    from bnext.layer_norm import layer_norm_backward, layer_norm_forward
    from bnext.layers import (
        BatchNorm,
        BatchNorm1d,
        BatchNorm2d,
        BatchNorm3d,
        BatchRenorm,
        BatchRenorm1d,
        BatchRenorm2d,
        BatchRenorm3d,
        GroupNorm,
        InstanceNorm1d,
        InstanceNorm2d,
        InstanceNorm3d,
        LayerNorm,
        Recomputed,
        RMSNorm,
    )
    from bnext.renorm import Ramp
    from bnext.rms_norm import rms_norm_backward, rms_norm_forward
else:
    __getattr__, __dir__ = on_demand.attributes(
        __name__,
        {
            "bnext": "inference layers sync",
            "bnext.double_backward": "SecondGradients batch_norm_double_backward",
            "bnext.estimators": (
                "Cumulative DebiasedExponential Estimator Exponential FirstBatchExponential"
            ),
            "bnext.group_norm": (
                "group_norm_backward group_norm_forward instance_norm_backward "
                "instance_norm_forward"
            ),
            "bnext.inference.adaptation": "adapted_moments",
            "bnext.inference.conventions": (
                "from_convention guess_convention load_statistics to_convention"
            ),
            "bnext.inference.domains": "Domains",
            "bnext.inference.folding": "Affine fold fold_into_next",
            "bnext.inference.union": "micro_batches",
            "bnext.inference.update": "update_statistics",
            "bnext.layer_norm": "layer_norm_backward layer_norm_forward",
            "bnext.layers": (
                "BatchNorm BatchNorm1d BatchNorm2d BatchNorm3d BatchRenorm "
                "BatchRenorm1d BatchRenorm2d BatchRenorm3d GroupNorm InstanceNorm1d "
                "InstanceNorm2d InstanceNorm3d LayerNorm Recomputed RMSNorm"
            ),
            "bnext.renorm": "Ramp",
            "bnext.rms_norm": "rms_norm_backward rms_norm_forward",
        },
    )

__all__ = [
    "Affine",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Cumulative",
    "DebiasedExponential",
    "DeviceRowSaved",
    "DeviceSaved",
    "Domains",
    "Estimator",
    "Exponential",
    "FirstBatchExponential",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "Ramp",
    "Recomputed",
    "RowSaved",
    "Saved",
    "SecondGradients",
    "__version__",
    "adapted_moments",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_norm_forward",
    "cuda",
    "empty_cache",
    "fold",
    "fold_into_next",
    "from_convention",
    "functional",
    "get_num_threads",
    "group_norm_backward",
    "group_norm_forward",
    "guess_convention",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "load_statistics",
    "micro_batches",
    "moments",
    "normalize",
    "recompute",
    "rms_norm_backward",
    "rms_norm_forward",
    "set_num_threads",
    "show_config",
    "sync",
    "to_convention",
    "update_statistics",
    "use_isa",
]

apply_environment()
del apply_environment
