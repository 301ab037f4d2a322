"""The layers of a network: checked, lent to a group for a while, given back as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bnext.moments import Moments
from bnext.sync.group import Float64Array, Group

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = ["Estimate", "called_twice", "checked_layers", "common_group", "lent", "not_reached"]

LENT = (
    "group", "use_running_stats", "update_running_stats", "parameter_gradients", "_latest",
    "_moved_at",
)  # fmt: skip


class Estimate(NamedTuple):
    """What is to become a layer's statistics."""

    mean: Float64Array
    var: Float64Array

    @classmethod
    def of(cls, moments: Moments, bessel: bool) -> Estimate:
        """Make it of a layer's whole input, with Bessel's correction or without."""
        return cls(moments.mean, moments.unbiased_var if bessel else moments.var)


@contextlib.contextmanager
def lent(layers: Sequence[BatchNorm], group: Group) -> Iterator[None]:
    """Let the layers normalize by the statistics of `group`, and leave their own alone."""
    before = [{name: getattr(layer, name) for name in LENT} for layer in layers]
    latest = [dict(layer._latest_of) for layer in layers]
    try:
        for layer in layers:
            layer.group = group
            layer.use_running_stats = layer.update_running_stats = False
            layer.parameter_gradients = "local"
        yield
    finally:
        for layer, values, of_members in zip(layers, before, latest, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)
            layer._latest_of = of_members


def checked_layers(layers: Any) -> list[BatchNorm]:
    """Make a list of the layers: at least one, each a layer of bnext, and each once."""
    from bnext.layers import BatchNorm

    checked = list(layers)
    if not checked:
        raise ValueError("layers: expected at least one, got none")
    for place, layer in enumerate(checked):
        if not isinstance(layer, BatchNorm):
            got = type(layer).__name__
            raise TypeError(f"layers[{place}]: expected a layer of bnext, got {got}")
        if any(layer is other for other in checked[:place]):
            raise ValueError(f"layers[{place}]: expected each layer once, got one a second time")
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
