"""What training calls of some layers do in place of normalizing by one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnext import _core, ghosts, spine
from bnext.groups.group import Group, Part
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


def varied(
    layer: Normalization, group: Group | None, plain: bool, x: Any, out: Any, given: Any,
    moved: Any, part: Part, epilogue: Any, engine: Any, explain: Any, weighting: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Do `spine.forward` for a call of a layer that varies, or of positions with weights.

    Parameters
    ----------
    layer : Normalization
        The layer.
    group : Group, optional
        In which the call is.
    plain : bool
        Whether the call normalizes by running statistics, or on a visit.
    x, out, given, moved, part, epilogue, engine, explain, weighting
        As `spine.forward` takes them.

    Returns
    -------
    tuple
        y, and what the backward call needs.
    """
    running, adjust = layer.running, None
    of = x, layer.weight, layer.bias, layer.eps, layer.channel_axis, out
    if isinstance(running, RenormRunning):
        running.eps = layer.eps  # which they move by
    if layer.training and not plain and variant_of(layer):
        with part:
            if weighting is not None:
                raise ValueError(
                    f"{weighting[3]}: expected None for a layer with {variant_of(layer)} in "
                    "training, got one"
                )
            if isinstance(running, RenormRunning):
                _check_renormalization(layer, engine)
                adjust = Renormalization(layer)
            else:
                check_alone(layer, group)
                assert layer.ghost_batch_size is not None
                result = ghosts.forward(*of, moved, epilogue, layer.ghost_batch_size)
                if result is not None:
                    return result
    y, saved = spine.forward(
        *of, given, moved, part, epilogue, engine, explain, adjust=adjust, weighting=weighting
    )
    return y, saved if adjust is None else adjust.saved(saved)


def _check_renormalization(layer: Normalization, engine: Any) -> None:
    if layer.ghost_batch_size is not None:
        raise ValueError(
            f"ghost_batch_size: expected None for {type(layer).__name__}, got "
            f"{layer.ghost_batch_size}"
        )
    if engine is not _core:
        raise ValueError("x: expected an array on the CPU to renormalize, got one on a GPU")
