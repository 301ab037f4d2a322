"""Layers of a model as constants, in every mode of it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.torch.lazy import LazyForward
from bnext.torch.modules import Forward
from bnext.torch.reports import check_module

__all__ = ["freeze", "unfreeze"]

Module = TypeVar("Module", bound=torch.nn.Module)


def freeze(model: Module, *, affine: bool = True) -> Module:
    """Make constants of the batch normalization of a model, in every mode of it.

    The layers normalize by their running statistics, also after ``model.train()``, and move them no
    more. The input of a layer is then not kept for the backward pass (unless an activation that it
    applies, or a gradient of its parameters, takes it).

    Parameters
    ----------
    model : torch.nn.Module
        A model with layers of bnext's (`bnext.torch.convert`), or a single one.
    affine : bool
        Whether `weight` and `bias` are constants as well: ``requires_grad`` is off.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        A layer of batch normalization is not bnext's, or has no running statistics, or is lazy and
        has not been called, or there is none. Nothing was changed then.
    """
    layers = _layers_of(model)
    for name, layer in layers:
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(
                f"model: expected running statistics in every layer, got none in {name}"
            )
    for _, layer in layers:
        switched = {*vars(layer).get("_frozen", ())}
        for name, parameter in layer.named_parameters(recurse=False):
            if affine and parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None
                switched.add(name)
        vars(layer)["_frozen"] = tuple(sorted(switched))
        layer.eval()
    return model


def unfreeze(model: Module) -> Module:
    """Undo `freeze`: the mode of the model decides again, and parameters train.

    Parameters
    ----------
    model : torch.nn.Module
        A model with layers of bnext's, or a single one.

    Returns
    -------
    torch.nn.Module
        `model`. Layers that were frozen are in its mode (a single layer in training mode);
        ``requires_grad`` is on where `freeze` has switched it off.

    Raises
    ------
    TypeError
        `model` is no module.
    """
    check_module(model)
    mode = model.training or isinstance(model, Forward)
    for layer in model.modules():
        if isinstance(layer, Forward) and "_frozen" in vars(layer):
            for name in layer.__dict__.pop("_frozen"):
                layer.get_parameter(name).requires_grad_()
            layer.train(mode)
    return model


def _layers_of(model: Any) -> list[tuple[str, Any]]:
    check_module(model)
    layers = [(n or "the model itself", m) for n, m in model.named_modules()]
    found = [(name, each) for name, each in layers if isinstance(each, _BatchNorm)]
    for name, each in found:
        if isinstance(each, LazyForward) and not isinstance(each, Forward):
            raise ValueError(
                f"model: expected layers that have been called, got a lazy one at {name}: freeze "
                "after its first call"
            )
        if not isinstance(each, Forward):
            raise ValueError(
                f"model: expected layers of bnext's, got {type(each).__name__} at {name}: "
                "bnext.torch.convert exchanges it, or says why not"
            )
    if not found:
        raise ValueError("model: expected at least one layer of batch normalization, got none")
    return found
