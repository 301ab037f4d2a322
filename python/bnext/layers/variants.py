"""What training calls of some layers do in place of normalizing by one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnext import _core, ghosts, spine
from bnext.groups.group import Group
from bnext.renorm import Renormalization, RenormRunning

if TYPE_CHECKING:
    from bnext.layers.normalization import Normalization

__all__ = ["check_alone", "variant_of", "varied"]


def variant_of(layer: Normalization) -> str:
    """Name the variant, as errors do; empty for a layer that normalizes by the whole batch."""
    if isinstance(layer.running, RenormRunning):
        return type(layer).__name__
    size = layer.ghost_batch_size
    return "" if size is None else f"ghost_batch_size={size}"


def check_alone(layer: Normalization, group: Group | None) -> None:
    """ValueError for ghosts in a group."""
    if group is not None and layer.ghost_batch_size is not None:
        raise ValueError(
            "ghost_batch_size: expected None in a group, whose members normalize by one batch, got "
            f"{layer.ghost_batch_size}"
        )


def varied(layer: Normalization, group: Group | None, plain: bool, *of: Any) -> tuple[Any, Any]:
    """Do a call of a layer: give y, and what the backward call needs.

    Parameters
    ----------
    layer : Normalization
        A layer that varies.
    group : Group, optional
        In which the call is.
    plain : bool
        Whether the call normalizes by running statistics, or on a visit.
    *of
        The first arguments of `spine.forward`.
    """
    *first, _, moved, part, epilogue, engine, _ = of
    running, adjust = layer.running, None
    if isinstance(running, RenormRunning):
        running.eps = layer.eps  # which they move by
    with part:
        if plain or not layer.training:
            pass
        elif isinstance(running, RenormRunning):
            _check_renormalization(layer, engine)
            adjust = Renormalization(layer)
        else:
            check_alone(layer, group)
            by_ghosts = ghosts.forward(*first, moved, epilogue, layer.ghost_batch_size)
            if by_ghosts is not None:
                return by_ghosts  # type: ignore[no-any-return]
    y, saved = spine.forward(*of, adjust=adjust)
    return y, saved if adjust is None else adjust.saved(saved)


def _check_renormalization(layer: Normalization, engine: Any) -> None:
    if layer.ghost_batch_size is not None:
        raise ValueError(
            f"ghost_batch_size: expected None for {type(layer).__name__}, got "
            f"{layer.ghost_batch_size}"
        )
    if engine is not _core:
        raise ValueError("x: expected an array on the CPU to renormalize, got one on a GPU")
