"""Jagged tensors, whose examples follow each other: a layer of batch normalization takes values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_jagged", "of_jagged"]


def is_jagged(input: Any) -> bool:
    """Whether it is a nested tensor of PyTorch's jagged layout."""
    return isinstance(input, Tensor) and input.is_nested and input.layout is torch.jagged


def of_jagged(layer: Any, input: Any, residual: Any, positions: Mapping[str, Any]) -> Tensor:
    """Do `forward` of a layer for a jagged tensor: the batch is what all examples have.

    Parameters
    ----------
    layer : Module
        The layer.
    input : Tensor, shape (B, *, C, ...) or (B, C, *)
        With the ragged axis at the star.
    residual : Tensor, optional
        Of the same offsets.
    positions : mapping
        Of `sample_weight`, for each example or position, and `masked` alone.

    Returns
    -------
    Tensor
        Of the offsets of `input`.
    """
    for name in ("mask", "lengths", "offsets"):
        if positions.get(name) is not None:
            raise ValueError(
                f"{name}: expected None for a jagged input, which has its own, got one"
            )
    ragged = input._ragged_idx
    if ragged != 1 and (ragged, input.dim()) != (2, 3):
        raise ValueError(
            "input: expected a jagged tensor of shape (B, *, C, ...) or (B, C, *), got one of "
            f"{input.dim()} axes whose ragged axis is {ragged}"
        )
    offsets, lengths = input.offsets(), input.lengths()
    values = _rows(input)
    if residual is not None:
        if not is_jagged(residual) or residual.offsets() is not offsets:
            got = "one of other offsets" if is_jagged(residual) else type(residual).__name__
            raise ValueError(
                f"residual: expected a jagged tensor of the input's offsets, got {got}"
            )
        residual = _rows(residual)
    given = {name: value for name, value in positions.items() if value is not None}
    if lengths is not None or given or int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
        given |= {"offsets": offsets.cpu()}
        if lengths is not None:
            given["lengths"] = lengths.cpu()
    y = layer(values, residual, **given)
    if ragged == 2:
        y = y.t()
    return torch.nested.nested_tensor_from_jagged(
        y, offsets, lengths, jagged_dim=ragged, min_seqlen=input._maybe_min_seqlen,
        max_seqlen=input._maybe_max_seqlen,
    )  # fmt: skip


def _rows(nested: Any) -> Tensor:
    """Give values with a row for each position, and the channels next to it."""
    values: Tensor = nested.values()
    return values.t() if nested._ragged_idx == 2 else values
