"""Running statistics of a model made anew from a loader, as inference is to use them.

`bnext.update_statistics` has the definitions. A pass runs the model without gradients, in
evaluation mode but for layers that normalize by the batch. Hooks take the moments of what layers
are given, before these are called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bnext._moments import Moments
from bnext.inference.progress import Watch, watching
from bnext.inference.update import Update, check_batches, check_method
from bnext.single_pass import moments as moments_of
from bnext.torch.adaptation import Blended
from bnext.torch.batches import caller, device_of
from bnext.torch.kernels import DATA
from bnext.torch.reports import check_module
from bnext.torch.skipping import SKIPPED
from bnext.torch.sync import has_others

__all__ = ["update_statistics"]

# Called with a layer, its input, and which positions of that count.
_Act = Callable[[Any, Tensor, dict[str, Any]], None]
OF_MOMENTS = ("mask", "sample_weight", "lengths", "offsets")


def update_statistics(
    model: torch.nn.Module,
    loader: Iterable[Any],
    method: Literal["exact", "pooled", "average"] = "exact",
    *,
    layers: Iterable[torch.nn.Module] | None = None,
    call: Callable[[torch.nn.Module, Any], Any] | None = None,
    device: Any = None,
    progress: bool = False,
) -> Update:
    """Make the running statistics of a model anew, for the parameters as they are now.

    Parameters
    ----------
    model : torch.nn.Module
        Of PyTorch's or bnext's layers. Everything but the layers of batch normalization runs in
        evaluation mode.
    loader : iterable
        Batches, of any sizes; ``"exact"`` goes through it several times and must find the same
        data, in any order. A batch is what the model is called with: a tensor or another object; a
        dict of named arguments; a tuple or list, of which the model gets as many elements as its
        ``forward`` has arguments without a default, and at least one. Labels are thus left out;
        so are elements of a dict for which ``forward`` has no argument. If ``forward`` has one
        argument without a default, which the dict does not name, that argument is the dict. Of a
        model in a wrapper (`DistributedDataParallel`) these are the arguments of the model.
    method : {"exact", "pooled", "average"}
        As in `bnext.update_statistics`. ``"exact"``, the definition, takes a pass for each layer,
        which ends at that layer, and holds one batch at a time; the others take one pass.
    layers : iterable of torch.nn.Module, optional
        The layers whose statistics are wanted; all that track any if not given.
    call : callable, optional
        ``call(model, batch)`` in place of the rules above, for a batch on the device.
    device : torch.device or str, optional
        Where batches are moved to, whatever they consist of; the device of the model's first
        parameter if not given.
    progress : bool
        Whether to show a bar; needs rich.

    Returns
    -------
    Update
        How many batches there were, and how many passes over them it took.

    Raises
    ------
    ValueError
        There are no data or no layers; a layer is not reached, or is called twice for a batch, or
        has one value per channel in a batch (not for ``"exact"``); it is lazy and has not been
        called; it normalizes in a group of several members; ``"exact"`` got an iterator, which ends
        after one pass.
    TypeError
        An argument is of a wrong type.

    Notes
    -----
    After an error all layers are as they were. Otherwise `running_mean` and `running_var` are
    replaced (the variance with Bessel's correction), and `num_batches_tracked` is the number of
    batches. A layer with ``skip_nonfinite`` leaves out batches whose statistics are not finite
    where they come to it, and counts them in `num_batches_skipped`. Modes stay. Compiled models run
    eagerly here. Where calls of a layer have masks, lengths or weights, the statistics are of what
    counts.
    """
    check_module(model)
    targets = _targets(model, layers)
    check_method(method)
    check_batches(loader, method, "loader")
    run = caller(model, call, device_of(model, device))
    with _as_it_was(model, targets), torch.no_grad(), _eagerly(), watching(progress) as watch:
        model.eval()
        if method == "exact":
            return _exact(run, loader, targets, watch)
        return _one_pass(run, loader, targets, watch, pooled=method == "pooled")


# --- the layers -----------------------------------------------------------------------------------


def _targets(model: torch.nn.Module, layers: Any) -> dict[Any, str]:
    """Give the layers whose statistics are wanted, with their names."""
    names = {each: name or "the model itself" for name, each in model.named_modules()}
    if layers is None:
        wanted = [
            each for each in names
            if isinstance(each, _BatchNorm) and each.running_mean is not None
        ]  # fmt: skip
        if not wanted:
            raise ValueError("model: expected a layer with running statistics, got none")
    else:
        wanted = list(layers)
        if not wanted:
            raise ValueError("layers: expected at least one, got none")
    for place, layer in enumerate(wanted):
        title = f"layers[{place}]" if layers is not None else names[layer]
        if not isinstance(layer, _BatchNorm):
            got = type(layer).__name__
            raise TypeError(f"{title}: expected a layer of batch normalization, got {got}")
        if layer not in names:
            raise ValueError(f"{title}: expected a layer of the model, got another")
        if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
            raise ValueError(f"{title}: expected a layer that has been called, got a lazy one")
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"{title}: expected running statistics, got none")
        if hasattr(layer, "process_group") and has_others(layer.process_group):
            raise ValueError(
                f"{title}: expected a layer outside groups, got one of "
                f"{layer.process_group or 'the default group'!r}: bnext.torch.revert the model, "
                "and go through the data of all members"
            )
    return {layer: names[layer] for layer in wanted}


@contextlib.contextmanager
def _as_it_was(model: torch.nn.Module, targets: dict[Any, str]) -> Iterator[None]:
    """Give modules their modes back, and layers their statistics after an error."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [each for layer in targets for each in _buffers_of(layer)]
    before = [each.clone() for each in buffers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for each, values in zip(buffers, before, strict=True):
                each.copy_(values)
        raise
    finally:
        for module, mode in modes:
            module.training = mode


def _buffers_of(layer: Any) -> list[Tensor]:
    skipped = layer._buffers.get(SKIPPED)
    every = (layer.running_mean, layer.running_var, layer.num_batches_tracked, skipped)
    return [each for each in every if each is not None]


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """Run compiled code eagerly: hooks on layers would compile it again."""
    stance = getattr(torch.compiler, "set_stance", None)
    with contextlib.nullcontext() if stance is None else stance("force_eager"):
        yield


@contextlib.contextmanager
def _before_calls(layers: Iterable[Any], act: _Act) -> Iterator[None]:
    """Have `act` get each of the layers with its input and masks, before each call."""

    def hook(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        positions = {name: named[name] for name in OF_MOMENTS if name in named}
        act(layer, given[0] if given else named["input"], positions)

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _set(layer: Any, mean: Any, var: Any, batches: int, left_out: int) -> None:
    for buffer, values in ((layer.running_mean, mean), (layer.running_var, var)):
        buffer.copy_(torch.tensor(np.asarray(values)))
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches - left_out)
    if SKIPPED in layer._buffers:
        layer._buffers[SKIPPED].fill_(left_out)


def _leaves_out(layer: Any, moments: Moments) -> bool:
    """Whether a layer skips a batch, since its statistics are not finite."""
    if SKIPPED not in layer._buffers:
        return False
    rows = torch.tensor(np.stack([moments.mean, moments.m2 / max(moments.count - 1, 1)]))
    return not bool(rows.to(layer.running_mean.dtype).isfinite().all())


def _no_batch(left_out: bool) -> ValueError:
    data = "finite data" if left_out else "data"
    return ValueError(f"loader: expected at least one batch with {data}, got none")


def _moments_of(x: Tensor, positions: dict[str, Any]) -> Moments:
    """Count, mean and sum of squared deviations of each channel, of what counts, in float64."""
    if any(value is not None for value in positions.values()):
        return moments_of(x.detach(), **positions)
    if x.device.type == "cpu" and x.dtype in DATA and x.layout is torch.strided and x.numel():
        return moments_of(x.detach())
    wide = x.detach().double().transpose(0, 1).flatten(1)
    mean = wide.mean(1, keepdim=True) if wide.size(1) else wide.new_zeros(len(wide), 1)
    m2 = (wide - mean).square().sum(1)
    return Moments(wide.size(1), mean.squeeze(1).cpu().numpy(), m2.cpu().numpy())


# --- the methods ----------------------------------------------------------------------------------


class _Reached(BaseException):
    """Ends a pass at a layer whose statistics it collects; no Exception, so that few catch it."""


def _exact(
    run: Callable[[Any], Any], loader: Iterable[Any], targets: dict[Any, str], watch: Watch
) -> Update:
    """Layer after layer: each over the whole data set, behind layers that have theirs already."""
    done: dict[Any, None] = {}
    batches = passes = 0
    while len(done) < len(targets):
        words = f"layer {len(done) + 1} of {len(targets)}"
        layer, moments, number, left_out = _next_layer(run, watch(loader, words), targets, done)
        passes += 1
        batches = batches or number
        if number != batches:
            raise ValueError(
                f"loader: expected the same in every pass, got {batches} batches in the first and "
                f"{number} in pass {passes}"
            )
        if moments.count == 0:
            raise _no_batch(left_out > 0)
        _set(layer, moments.mean, moments.unbiased_var, batches, left_out)
        done[layer] = None
    _check_once(run, loader, targets)
    return Update(batches=batches, passes=passes)


def _next_layer(
    run: Callable[[Any], Any],
    batches: Iterable[Any],
    targets: dict[Any, str],
    done: dict[Any, None],
) -> tuple[Any, Moments, int, int]:
    """Run every batch to the first layer that has no statistics yet.

    Gives the layer, its moments, how many batches there were, and how many it left out.
    """
    found: list[Any] = []
    moments = None
    number = left_out = 0

    def stop(layer: Any, x: Tensor, positions: dict[str, Any]) -> None:
        nonlocal moments, left_out
        if found and layer is not found[0]:
            raise ValueError(
                "model: expected the same calls for every batch, got one of "
                f"{targets[layer]} where another batch had one of {targets[found[0]]}"
            )
        found[:] = [layer]
        of_batch = _moments_of(x, positions)
        if _leaves_out(layer, of_batch):
            left_out += 1
            of_batch = Moments.empty(of_batch.channels)
        moments = of_batch if moments is None else moments + of_batch
        raise _Reached

    with _before_calls([each for each in targets if each not in done], stop):
        for batch in batches:
            number += 1
            try:
                run(batch)
            except _Reached:
                continue
            missing = [name for each, name in targets.items() if each not in done]
            raise _not_reached(missing)
    if moments is None:
        raise ValueError("loader: expected at least one batch, got none")
    return found[0], moments, number, left_out


def _not_reached(names: list[str]) -> ValueError:
    return ValueError(
        f"model: expected a batch to reach every layer, got no call of {', '.join(names)} "
        "(layers= leaves some out)"
    )


def _check_once(run: Callable[[Any], Any], loader: Iterable[Any], targets: dict[Any, str]) -> None:
    """ValueError if a batch comes to a layer twice."""
    with _counted(targets):
        for batch in loader:
            run(batch)
            break


@contextlib.contextmanager
def _counted(targets: dict[Any, str], act: _Act = lambda *_: None) -> Iterator[set[Any]]:
    """Let layers be called once for a batch; give the set of those that were, to be emptied."""
    called: set[Any] = set()

    def count(layer: Any, x: Tensor, positions: dict[str, Any]) -> None:
        if layer in called:
            raise ValueError(
                f"{targets[layer]}: expected one call for each batch, got a second one: a layer "
                "that is shared has no statistics of one input"
            )
        called.add(layer)
        act(layer, x, positions)

    with _before_calls(targets, count):
        yield called


@contextlib.contextmanager
def _by_whole_batches(layers: Iterable[Any]) -> Iterator[None]:
    """Have layers with ghosts, and those that renormalize, do neither."""
    before = [(vars(layer), vars(layer).get("_special")) for layer in layers]
    try:
        for layer, (attributes, special) in zip(layers, before, strict=True):
            if special is not None or hasattr(layer, "_alone"):
                attributes["_special"] = Blended(0.0)
        yield
    finally:
        for attributes, special in before:
            attributes.pop("_special", None)
            if special is not None:
                attributes["_special"] = special


def _one_pass(
    run: Callable[[Any], Any], loader: Iterable[Any], targets: dict[Any, str], watch: Watch,
    *, pooled: bool,
) -> Update:  # fmt: skip
    """All layers at once, where each batch is normalized by its own statistics on the way."""
    union: dict[Any, Any] = {}
    means: dict[Any, tuple[Any, Any, int]] = {}
    left_out = dict.fromkeys(targets, 0)

    def take(layer: Any, x: Tensor, positions: dict[str, Any]) -> None:
        moments = _moments_of(x, positions)
        if _leaves_out(layer, moments):
            left_out[layer] += 1
            moments = Moments.empty(moments.channels)
        if pooled:
            union[layer] = union[layer] + moments if layer in union else moments
        elif moments.count > 0:
            mean, var, count = means.get(layer, (0.0, 0.0, 0))
            share = 1.0 / (count + 1)  # averages that move: nothing grows with the batches
            mean = mean + (moments.mean - mean) * share
            means[layer] = mean, var + (moments.unbiased_var - var) * share, count + 1

    for layer in targets:
        layer.training = True
    number = 0
    with _by_whole_batches(targets), _counted(targets, take) as called:
        for batch in watch(loader, "all layers"):
            called.clear()
            run(batch)
            missing = [name for each, name in targets.items() if each not in called]
            if missing:
                raise _not_reached(missing)
            number += 1
    if number == 0:
        raise ValueError("loader: expected at least one batch, got none")
    for layer in targets:
        skipped = left_out[layer]
        if layer not in means and (not pooled or skipped == number):
            raise _no_batch(skipped > 0)
        if pooled:
            _set(layer, union[layer].mean, union[layer].unbiased_var, number, skipped)
        else:
            _set(layer, *means[layer][:2], number, skipped)
    return Update(batches=number, passes=1)
