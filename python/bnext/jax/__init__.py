"""Normalization inside of JAX's programs, over bnext's kernels.

Pure functions: `batch_norm` and `normalize`, with `moments` and `move_running`; `layer_norm`,
`rms_norm`, `group_norm` and `instance_norm`. They are foreign functions of XLA, so they work under
`jax.jit`, `jax.grad` (also twice), `jax.vmap`, `jax.lax.scan`, `jax.checkpoint` and
`jax.shard_map`, on the CPU; `batch_norm` and `normalize` on a GPU too. `bnext.jax.flax` and
`bnext.jax.equinox` have the layers of these libraries. docs/jax.md has training loops.

From the bottom: gpu and foreign (the handlers of csrc/xla, on each platform), formulas (both passes
in JAX's own operations), training, inference and examples (both passes and their derivatives, on
arrays in shards by partition, of mapped examples by folding), functional, row_norms and cell_norms.
"""

try:
    import jax  # noqa: F401 - whose absence is to be named
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise ModuleNotFoundError(
        "bnext.jax: expected JAX to be installed (pip install jax), found none; the rest of bnext "
        "does without",
        name="jax",
    ) from None

from bnext.jax import foreign
from bnext.jax.cell_norms import group_norm, instance_norm
from bnext.jax.functional import Moments, batch_norm, moments, move_running, normalize
from bnext.jax.row_norms import layer_norm, rms_norm

foreign.register()

__all__ = [
    "Moments", "batch_norm", "group_norm", "instance_norm", "layer_norm", "moments",
    "move_running", "normalize", "rms_norm",
]  # fmt: skip
