"""Exchanging the batch normalization of whole models, and back."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from bnext.groups.group import Group
from bnext.torch.classes import (
    ConversionWarning,
    NoCounterpart,
    class_of,
    is_candidate,
    is_exchanged,
    is_ours,
    original,
    qualified,
    reparametrized,
    target_of,
)
from bnext.torch.copies import shallow_copy
from bnext.torch.fusion import is_fused, planned_fusions, set_fusion
from bnext.torch.modules import Forward
from bnext.torch.norms import BATCH, checked_norms, norm_of, target_of_norm
from bnext.torch.patterns import own_activation
from bnext.torch.recomputation import is_recomputing, set_recomputing
from bnext.torch.reports import Layer, check_module, told
from bnext.torch.skipping import set_skipping
from bnext.torch.sync import SyncBatchNorm, check_group

__all__ = ["as_torch", "check_bare", "convert", "revert"]

Module = TypeVar("Module", bound=torch.nn.Module)


def convert(
    model: Module, sync: Group | Any = None, *, fuse: bool = False, recompute: bool = False,
    skip_nonfinite: bool = False, norms: str | Collection[str] = BATCH,
) -> Module:  # fmt: skip
    """Make every layer of PyTorch's batch normalization in `model` one of bnext's, in place.

    So it does for other norms, if they are named.

    The modules stay the objects that they are and change their class: parameters, buffers, hooks,
    modes and names, and references to a module from elsewhere, stay as they are. Subclasses are
    exchanged as well, and stay instances of their class under its name, if they have no `forward`
    or one that calls ``super().forward``, or one that repeats PyTorch's code before modules named
    ``drop`` and ``act`` (timm's ``BatchNormAct2d``); so are parametrized layers, and lazy ones,
    which become bnext's at their first call. Frozen layers (``FrozenBatchNorm2d`` of torchvision,
    of DETR, of Detectron2) are exchanged if all that they do is to multiply and add by four
    buffers; for input of another dtype than these they run their own code.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or a single layer.
    sync : bnext.sync.Group, torch.distributed.ProcessGroup or True, optional
        Make them `SyncBatchNorm` layers of that group; True is PyTorch's default group.
    fuse : bool
        Have layers do what follows them: an addition, an activation (as in
        `functional.batch_norm`). Where the forward of a module calls a layer and, with nothing in
        between, adds a tensor to its output, or applies an activation, or both, one call takes the
        place of all. So it does for a layer's own activation (``BatchNormAct2d``). The module gets
        a subclass of its class under the same name; modules, names, hooks and state dicts stay.
        Values are the same up to rounding. `report` lists what is fused, and for other layers the
        reason. In evaluation without gradients, on the CPU, a layer of such a module writes its
        result over the output of a convolution, a linear layer or `torch.cat`, where nothing can
        see that: no hook, mode, profiler, other use or reference.
        Of the other norms, `LayerNorm` and `RMSNorm` do all of it, groups and instances the
        activation alone.
    recompute : bool
        Have autograd keep the inputs of layers and not their outputs, which are made again to the
        bit when a backward pass asks for them. Best with `fuse`, which makes an activation, or a
        residual block's output, the output of a layer. It holds for forward passes of `model`
        itself, on the CPU; compiled, it is left to the compiler.
    skip_nonfinite : bool
        Have layers with running statistics skip batches that are not finite, as `BatchNorm1d` has
        it.
    norms : str or collection of str
        Which layers are exchanged: "batch", "layer" (`LayerNorm`), "rms" (`RMSNorm`), "group"
        (`GroupNorm`), "instance" (`InstanceNorm1d` and its like), several of these, or "all".
        Subclasses of those besides batch normalization are exchanged if they inherit PyTorch's
        `forward`, or call ``super().forward``.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        `model` is no module, or `sync` no group. Nothing was changed then.
    ValueError
        `norms` has another name. Nothing was changed then.

    Notes
    -----
    Forward passes are traced by `torch.fx`, child modules as single operations, in both modes. One
    that depends on values, draws random numbers, has contexts (``no_grad``, checkpoints) or sets
    attributes is left alone. A fused module goes back to its own forward for a call with other
    arguments, under hooks on the fused layers and activations, and after its settings or children
    have changed. Copies of it are fused, pickles are not.

    Warns
    -----
    ConversionWarning
        Layers of PyTorch's batch normalization stay as they are: which, how many, and why. There is
        one warning a call; `report` lists all layers.
    """
    check_module(model)
    if sync is not None:
        check_group(None if sync is True else sync, "sync")
    synced = sync is not None
    names = checked_norms(norms)
    changes, left = _planned(model, synced, names)
    with _all_or_nothing(module for module, _ in changes):
        for module, ours in changes:
            if synced and isinstance(module, _BatchNorm):
                kind = class_of(module)
                group = getattr(module, "process_group", None)
                vars(module).setdefault("_was", (original(kind), group))
                module.process_group = None if sync is True else sync
            _set_class(module, ours)
    if skip_nonfinite:
        for layer in model.modules():
            if isinstance(layer, Forward) and layer.num_batches_tracked is not None:
                layer.skip_nonfinite = True
    recompute |= is_recomputing(model)
    set_recomputing(model, on=False)
    if fuse:
        _fuse(model)
    if recompute:
        for layer in model.modules():
            if isinstance(layer, Forward):
                layer.__dict__["_recompute"] = True
        if any(True for _ in model.children()):
            set_recomputing(model, on=True)
    if left:
        which = "1 layer" if len(left) == 1 else f"{len(left)} layers"
        stay = "stays" if len(left) == 1 else "stay"
        what = "batch normalization" if names == {BATCH} else "normalization"
        lines = [f"convert: {which} of {what} {stay} PyTorch's", *told(left)]
        if BATCH in names:
            lines.append("bnext.torch.report(model) lists all layers")
        warnings.warn("\n".join(lines), ConversionWarning, stacklevel=2)
    return model


def revert(model: Module) -> Module:
    """Undo `convert`, in place: every layer of bnext's becomes PyTorch's again.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or a single layer.

    Returns
    -------
    torch.nn.Module
        `model`. Layers that `convert` has made synchronized become what they were before it, and
        subclasses the class that they are of. A lazy layer that has been called by then becomes
        the class that PyTorch's lazy layer becomes. Frozen layers follow the model's mode again;
        their parameters stay constants (`unfreeze` before it makes them train).

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        A `SyncBatchNorm` that was not made by `convert` is in a group of bnext's, of which
        PyTorch's know nothing; or a layer was made with ``activation=``, which PyTorch's have not.
        Nothing was changed then.
    """
    check_module(model)
    for name, module in model.named_modules():
        if _is_changed(module):
            check_bare(module, name)
    fused = [each for each in model.modules() if is_fused(each)]
    before = {each: _before(each) for each in model.modules() if _is_changed(each)}
    with _all_or_nothing(before):
        for module, (kind, group) in before.items():
            _become(module, kind, group)
    for module in model.modules():
        set_recomputing(module, on=False)
    for module in fused:
        set_fusion(module, None)
    return model


def _fuse(model: torch.nn.Module) -> None:
    """Fuse what can be fused, and note why other layers are not."""
    plans, reasons = planned_fusions(model)
    for module, fusion in plans:
        try:
            set_fusion(module, fusion)
        except TypeError as error:
            text = f"{type(module).__name__}: its class has no subclass: {error}"
            reasons |= {module.get_submodule(each.name): text for each in fusion.layers}
    for layer in model.modules():
        vars(layer).pop("_apart", None)
        if own_activation(layer) is not None:
            vars(layer)["_acts"] = True
    for layer, why in reasons.items():
        vars(layer)["_apart"] = why


def check_bare(layer: Any, name: str = "") -> None:
    """ValueError for a layer that applies an activation of its own: PyTorch has none like it."""
    activation = getattr(layer, "_activation", (None,))[0]
    if activation is not None:
        where = f" at {name}" if name else ""
        raise ValueError(
            f"model: expected layers that PyTorch has as well, got {class_of(layer).__name__} with "
            f"activation={activation!r}{where}: make it of two modules, and convert(fuse=True)"
        )


def as_torch(layer: Any) -> Any:
    """Give a layer of PyTorch's that has what a layer of bnext's has, in whatever group that is.

    An activation of its own is left out.
    """
    kind = class_of(layer)
    if not is_exchanged(kind):
        return layer
    plain = shallow_copy(layer)
    _become(plain, original(kind), None)
    return plain


def _planned(
    model: torch.nn.Module, sync: bool, norms: frozenset[str]
) -> tuple[list[tuple[Any, type]], list[Layer]]:
    """Find which layers get which class, and which stay as they are."""
    changes, left = [], []
    for name, module in model.named_modules():
        is_batch = is_candidate(module)
        if (BATCH if is_batch else norm_of(module)) not in norms:
            continue
        try:
            target = target_of(module, sync) if is_batch else target_of_norm(module)
            changes.append((module, target))
        except NoCounterpart as reason:
            left.append(Layer(name, qualified(class_of(module)), reason=str(reason)))
    return changes, left


@contextmanager
def _all_or_nothing(modules: Iterable[Any]) -> Iterator[None]:
    """Give layers their class and state of before if the block ends in an error."""
    before = [(module, type(module), dict(vars(module))) for module in modules]
    try:
        yield
    except BaseException:
        for module, kind, state in before:
            object.__setattr__(module, "__class__", kind)
            vars(module).clear()
            vars(module).update(state)
        raise


def _set_class(module: Any, kind: type) -> None:
    """Change the class of a layer below its parametrizations, if it has any."""
    if class_of(module) is not kind:
        parametrized = class_of(module) is not type(module)
        module.__class__ = reparametrized(type(module), kind) if parametrized else kind


def _is_changed(module: Any) -> bool:
    """Whether a layer stands for another, or is in a group that `convert` has given it."""
    return is_exchanged(class_of(module)) or (is_ours(module) and "_was" in vars(module))


def _before(module: Any) -> tuple[type, Any]:
    """Find what a layer of ours was, or is nearest to, and in which group."""
    if "_was" in vars(module):
        kind, group = module._was
    else:
        kind, group = original(class_of(module)), getattr(module, "process_group", None)
    if isinstance(group, Group) and not issubclass(kind, SyncBatchNorm):
        raise ValueError(
            f"model: expected layers that PyTorch has as well, got a SyncBatchNorm in {group!r}"
        )
    return kind, group


def _become(module: Any, kind: Any, group: Any) -> None:
    """Make a layer of ours one of `kind`, in a group of PyTorch's if it is synchronized."""
    if issubclass(kind, LazyModuleMixin) and "_initialize_hook" not in vars(module):
        kind = kind.cls_to_become
    vars(module).pop("_was", None)
    for name in ("_apart", "_acts", "_recompute", "_frozen", "_special"):
        vars(module).pop(name, None)
    set_skipping(module, False)
    if "process_group" in vars(module):
        module.process_group = group
        if not issubclass(kind, torch.nn.SyncBatchNorm | SyncBatchNorm):
            del module.process_group
    _set_class(module, kind)
