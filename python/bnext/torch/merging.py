"""Convolutions and linear layers that do what batch normalization behind them does, in evaluation.

In evaluation normalization is a product and a sum per channel, which the layer before it can have
in its weight and its bias: ``scale * W`` and ``scale * b + shift``, made in float64 and rounded
once (`bnext.fold`). The layer of batch normalization keeps them beside its own tensors, which stay
as they are, for calls that autograd does not record.

They hold for the values that they were made of. Each call looks at all bytes of these (a digest),
so that every write is noticed, by whatever way it was done; that takes the time of reading the
weight once. Where values last for a few calls only, as in a loop that trains and evaluates by
turns, to make weights takes longer than they gain: the next values then have none before they have
lasted as long.

A digest pays where the results outnumber the weight; elsewhere calls are in two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, is_grad_enabled, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvTransposeNd

from bnext import _core
from bnext.inference import folding
from bnext.torch.context import is_compiling, is_plain
from bnext.torch.epilogues import ACTIVATIONS
from bnext.torch.frozen import FrozenForward
from bnext.torch.kernels import has_memory
from bnext.torch.patterns import Apart, check_layer, has_hooks
from bnext.torch.sync import SyncBatchNorm

__all__ = ["LINEAR", "Merged", "before_of", "merged_values", "normalized_by"]

_PLAIN = (nn.Parameter, Tensor)
_PLAIN_OR_NONE = (*_PLAIN, type(None))
_DTYPES = (torch.float32, torch.float64)  # 16 bits would round weights where sums are exact
_LASTED = 8  # calls after which making weights again has been worth it

Run = Callable[[Any, Tensor, Tensor, Tensor], Tensor]  # layer, input, weight, bias


def _transposed(function: Any) -> Run:
    def run(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = function(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups,
            layer.dilation,
        )  # fmt: skip
        return y

    return run


def _convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y: Tensor = layer._conv_forward(x, weight, bias)
    return y


# For each class: how it runs with another weight and bias, and the rank of its input.
LINEAR: dict[type, tuple[Run, int]] = {
    nn.Linear: (lambda _, x, weight, bias: functional.linear(x, weight, bias), 2),
    nn.Conv1d: (_convolved, 3),
    nn.Conv2d: (_convolved, 4),
    nn.Conv3d: (_convolved, 5),
    nn.ConvTranspose1d: (_transposed(functional.conv_transpose1d), 3),
    nn.ConvTranspose2d: (_transposed(functional.conv_transpose2d), 4),
    nn.ConvTranspose3d: (_transposed(functional.conv_transpose3d), 5),
}
_TRANSPOSED = tuple(kind for kind in LINEAR if issubclass(kind, _ConvTransposeNd))
_FORWARDS = {kind: vars(kind)["forward"] for kind in LINEAR}  # some programs exchange them
# For results that nobody else has; those of ACTIVATIONS where PyTorch has none that writes.
_IN_PLACE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: torch.relu_(z),
    "relu6": lambda z, _: functional.relu6(z, inplace=True),
    "leaky_relu": lambda z, slope: functional.leaky_relu(z, slope, inplace=True),
    "silu": lambda z, _: functional.silu(z, inplace=True),
    "hardswish": lambda z, _: functional.hardswish(z, inplace=True),
    "sigmoid": lambda z, _: torch.sigmoid_(z),
    "tanh": lambda z, _: torch.tanh_(z),
}


class Merged:
    """The weight and the bias of both layers, and the values that they were made of.

    Copies and pickles of a layer have none; they are made again.
    """

    __slots__ = ("addresses", "arrays", "digest", "eps", "made", "refused", "sources", "strides",
                 "uses", "worth")  # fmt: skip

    def __init__(self, sources: tuple[Any, ...], eps: float, worth: bool) -> None:
        """Remember the values; TypeError, ValueError or RuntimeError for other tensors."""
        self.uses, self.worth, self.eps, self.sources = 0, worth, eps, sources
        self.strides = sources[0].stride()
        self.addresses = tuple(None if each is None else each.data_ptr() for each in sources)
        self.arrays = tuple(_memory_of(each) for each in sources if each is not None)
        self.digest = _core.digest(self.arrays)
        self.made: tuple[Tensor, Tensor] | None = None
        self.refused = False

    def make(self, before: Any) -> None:
        """Make the weight and the bias, if they are finite."""
        weight, bias = merged_values(before, self.sources, self.eps)
        self.refused = not (bool(weight.isfinite().all()) and bool(bias.isfinite().all()))
        if not self.refused:
            self.made = weight, bias

    def holds_for(self, sources: tuple[Any, ...], eps: float) -> bool:
        """Whether tensors are the ones, and have the values, that these were made of."""
        if eps != self.eps:
            return False
        for each, known, address in zip(sources, self.sources, self.addresses, strict=True):
            if each is not known or (each is not None and each.data_ptr() != address):
                return False
        same: bool = sources[0].stride() == self.strides and (
            _core.digest(self.arrays) == self.digest
        )
        return same

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def _memory_of(tensor: Tensor) -> Any:
    """Give the memory of a dense tensor as an array of one axis; ValueError for another."""
    if not has_memory(tensor):
        raise ValueError
    order = sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), tensor.size(axis)))
    ordered = tensor.detach().permute(order[::-1])
    if not ordered.is_contiguous():
        raise ValueError
    return ordered.reshape(-1).numpy()


def merged_values(
    before: Any, sources: tuple[Any, ...], eps: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Give the weight and the bias that `before` has with normalization in it.

    `sources` are its own weight and bias; mean, var, weight and bias of normalization.
    """
    weight, bias, mean, var, scale, shift = sources
    every = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": var}
    values = {name: None if each is None else each.detach() for name, each in every.items()}
    bn: Any = SimpleNamespace(eps=eps, activation=None, **values)
    transposed = isinstance(before, _ConvTransposeNd)
    folded, offset = folding.fold(
        weight.detach(), None if bias is None else bias.detach(), bn,
        axis=1 if transposed else 0, groups=before.groups if transposed else 1,
    )  # fmt: skip
    if folded.stride() != weight.stride():  # they decide on the format of the result
        folded = torch.empty_like(weight, requires_grad=False).copy_(folded)
    return folded, offset


def _constants_of(layer: Any) -> tuple[Any, ...] | None:
    """Give the tensors and the eps that a layer normalizes by now; None if it is no constant."""
    of = layer.__dict__
    buffers = of["_buffers"]
    if isinstance(layer, FrozenForward):
        eps: Any = layer.eps if layer._form.eps is None else layer._form.eps
        scale, shift = buffers["weight"], buffers["bias"]
    else:
        if of["training"] or "_special" in of:
            return None
        parameters = of["_parameters"]
        eps, scale, shift = of["eps"], parameters["weight"], parameters["bias"]
    mean, var = buffers["running_mean"], buffers["running_var"]
    if mean is None or var is None:
        return None
    return mean, var, scale, shift, eps


def _pays(before: Any, x: Tensor) -> bool:
    """Whether results outnumber the weight, which is looked at for each call."""
    weight: Tensor | None = before._parameters.get("weight")
    if weight is None:
        return False
    of = before.__dict__
    if type(before) is nn.Linear:
        return x.numel() >= weight.numel() // of["out_features"] * of["in_features"]
    outputs = x.numel() * of["out_channels"]
    if type(before) not in _TRANSPOSED:
        outputs //= math.prod(of["stride"])
    return outputs >= weight.numel() * of["in_channels"]


def _result_of(before: Any, layer: Any, x: Any) -> Tensor | None:
    """Give what normalization makes of the result of `before`; None to do it in two steps."""
    kind = type(before)
    if is_compiling() or kind not in LINEAR or type(x) is not Tensor or not _pays(before, x):
        return None
    try:
        constants = _constants_of(layer)
        weight, bias = before._parameters["weight"], before._parameters["bias"]
    except KeyError:  # something computes them
        return None
    if constants is None or vars(kind)["forward"] is not _FORWARDS[kind] or has_hooks(before):
        return None
    run, rank = LINEAR[kind]
    mean, var, scale, shift, eps = constants
    if (
        not is_plain(x, mean, var, scale, shift)
        or type(weight) not in _PLAIN
        or type(bias) not in _PLAIN_OR_NONE
        or not x.is_cpu
        or x.dtype not in _DTYPES
        or weight.dtype is not x.dtype
        or mean.dtype is not x.dtype
        or x.dim() != rank
        or type(eps) is not float
        or not (eps > 0 and math.isfinite(eps))
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    sources = weight, bias, mean, var, scale, shift
    if is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, *sources)
    ):  # fmt: skip
        return None
    try:
        made = _made(before, layer, sources, eps)
    except (TypeError, ValueError, RuntimeError):  # of tensors that PyTorch has the errors of
        return None
    return None if made is None else run(before, x, *made)


def _made(
    before: Any, layer: Any, sources: tuple[Any, ...], eps: float
) -> tuple[Tensor, Tensor] | None:
    """Find or make what a layer keeps; None while values have not lasted long enough for it."""
    known = layer.__dict__.get("_merged")
    if type(known) is not Merged or not known.holds_for(sources, eps):
        # A layer that gave its memory back has kept how often it was used.
        lasted = known.uses if type(known) is Merged else known
        worth = lasted is None or lasted >= _LASTED
        known = layer.__dict__["_merged"] = Merged(sources, eps, worth)
    known.uses += 1
    if known.made is None and not known.refused and (known.worth or known.uses > _LASTED):
        with torch.inference_mode(False), torch.no_grad(), np.errstate(all="ignore"):
            known.make(before)
    return known.made


def normalized_by(
    before: Any, layer: Any, x: Any, activation: str | None, negative_slope: float
) -> Any:
    """Give what `layer` makes of the result of `before`, in one step; None if that is not done.

    Both layers are called by nothing else.
    """
    y = _result_of(before, layer, x)
    if y is None:
        return None
    if not isinstance(layer, FrozenForward):
        layer._check_input_dim(y)
    if activation is None:
        return y
    return _IN_PLACE.get(activation, ACTIVATIONS[activation])(y, negative_slope)


def before_of(norm: fx.Node, modules: dict[str, Any]) -> fx.Node | None:
    """Find the call of a layer that may do the normalization of the next node; None if none may."""
    layer = modules[str(norm.target)]
    source = norm.args[0] if len(norm.args) == 1 and not norm.kwargs else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or source.next is not norm:
        return None
    try:
        check_layer(layer)
    except Apart:
        return None
    before = modules[str(source.target)]
    if type(before) not in LINEAR or isinstance(layer, SyncBatchNorm):
        return None
    if isinstance(layer, FrozenForward) and type(before) is not nn.Conv2d:
        return None
    if len(source.users) != 1 or len(source.args) != 1 or source.kwargs:
        return None
    calls = [each for each in norm.graph.nodes if each.op == "call_module"]
    once = all(
        sum(modules.get(str(each.target)) is wanted for each in calls) == 1
        for wanted in (before, layer)
    )
    return source if once else None
