"""Normalization, an addition, an activation, one behind the other in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from bnext.torch.cell_modules import GroupNorm, InstanceNorm1d
from bnext.torch.lazy import LazyForward
from bnext.torch.modules import Forward
from bnext.torch.row_modules import LayerNorm, RMSNorm
from bnext.torch.sync import SyncBatchNorm

__all__ = [
    "HOOKS", "Apart", "Chain", "Settings", "activation_of", "chain_of", "has_hooks", "module_of",
    "own_activation",
]  # fmt: skip


class Apart(Exception):  # noqa: N818
    """A layer of normalization is not fused with what follows; its text is the reason."""


@dataclass(frozen=True)
class Chain:
    """Nodes that become one call of a layer.

    Attributes
    ----------
    norm : fx.Node
        The layer's call.
    add : fx.Node or None
        The addition that follows.
    residual : fx.Node or None
        What it adds.
    act : fx.Node or None
        The activation that follows.
    activation, negative_slope : str or None, float
        Of the activation, as `bnext.torch.functional.batch_norm` takes them.
    """

    norm: fx.Node
    add: fx.Node | None
    residual: fx.Node | None
    act: fx.Node | None
    activation: str | None
    negative_slope: float

    @property
    def nodes(self) -> list[fx.Node]:
        """Nodes that the call stands for, in their order."""
        return [each for each in (self.norm, self.add, self.act) if each is not None]


# --- layers ---------------------------------------------------------------------------------------

_PLAIN_FORWARDS = (
    Forward.forward, SyncBatchNorm.forward, LayerNorm.forward, RMSNorm.forward, GroupNorm.forward,
    InstanceNorm1d.forward,
)  # fmt: skip


# What a module has set if something is to happen when it is called, besides its forward pass.
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "forward",
)


def has_hooks(module: Any) -> bool:
    """Whether something is to happen when a module is called, besides its forward pass."""
    of = vars(module)
    *hooks, forward = HOOKS
    return forward in of or any(of.get(name) for name in hooks)


def check_layer(layer: Any) -> None:
    """Apart unless a layer of bnext's can be called with an epilogue."""
    if isinstance(layer, LazyForward):
        raise Apart("it is lazy: fuse after its first call")
    is_plain = getattr(type(layer), "_after", None) == ()  # of a known form, no module behind
    if not is_plain and type(layer).forward not in _PLAIN_FORWARDS:
        raise Apart("its class has a forward of its own")
    if layer._activation[0] is not None:
        raise Apart("it has an activation of its own")
    if has_hooks(layer):
        raise Apart("it has hooks, which see its output")


# --- activations ----------------------------------------------------------------------------------

Settings = tuple[str, float]  # activation, negative_slope
_SLOPE = 0.01


def _of_gelu(approximate: Any) -> Settings | None:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    return (names[approximate], _SLOPE) if approximate in names else None


_MODULES: dict[type, Callable[[Any], Settings | None]] = {
    nn.ReLU: lambda _: ("relu", _SLOPE),
    nn.ReLU6: lambda _: ("relu6", _SLOPE),
    nn.LeakyReLU: lambda m: ("leaky_relu", float(m.negative_slope)),
    nn.SiLU: lambda _: ("silu", _SLOPE),
    nn.Hardswish: lambda _: ("hardswish", _SLOPE),
    nn.GELU: lambda m: _of_gelu(m.approximate),
    nn.Sigmoid: lambda _: ("sigmoid", _SLOPE),
    nn.Tanh: lambda _: ("tanh", _SLOPE),
}
_MADE: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda _: nn.ReLU(),
    "relu6": lambda _: nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU,
    "silu": lambda _: nn.SiLU(),
    "hardswish": lambda _: nn.Hardswish(),
    "gelu": lambda _: nn.GELU(),
    "gelu_tanh": lambda _: nn.GELU(approximate="tanh"),
    "sigmoid": lambda _: nn.Sigmoid(),
    "tanh": lambda _: nn.Tanh(),
}
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu", functional.relu_: "relu", torch.relu: "relu", torch.relu_: "relu",
    functional.relu6: "relu6", functional.leaky_relu: "leaky_relu",
    functional.leaky_relu_: "leaky_relu", functional.silu: "silu",
    functional.hardswish: "hardswish", functional.gelu: "gelu", functional.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid", functional.tanh: "tanh", torch.tanh: "tanh",
}  # fmt: skip
_METHODS = {
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh",
    "tanh_": "tanh",
}  # fmt: skip


def activation_of(module: Any) -> Settings | None:
    """Name the activation that a module applies; None if it is no known one."""
    return _MODULES[type(module)](module) if type(module) in _MODULES else None


def module_of(activation: str, negative_slope: float) -> nn.Module:
    """Give PyTorch's module of an activation."""
    return _MADE[activation](negative_slope)


def own_activation(layer: Any) -> Settings | None:
    """Name the activation that is all that a layer's own modules do; None if they do another thing.

    Such a layer is of a known form: its last module is an activation, behind others that do
    nothing.
    """
    names = getattr(type(layer), "_after", ())
    if not names:
        return None
    *others, last = (layer._modules.get(name) for name in names)
    if any(type(each) is not nn.Identity or has_hooks(each) for each in others):
        return None
    return None if last is None or has_hooks(last) else activation_of(last)


def _applied_by(node: fx.Node, modules: dict[str, Any]) -> Settings | None:
    """Name the activation that a node applies to its first argument; None if it is none."""
    if node.op == "call_module":
        if len(node.args) != 1 or node.kwargs:
            return None
        return activation_of(modules[str(node.target)])
    name = _METHODS.get(str(node.target)) if node.op == "call_method" else None
    if node.op == "call_function":
        name = _FUNCTIONS.get(node.target)
    named = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    rest = node.args[1:]
    if name is None or any(isinstance(each, fx.Node) for each in (*rest, *named.values())):
        return None
    if name == "gelu" and not rest and named.keys() <= {"approximate"}:
        return _of_gelu(named.get("approximate", "none"))
    if name == "leaky_relu" and len(rest) <= 2 and named.keys() <= {"negative_slope"}:
        slope: Any = rest[0] if rest else named.get("negative_slope", _SLOPE)
        return name, float(slope)
    return (name, _SLOPE) if not rest and not named else None


# --- additions ------------------------------------------------------------------------------------

_ADDITIONS = ("add", "iadd", "add_")


def _added_by(node: fx.Node, normalized: fx.Node) -> fx.Node | None:
    """Find what a node adds to the output of a layer; None if it is no addition."""
    if node.op == "call_function":
        if node.target not in (operator.add, operator.iadd, torch.add):
            return None
    elif node.op != "call_method" or node.target not in _ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    one, other = node.args
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        raise Apart("what follows adds a number")
    if one is other:
        raise Apart("what follows adds its output to itself")
    writes = node.target in (operator.iadd, "add_")
    if writes and one is not normalized:
        raise Apart("what follows adds its output to another tensor in place")
    return other if one is normalized else one


# --- chains ---------------------------------------------------------------------------------------


def chain_of(norm: fx.Node, modules: dict[str, Any]) -> Chain:
    """Find what follows a layer's call, and becomes part of it; Apart if nothing does."""
    if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
        raise Apart("it is called with more than its input")
    layer = modules[str(norm.target)]
    check_layer(layer)
    last, add = norm, None
    follower = _only_user(norm)
    residual = _added_by(follower, norm)
    if residual is not None:
        last = add = follower
        if len(last.users) == 1:
            follower = _only_user(last)
    found = None if follower is last else _applied_by(follower, modules)
    is_module = found is not None and follower.op == "call_module"
    if is_module and has_hooks(modules[str(follower.target)]):
        if add is None:
            raise Apart("the activation behind it has hooks")
        found = None
    if found is None and add is None:
        raise Apart(f"its output goes to {_title(follower, modules)}")
    act = follower if found is not None else None
    chain = Chain(norm, add, residual, act, *(found or (None, _SLOPE)))
    _check_order(chain)
    return chain


def _only_user(node: fx.Node) -> fx.Node:
    users = list(node.users)
    if len(users) != 1:
        raise Apart(f"its output is used {len(users)} times" if users else "its output is not used")
    return users[0]


def _check_order(chain: Chain) -> None:
    """Apart if the layer's input may change until the residual is there."""
    (source,) = chain.norm.all_input_nodes
    if chain.add is None or chain.norm.next is chain.add:
        return
    if source.op == "placeholder" or len(source.users) != 1:
        raise Apart("its input is used by others before what is added is there")


def _title(node: fx.Node, modules: dict[str, Any]) -> str:
    if node.op == "output":
        return "the end of the module's forward"
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return str(getattr(node.target, "__name__", node.target))
