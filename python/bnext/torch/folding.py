"""Batch normalization in inference, merged into the layers before it, for whole models."""

from __future__ import annotations

import collections
import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from bnext.inference import folding
from bnext.torch.classes import qualified
from bnext.torch.conversion import convert, revert
from bnext.torch.epilogues import ACTIVATIONS
from bnext.torch.forms import form_of
from bnext.torch.kernel_module import KernelModule
from bnext.torch.patterns import has_hooks, module_of
from bnext.torch.reports import check_module, counted_lines
from bnext.torch.tracing import Untraceable, arguments_of, has_forward, traced

__all__ = ["Folded", "FoldedLayer", "fold"]

Module = TypeVar("Module", bound=nn.Module)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class FoldedLayer:
    """A layer of batch normalization, and what became of it.

    Attributes
    ----------
    name : str
        Where it is, or was, in the model.
    into : str or None
        Name of the convolution or linear layer that it is part of now; None if it stays.
    reason : str or None
        Why it stays.
    """

    name: str
    into: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Folded:
    """What `fold` gives; ``str`` of it is made to be read.

    Attributes
    ----------
    model : torch.nn.Module
        The folded copy, in evaluation mode.
    folded, left : tuple of FoldedLayer
        Layers of batch normalization that are part of others now, and the rest.
    """

    model: nn.Module
    folded: tuple[FoldedLayer, ...]
    left: tuple[FoldedLayer, ...]

    def __str__(self) -> str:
        count = len(self.folded)
        lines = [f"{count} of {count + len(self.left)} layers of batch normalization are folded"]
        lines += counted_lines((str(each.reason), each.name) for each in self.left)
        return "\n".join(lines)


def fold(model: nn.Module) -> Folded:
    """Fold layers of batch normalization into convolutions and linear layers before them.

    A layer is folded where the forward pass of a module gives it the result of a convolution, a
    transposed convolution or a linear layer, which goes nowhere else. What remains is the same
    function, in evaluation mode, without a pass over memory for each layer.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model, of PyTorch's or bnext's layers. It stays as it is.

    Returns
    -------
    Folded
        A copy of the model, and a list of what was folded. In place of layers there are modules
        that pass on what they get, or apply the layer's own activation; names of other modules and
        of their tensors stay. The copy is in evaluation mode, and no use for training. Layers that
        are not folded are PyTorch's, but for those with an activation of their own.

    Raises
    ------
    TypeError
        `model` is no module.
    ValueError
        It has lazy layers that have not been called.

    Notes
    -----
    Weights are computed in float64 and rounded once (`bnext.fold`). Behind a linear layer
    normalization is by the last axis of (N, C); the module in its place refuses input of more axes.
    Forward passes are traced by `torch.fx`, as in ``convert(model, fuse=True)``.
    """
    check_module(model)
    if any(isinstance(each, LazyModuleMixin) and _is_waiting(each) for each in model.modules()):
        raise ValueError("model: expected layers that have been called, got lazy ones")
    copied = copy.deepcopy(model)
    activations = {
        name: each.__dict__.pop("_activation", (None, 0.0))
        for name, each in copied.named_modules()
        if isinstance(each, KernelModule)
    }
    revert(copied)
    copied.eval()
    pairs, reasons = _pairs(copied)
    folded, left = [], []
    for name, module in list(copied.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        before = pairs.get(module)
        if before is None:
            reason = reasons.get(module, "no module's forward gives it a layer's result")
            left.append(FoldedLayer(name, None, reason))
            continue
        place = next(key for key, each in copied.named_modules() if each is before)
        _merge(before, module)
        own = {each: module.get_submodule(each) for each in _after(module)}
        copied.set_submodule(name, _Passed(before, own, *activations.get(name, (None, 0.0))))
        folded.append(FoldedLayer(name, place))
    for name, activation in activations.items():
        module = copied.get_submodule(name)
        if activation[0] is not None and not isinstance(module, _Passed):
            vars(convert(module, norms="all"))["_activation"] = activation
    return Folded(copied, tuple(folded), tuple(left))


def _is_waiting(layer: Any) -> bool:
    """Whether a lazy layer has not been called."""
    return bool(layer.has_uninitialized_params())


class _Passed(nn.Module):
    """What is left of a layer that was folded: nothing, its activation, or modules of its own."""

    def __init__(
        self, before: nn.Module, own: dict[str, nn.Module], activation: str | None,
        negative_slope: float,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, module in own.items():
            self.add_module(name, module)
        self.activation, self.negative_slope = activation, negative_slope
        self.rank = 2 if isinstance(before, nn.Linear) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.rank is not None and x.dim() != self.rank:
            raise ValueError(f"expected 2D input (N, C) where a layer was folded, got {x.dim()}D")
        for module in self.children():
            x = module(x)
        if self.activation is None:
            return x
        return ACTIVATIONS[self.activation](x, self.negative_slope)

    def __prepare_scriptable__(self) -> nn.Module:
        """Give TorchScript modules that it can compile, under the same names."""
        modules = dict(self.named_children())
        if self.rank is not None:
            modules = {"_of_rank": _OfRank(), **modules}
        if self.activation is not None:
            modules["_activation"] = module_of(self.activation, self.negative_slope)
        return nn.Sequential(collections.OrderedDict(modules)).train(self.training)

    def extra_repr(self) -> str:
        return "folded" if self.activation is None else f"folded, activation={self.activation}"


class _OfRank(nn.Module):
    """A check of (N, C), as `_Passed` has it, for TorchScript."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError("expected 2D input (N, C) where a layer was folded")
        return x


def _after(norm: nn.Module) -> tuple[str, ...]:
    """Name the modules that a layer of a known form calls on what it has normalized."""
    form = None if type(norm) in NORMS else form_of(type(norm))
    return () if form is None else form.after


def _merge(before: Any, norm: Any) -> None:
    """Give a layer the weight and the bias of both."""
    values = {
        name: None if getattr(norm, name) is None else getattr(norm, name).detach()
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    bn: Any = SimpleNamespace(eps=norm.eps, activation=None, **values)
    transposed = isinstance(before, _ConvTransposeNd)
    weight, bias = folding.fold(
        before.weight.detach(), None if before.bias is None else before.bias.detach(), bn,
        axis=1 if transposed else 0, groups=before.groups if transposed else 1,
    )  # fmt: skip
    trains = before.weight.requires_grad
    before.weight = nn.Parameter(weight, trains)
    before.bias = nn.Parameter(bias, trains)


# --- pairs ----------------------------------------------------------------------------------------


def _pairs(model: nn.Module) -> tuple[dict[nn.Module, nn.Module], dict[nn.Module, str]]:
    """Find for each layer what it is folded into, or why it is not."""
    pairs: dict[nn.Module, nn.Module] = {}
    reasons: dict[nn.Module, str] = {}
    owners = _owners(model)
    for module in model.modules():
        children = [each for each in module.modules() if each is not module]
        norms = {each for each in children if isinstance(each, _BatchNorm)}
        if not norms or not has_forward(module):
            continue
        try:
            graphs = _graphs(module)
        except Untraceable as reason:
            for child in module.children():
                if child in norms:
                    reasons.setdefault(child, f"{type(module).__name__}: {reason}")
            continue
        modules = dict(module.named_modules(remove_duplicate=False))
        for norm in norms:
            calls = [_call_of(graph, modules, norm) for graph in graphs]
            if not any(calls):
                continue
            text = _reason(norm, calls, modules, owners)
            if norm in pairs or norm in reasons:
                text = "forward passes of several modules call it"
                pairs.pop(norm, None)
            if text is None:
                pairs[norm] = modules[str(calls[0][0].args[0].target)]
            else:
                reasons[norm] = text
    return pairs, reasons


def _graphs(module: nn.Module) -> list[fx.Graph]:
    """Give the graphs of a forward pass in evaluation, for tensors and for other arguments."""
    names, graphs, errors = arguments_of(module), [], []
    for tensors in (True, False):
        try:
            graphs.append(traced(module, names, False, tensors))
        except Untraceable as error:
            errors.append(error)
    if not graphs:
        raise errors[0]
    return graphs


def _call_of(graph: fx.Graph, modules: dict[str, nn.Module], wanted: nn.Module) -> list[fx.Node]:
    return [
        node for node in graph.nodes
        if node.op == "call_module" and modules.get(str(node.target)) is wanted
    ]  # fmt: skip


def _reason(
    norm: Any, calls: list[list[fx.Node]], modules: dict[str, nn.Module], owners: dict[int, int]
) -> str | None:
    """Why a layer is not folded; None if it is."""
    if type(norm) not in NORMS and form_of(type(norm)) is None:
        return f"its class, {qualified(type(norm))}, may do more than normalize"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if has_hooks(norm):
        return "it has hooks, which see its output"
    before: set[Any] = set()
    for nodes in calls:
        if len(nodes) != 1:
            return "it is called more than once"
        (source,) = nodes[0].args if len(nodes[0].args) == 1 else (None,)
        if not isinstance(source, fx.Node) or source.op != "call_module":
            return "what it gets is not the result of a convolution or a linear layer"
        if len(source.users) != 1:
            return "the result before it goes elsewhere as well"
        before.add(modules[str(source.target)])
        if len(_call_of(source.graph, modules, modules[str(source.target)])) != 1:
            return "the layer before it is called more than once"
    if len(before) != 1:
        return "what it gets depends on the arguments"
    (layer,) = before
    return _unfit(layer, norm, owners)


def _unfit(layer: Any, norm: Any, owners: dict[int, int]) -> str | None:
    if parametrize.is_parametrized(layer) or has_hooks(layer):
        return "the layer before it is parametrized, or has hooks"
    if type(layer) not in LINEAR:
        return f"behind {type(layer).__name__}, which is no convolution and no linear layer"
    is_conv = isinstance(layer, _ConvNd)
    channels = layer.out_channels if is_conv else layer.out_features
    if channels != norm.num_features:
        return f"the layer before it has {channels} outputs for {norm.num_features} channels"
    shared = [layer, norm, layer.weight, *([] if layer.bias is None else [layer.bias])]
    if any(owners[id(each)] > 1 for each in shared):
        return "it, or the layer before it, is used in several places"
    return None


def _owners(model: nn.Module) -> dict[int, int]:
    """Count in how many places of a model each module and each parameter is."""
    places: collections.Counter[int] = collections.Counter()
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] += 1
        places.update(id(each) for each in module._parameters.values() if each is not None)
    return places
