"""Batch normalization inside of JAX's programs, over bnext's kernels.

Pure functions: `batch_norm` and `normalize`, with `moments` and `move_running`. They are foreign
functions of XLA, so they work under `jax.jit`, `jax.grad` (also twice), `jax.vmap`, `jax.lax.scan`,
`jax.checkpoint` and `jax.shard_map`, on the CPU. `bnext.jax.flax` and `bnext.jax.equinox` have the
layers of these libraries. docs/jax.md has training loops.

From the bottom: foreign (the handlers of csrc/xla), formulas (both passes in JAX's own operations),
training and inference (both passes and their derivatives), functional.
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
from bnext.jax.functional import Moments, batch_norm, moments, move_running, normalize

foreign.register()

__all__ = ["Moments", "batch_norm", "moments", "move_running", "normalize"]
