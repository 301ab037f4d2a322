"""Checks of the layers that a pass over data is given, and errors that name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bnext._moments import Moments
from bnext.groups.exchange import Float64Array
from bnext.groups.group import Group
from bnext.groups.visits import check_at_rest
from bnext.layers import BatchNorm

__all__ = [
    "Estimate",
    "called_twice",
    "checked_layers",
    "common_group",
    "not_reached",
]


class Estimate(NamedTuple):
    """What is to become a layer's statistics."""

    mean: Float64Array
    var: Float64Array

    @classmethod
    def of(cls, moments: Moments, bessel: bool) -> Estimate:
        """Make it of a layer's whole input, with Bessel's correction or without."""
        return cls(moments.mean, moments.unbiased_var if bessel else moments.var)


def checked_layers(layers: Any) -> list[BatchNorm]:
    """Make a list of the layers: at least one, each a layer of bnext, and each once."""
    checked = list(layers)
    if not checked:
        raise ValueError("layers: expected at least one, got none")
    for place, layer in enumerate(checked):
        if not isinstance(layer, BatchNorm):
            got = type(layer).__name__
            raise TypeError(f"layers[{place}]: expected a layer of bnext, got {got}")
        if any(layer is other for other in checked[:place]):
            raise ValueError(f"layers[{place}]: expected each layer once, got one a second time")
    check_at_rest(checked)
    return checked


def common_group(layers: Sequence[BatchNorm]) -> Group | None:
    """Give the group that all layers are in; ValueError if they are in different ones."""
    groups = [layer.group for layer in layers]
    for place, group in enumerate(groups):
        if group is not groups[0]:
            raise ValueError(
                f"layers[{place}]: expected the group of layers[0], {groups[0]!r}, got {group!r}"
            )
    return groups[0] if groups else None


def called_twice(place: int) -> ValueError:
    """Give the error for a layer that is shared within the network."""
    return ValueError(
        f"layers[{place}]: expected one call for each batch, got a second one: a layer that is "
        "shared has no statistics of one input"
    )


def not_reached(reached: set[int], layers: Sequence[BatchNorm]) -> ValueError:
    """Give the error for the first layer that is not among those that were `reached`."""
    place = next(place for place in range(len(layers)) if place not in reached)
    name = f"{type(layers[place]).__name__}({layers[place].num_features})"
    return ValueError(
        f"layers[{place}]: expected the network to call it, got no call of this {name}"
    )
