"""The layers of a network: checked, lent to a group for a while, given back as they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bnext._moments import Moments
from bnext.sync.group import Float64Array, Group

if TYPE_CHECKING:
    from bnext.layers import BatchNorm

__all__ = [
    "Estimate",
    "Loan",
    "called_twice",
    "check_not_lent",
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


class Loan:
    """Layers that are to normalize by the statistics of a group, and leave their own alone.

    `begin` and `give_back` change all layers in one call of C, in which no signal handler runs. So
    a caller that gives back in a ``finally`` has its layers after Ctrl-C as well.

    Parameters
    ----------
    layers : sequence of BatchNorm
        None of which is lent.
    group : Group
        Where they are lent to.
    """

    def __init__(self, layers: Sequence[BatchNorm], group: Group) -> None:
        check_not_lent(layers)
        attributes: dict[str, Any] = {
            "group": group, "use_running_stats": False, "update_running_stats": False,
            "parameter_gradients": "local", "_latest": None, "_moved_at": None,
        }  # fmt: skip
        during = [attributes | {"_latest_of": {}} for _ in layers]
        before = [{name: vars(layer)[name] for name in during[0]} for layer in layers]
        self.begin = _setting(layers, during)
        self.give_back = _setting(layers, before)


def _setting(layers: Sequence[BatchNorm], attributes: list[dict[str, Any]]) -> Callable[[], Any]:
    """Give a call that sets attributes of all layers, once."""
    return partial(deque, map(dict.update, [vars(layer) for layer in layers], attributes), 0)


def check_not_lent(layers: Sequence[BatchNorm]) -> None:
    """RuntimeError for a layer that is lent already: its group would be taken for the user's."""
    for place, layer in enumerate(layers):
        if layer.group is not None and layer.group.borrows:
            raise RuntimeError(
                f"layers[{place}]: expected a layer at rest, got one in the middle of "
                "update_statistics or of a step of micro_batches, which cannot be nested"
            )


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
    check_not_lent(checked)
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
