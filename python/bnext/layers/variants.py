"""What training calls of some layers do in place of normalizing by one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnext import _core, ghosts
from bnext.groups.group import Group
from bnext.renorm import Renormalization

if TYPE_CHECKING:
    from bnext.layers.normalization import Normalization

__all__ = ["normalizes_by_ghosts", "renormalization", "variant_of"]


def variant_of(layer: Normalization) -> str:
    """Name the variant, as errors do; empty for a layer that normalizes by the whole batch."""
    if layer._renormalizes:
        return type(layer).__name__
    size = layer.ghost_batch_size
    return "" if size is None else f"ghost_batch_size={size}"


def renormalization(layer: Normalization, engine: Any, plain: bool) -> Renormalization | None:
    """Give what a training call of a layer makes of its parameters, if it renormalizes.

    A `plain` call normalizes by running statistics, or on a visit.
    """
    if not layer._renormalizes:
        return None
    vars(layer.running)["eps"] = layer.eps  # which they move by
    if plain or not layer.training:
        return None
    if layer.ghost_batch_size is not None:
        raise ValueError(
            f"ghost_batch_size: expected None for {type(layer).__name__}, got "
            f"{layer.ghost_batch_size}"
        )
    if engine is not _core:
        raise ValueError("x: expected an array on the CPU to renormalize, got one on a GPU")
    return Renormalization(layer)


def normalizes_by_ghosts(
    layer: Normalization, x: Any, out: Any, moved: Any, epilogue: Any, group: Group | None
) -> Any:
    """Do a training call of a layer by ghosts, if it has any; None if not."""
    size = layer.ghost_batch_size
    if size is None:
        return None
    if group is not None:
        raise ValueError(
            "ghost_batch_size: expected None in a group, whose members normalize by one batch, got "
            f"{size}"
        )
    return ghosts.forward(
        x, layer.weight, layer.bias, layer.eps, layer.channel_axis, out, moved, epilogue, size
    )
