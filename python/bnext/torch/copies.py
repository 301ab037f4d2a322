"""Copies of modules that share their tensors, and whose own parts may be exchanged."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["shallow_copy", "shallow_copy_of_tree"]

_PARTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def shallow_copy(module: Any) -> Any:
    """Copy a module: it has the same tensors and children, and lists of its own of them."""
    copied = object.__new__(type(module))
    of: dict[str, Any] = dict(vars(module))
    of |= {name: of[name].copy() for name in _PARTS if name in of}
    copied.__dict__.update(of)
    return copied


def shallow_copy_of_tree(model: torch.nn.Module) -> Any:
    """Copy a model and all modules in it, which share their tensors with these."""
    made: dict[torch.nn.Module, Any] = {}

    def copied(module: Any) -> Any:
        if module is None or isinstance(module, torch.jit.ScriptModule):
            return module
        if module not in made:
            made[module] = shallow_copy(module)
            of = made[module]._modules
            of.update({name: copied(child) for name, child in of.items()})
        return made[module]

    return copied(model)
