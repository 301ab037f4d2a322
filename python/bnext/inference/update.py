"""Running statistics made anew from a data set, as inference is to use them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

from bnext.arguments import count_of
from bnext.groups.group import announcing
from bnext.inference.exact import exact
from bnext.inference.layers import checked_layers, common_group
from bnext.inference.one_pass import Average, Pooled, one_pass
from bnext.inference.progress import watching
from bnext.inference.replay import greenlets
from bnext.layers import BatchNorm
from bnext.running import check_tracked
from bnext.writes import Writes

__all__ = ["Update", "update_statistics"]

METHODS = ("exact", "pooled", "average")
KEEP = 1 << 28  # bytes


class Update(NamedTuple):
    """What it took.

    Attributes
    ----------
    batches : int
        How many the data have.
    passes : int
        How often they were gone through. Of the passes of the exact method all but the last end
        early, each at the layer whose statistics it collects.
    """

    batches: int
    passes: int


def update_statistics(
    network: Callable[[Any], Any],
    batches: Iterable[Any],
    layers: Iterable[BatchNorm],
    method: Literal["exact", "pooled", "average"] = "exact",
    *,
    keep: int | None = None,
    progress: bool = False,
) -> Update:
    """Make the running statistics of `layers` anew, for the parameters as they are now.

    Parameters
    ----------
    network : callable
        Called with one batch at a time; calls each of the layers once, in the same thread. What it
        returns is not looked at. Other layers in it do as their modes say.
    batches : iterable
        The data set, in batches of any, also unequal, sizes. ``"exact"`` goes through it several
        times and must find the same data, in any order.
    layers : iterable of BatchNorm
        The layers whose statistics are wanted, in any order; frozen ones as well.
    method : {"exact", "pooled", "average"}
        ``"exact"``: the definition. The first layer's statistics are those of its input over the
        whole data set; the second's, of its input if the first is normalized by its final
        statistics; and so on. This is what one batch with the whole data set would give, in the
        memory of one batch, whatever their sizes. Each layer takes a pass, which ends at that
        layer.

        ``"pooled"``: one pass. The statistics of a layer's input over the whole data set, where
        each batch is normalized by its own statistics on the way.

        ``"average"``: one pass. The means of the batches' means and of their variances,
        the latter with Bessel's correction ``m / (m - 1)`` for batches of m values per channel
        (Ioffe and Szegedy 2015, algorithm 2), unless the layer's estimator has none.
    keep : int, optional
        How many bytes of activations ``"exact"`` may keep, counted as what the layers are given.
        Where those of all batches fit, every batch is left in the middle of the network until all
        have come as far, and one pass is enough. 256 MiB if not given, and 0 without the package
        greenlet (``pip install 'bnext[statistics]'``).
    progress : bool
        Whether to show a bar; needs rich.

    Returns
    -------
    Update
        How many batches there were, and how many passes over them it took.

    Raises
    ------
    ValueError
        There are no data, a layer is not reached, or is called twice for a batch, or the network
        calls layers in another order for another batch; the layers have no running statistics, or
        different groups; ``"exact"`` got an iterator, which ends after one pass; other methods a
        batch with one value per channel; a running statistic is read-only.
    TypeError
        An argument is of a wrong type.
    RuntimeError
        A layer is in the middle of another call of this, or of a step of `micro_batches`, in the
        same thread.

    Notes
    -----
    After an error, whosever it is, all layers are as they were. Otherwise `running_mean` and
    `running_var` are replaced (the variance with Bessel's correction, unless the layer's estimator
    has none), and `num_batches_tracked` is the number of batches. A layer with `skip_nonfinite`
    leaves out batches whose statistics are not finite where they come to it, and
    `num_batches_skipped` is their number. Modes and switches stay.

    In a group, every member brings its own part of the data set; the number of batches may differ
    for ``"exact"`` and must not for the others.
    """
    targets = checked_layers(layers)
    for place, layer in enumerate(targets):
        check_tracked(layer, f"layers[{place}]")
        layer.running.check_movable(f"layers[{place}].")
    check_method(method)
    if not callable(network):
        raise TypeError(f"network: expected a callable, got {type(network).__name__}")
    check_batches(batches, method)
    if keep is not None:
        try:
            keep = count_of(keep, "keep")
        except (TypeError, ValueError):
            raise ValueError(f"keep: expected a number of bytes >= 0, got {keep!r}") from None
    group = common_group(targets)
    if group is not None:
        group.check_open()
    with watching(progress) as watch, announcing(group) if group else contextlib.nullcontext():
        if method == "exact":
            memory = (KEEP if keep is None else keep) if greenlets() else 0
            estimates, sizes, left_out = exact(network, batches, targets, group, memory, watch)
        else:
            kind = Pooled if method == "pooled" else Average
            estimates, sizes, left_out = one_pass(network, batches, targets, group, kind, watch)
    update = Update(batches=sizes[0], passes=len(sizes))
    writes = Writes()
    for place, (layer, estimate) in enumerate(zip(targets, estimates, strict=True)):
        new: dict[str, Any] = {"running_mean": estimate.mean, "running_var": estimate.var}
        if layer.num_batches_tracked is not None:
            new["num_batches_tracked"] = update.batches - left_out[place]
        if layer.num_batches_skipped is not None:
            new["num_batches_skipped"] = left_out[place]
        for name, value in new.items():
            writes.add(f"layers[{place}].{name}", getattr(layer, name), value, layer.dtype)
    writes.commit()
    return update


def check_method(method: str) -> None:
    """Raise a ValueError for what is none of the methods."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")


def check_batches(batches: Any, method: str, name: str = "batches") -> None:
    """Raise an error for what cannot be gone through as often as the method does."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name}: expected an iterable, got {type(batches).__name__}")
    if method == "exact" and isinstance(batches, Iterator):
        raise ValueError(
            f"{name}: expected an iterable that can be gone through several times, got an "
            f"iterator ({type(batches).__name__}), which ends after one pass"
        )
