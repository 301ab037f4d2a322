"""Batch normalization for Keras 3: its layer over bnext's kernels.

With JAX as Keras's backend `bnext.jax` calls the kernels, with PyTorch `bnext.torch`, with NumPy
the functions for arrays. docs/keras.md has a training loop.

From the bottom: backends (one call for each of them), layer, conversion.
"""

try:
    import keras  # noqa: F401 - whose absence is to be named
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ModuleNotFoundError(
        "bnext.keras: expected Keras 3 to be installed (pip install keras), found none",
        name="keras",
    ) from None

from bnext.keras.conversion import convert, revert
from bnext.keras.layer import BatchNormalization

__all__ = ["BatchNormalization", "convert", "revert"]
