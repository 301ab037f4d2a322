"""Whether the package can compute on a GPU. This version has kernels for the CPU only."""

from __future__ import annotations

__all__ = ["is_available", "reason"]


def is_available() -> bool:
    """Whether CUDA arrays can be normalized.

    Returns
    -------
    bool
        False: this version has no CUDA kernels.
    """
    return False


def reason() -> str:
    """Why not.

    Returns
    -------
    str
        One line.
    """
    return "this version of bnext has no CUDA kernels"
