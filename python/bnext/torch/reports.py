"""Layers that `convert` has exchanged in a model, layers that it has left, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from bnext.torch import fusion
from bnext.torch.classes import (
    NoCounterpart,
    class_of,
    is_candidate,
    is_ours,
    is_synchronized,
    original,
    qualified,
    target_of,
)
from bnext.torch.norms import BATCH, norm_of, runs_kernels, target_of_norm
from bnext.torch.patterns import own_activation

__all__ = ["Fused", "Layer", "Report", "check_module", "counted_lines", "report", "told"]

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Layer:
    """One layer of batch normalization, or of another norm, in a model.

    Attributes
    ----------
    name : str
        Where it is in the model, as ``model.named_modules()`` says; empty for the model itself.
    kind : str
        Qualified name of PyTorch's or the user's class, which `revert` gives back.
    synchronized : bool
        Whether it is a layer of bnext's that normalizes in a group.
    reason : str or None
        Why it stays PyTorch's; None for a layer of bnext's.
    norm : str
        What it is of: "batch", or another name that ``convert(norms=)`` takes.
    """

    name: str
    kind: str
    synchronized: bool = False
    reason: str | None = None
    norm: str = BATCH


@dataclass(frozen=True)
class Fused:
    """A layer of bnext's that does what follows it.

    Attributes
    ----------
    name : str
        Where it is in the model.
    module : str
        Name of the module whose forward calls it; empty for the model itself.
    activation : str or None
        What it applies.
    residual : bool
        Whether it adds something before.
    """

    name: str
    module: str
    activation: str | None
    residual: bool


@dataclass(frozen=True)
class Report:
    """Layers of normalization in a model; ``str`` of it is made to be read.

    Attributes
    ----------
    exchanged : tuple of Layer
        Those that run bnext's kernels.
    left : tuple of Layer
        Those that do not, each with the reason.
    fused : tuple of Fused
        Those that do what follows them, after ``convert(model, fuse=True)``.
    apart : tuple of Layer
        Those that do not although they were to, each with the reason.
    """

    exchanged: tuple[Layer, ...]
    left: tuple[Layer, ...]
    fused: tuple[Fused, ...] = ()
    apart: tuple[Layer, ...] = ()

    def __str__(self) -> str:
        count = len(self.exchanged)
        total = count + len(self.left)
        batch_alone = all(each.norm == BATCH for each in (*self.exchanged, *self.left))
        kind = "batch normalization" if batch_alone else "normalization"
        lines = [f"{count} of {total} layers of {kind} are bnext's"]
        marks = {False: "", True: ", synchronized"}
        lines += counted_lines(
            (each.kind + marks[each.synchronized], each.name) for each in self.exchanged
        )
        if self.left:
            stay = "1 stays as it is" if total - count == 1 else f"{total - count} stay as they are"
            lines += [stay, *told(self.left)]
        if self.fused or self.apart:
            lines.append(f"{len(self.fused)} of them do what follows as well")
            lines += counted_lines((_title(each), each.name) for each in self.fused)
        if self.apart:
            lines += [f"{len(self.apart)} do not", *counted_lines(map(_reason, self.apart))]
        return "\n".join(lines)


def report(model: torch.nn.Module) -> Report:
    """List the layers of normalization in `model`: bnext's, and others with the reason.

    Parameters
    ----------
    model : torch.nn.Module
        A model, converted or not, or a single layer.

    Returns
    -------
    Report
        In the order of ``model.named_modules()``; a layer that is used twice is there once.
        Layers of the other norms that ``convert(norms=)`` exchanges are listed as well.
        Listed as left are also layers that are none of PyTorch's (``HeteroBatchNorm``, which has
        statistics for each type of node), and compiled or traced parts of the model, which are no
        layers any more.

    Raises
    ------
    TypeError
        `model` is no module.
    """
    check_module(model)
    exchanged: list[Layer] = []
    left: list[Layer] = []
    fused, apart = [], []
    module: Any
    for name, module in model.named_modules():
        if is_ours(module):
            kind = class_of(module)
            theirs, _ = vars(module).get("_was", (original(kind), None))
            exchanged.append(Layer(name, qualified(theirs), is_synchronized(kind)))
            own = own_activation(module) if "_acts" in vars(module) else None
            if own is not None:
                fused.append(Fused(name, name, own[0], residual=False))
            elif "_apart" in vars(module):
                apart.append(replace(exchanged[-1], reason=vars(module)["_apart"]))
            continue
        norm = norm_of(module)
        if norm is not None:
            why = None if runs_kernels(module) else _unconverted(module, norm)
            theirs = original(class_of(module))
            listed = Layer(name, qualified(theirs), reason=why, norm=norm)
            (exchanged if why is None else left).append(listed)
            if "_apart" in vars(module):
                apart.append(replace(listed, reason=vars(module)["_apart"]))
            continue
        for each in fusion.fused_layers(module):
            place = f"{name}.{each.name}" if name else each.name
            fused.append(Fused(place, name, each.activation, each.residual))
        reason = _unconverted(module) if is_candidate(module) else _foreign(module)
        if reason is not None:
            left.append(Layer(name, qualified(class_of(module)), reason=reason))
    return Report(tuple(exchanged), tuple(left), tuple(fused), tuple(apart))


def _unconverted(layer: torch.nn.Module, norm: str = BATCH) -> str:
    """Why a layer of PyTorch's normalization is still one."""
    try:
        target_of(layer, sync=False) if norm == BATCH else target_of_norm(layer)
    except NoCounterpart as reason:
        return str(reason)
    call = "bnext.torch.convert" + ("" if norm == BATCH else f"(norms={norm!r})")
    return f"not converted yet: {call} exchanges it"


def _foreign(module: Any) -> str | None:
    """Why a module that may hide batch normalization is none of `convert`'s."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = "BatchNorm" in getattr(module, "original_name", "")
        return "compiled by TorchScript: convert the model before" if scripted else None
    if isinstance(module, torch.fx.GraphModule):
        nodes = (node for node in module.graph.nodes if node.op == "call_function")
        if any("batch_norm" in str(node.target) for node in nodes):
            return "its graph calls batch_norm as a function: convert the model before it is traced"
        return None
    if "BatchNorm" not in type(module).__name__ or any(map(is_candidate, module.modules())):
        return None  # another module, or a wrapper of layers, which are listed by themselves
    tensors = [getattr(module, name, None) for name in ("weight", "running_mean")]
    known = (each for each in tensors if isinstance(each, torch.Tensor) and not is_lazy(each))
    if any(each.dim() == 2 for each in known):
        return "its statistics or parameters are a table, one row for each type of input"
    return "no subclass of PyTorch's layers"


# --- words ----------------------------------------------------------------------------------------


def _title(layer: Fused) -> str:
    return " and ".join([*["addition"] * layer.residual, *filter(None, [layer.activation])])


def _reason(layer: Layer) -> tuple[str, str]:
    return str(layer.reason), layer.name


def told(layers: Iterable[Layer]) -> list[str]:
    """Say in lines which layers are left, by their classes and reasons."""
    return counted_lines((f"{each.kind} ({each.reason})", each.name) for each in layers)


def counted_lines(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Say in lines how often each text is there, and with which names."""
    names: dict[str, list[str]] = {}
    for text, name in pairs:
        names.setdefault(text, []).append(name or "the model itself")
    lines = []
    for text, every in names.items():
        shown = every[:NAMES_SHOWN] + ["..."] * (len(every) > NAMES_SHOWN)
        lines.append(f"  {len(every)} x {text}: {', '.join(shown)}")
    return lines


def check_module(model: Any) -> None:
    """TypeError unless it is a module."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
