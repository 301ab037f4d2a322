"""Exchanging the batch normalization of whole models, and back."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from bnext.sync import Group
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnext.torch.sync import SyncBatchNorm, check_group

__all__ = ["convert", "revert"]

Module = TypeVar("Module", bound=torch.nn.Module)

OURS: dict[type, type] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
    torch.nn.SyncBatchNorm: SyncBatchNorm,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def convert(model: Module, sync: Group | Any = None) -> Module:
    """Make every layer of PyTorch's batch normalization in `model` one of bnext's, in place.

    The modules stay the objects that they are and change their class: parameters, buffers, hooks,
    modes, names, and whoever else holds the module, have nothing to notice. Subclasses that a user
    has written are left alone, since nobody knows what they do.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or a single layer.
    sync : bnext.sync.Group, torch.distributed.ProcessGroup or True, optional
        Make them `SyncBatchNorm` layers of that group; True is PyTorch's default group.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        `model` is no module, or `sync` no group.
    """
    _check(model)
    if sync is not None:
        check_group(None if sync is True else sync, "sync")
    module: Any
    for module in model.modules():
        kind = type(module)
        if sync is not None and (kind in OURS or kind in THEIRS):
            if "_was" not in vars(module):
                group = getattr(module, "process_group", None)
                module._was = (THEIRS.get(kind, kind), group)
            module.__class__ = SyncBatchNorm
            module.process_group = None if sync is True else sync
        elif kind in OURS:
            module.__class__ = OURS[kind]
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
        `model`. Layers that `convert` has made synchronized become what they were before it.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        A `SyncBatchNorm` that was not made by `convert` is in a group of bnext's, of which
        PyTorch's know nothing. Nothing was changed then.
    """
    _check(model)
    modules: list[Any] = [module for module in model.modules() if type(module) in THEIRS]
    before = [_before(module) for module in modules]
    for module, (kind, group) in zip(modules, before, strict=True):
        for name in ("_was", "_moved_at"):
            vars(module).pop(name, None)
        if type(module) is SyncBatchNorm:
            module.process_group = group
            if kind is not torch.nn.SyncBatchNorm:
                del module.process_group
        module.__class__ = kind
    return model


def _before(module: Any) -> tuple[type, Any]:
    """Find what a layer of ours was, or is nearest to, and in which group."""
    group = getattr(module, "process_group", None)
    kind, group = vars(module).get("_was", (THEIRS[type(module)], group))
    if isinstance(group, Group):
        raise ValueError(
            f"model: expected layers that PyTorch has as well, got a SyncBatchNorm in {group!r}"
        )
    return kind, group


def _check(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
