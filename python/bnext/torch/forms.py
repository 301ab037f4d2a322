"""Forward passes of known form: code that repeats PyTorch's, or code of a frozen layer.

Some packages derive a class from PyTorch's layer and repeat the code of its `forward` before
modules of their own (timm's BatchNormAct2d: drop-out, activation). Others have frozen layers, which
multiply and add by buffers (FrozenBatchNorm2d of torchvision, of DETR, of Detectron2). `form_of`
finds out by running such a `forward` on a stand-in: an object of the class that has nothing but the
attributes of a layer. All functions of PyTorch that it calls are recorded, with their operands. The
form is known if they are PyTorch's, in every mode, and if nothing else was looked at: another
attribute, an extent of the input, a value.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

__all__ = ["Form", "form_of", "looks_frozen"]

BUFFERS = ("weight", "bias", "running_mean", "running_var")
FOLLOWING = ("drop", "act")  # names of modules that may follow normalization
CHANNELS = 2
SHAPES = ((2, CHANNELS, 1, 1), (2, CHANNELS), (2, CHANNELS, 1, 1, 1))
# No code has these numbers in it.
EPS, MOMENTUM = 0.0123, 0.321
PYTORCHS: Any = nn.functional.batch_norm


class Form(NamedTuple):
    """What a `forward` does, which does not call its ancestors'.

    Attributes
    ----------
    frozen : bool
        Whether it multiplies and adds by constants; otherwise it does what PyTorch's layer does.
    eps : float or None
        Of a frozen layer; None: its attribute ``eps``.
    after : tuple of str
        Names of the modules that it calls on the result, one after the other.
    """

    frozen: bool
    eps: float | None
    after: tuple[str, ...]


def looks_frozen(module: Any) -> bool:
    """Whether a module has the tensors of a frozen layer, and is no layer of PyTorch's."""
    others = nn.modules.batchnorm._NormBase | torch.jit.ScriptModule | torch.fx.GraphModule
    if isinstance(module, others) or type(module).forward is nn.Module.forward:
        return False
    tensors = [getattr(module, name, None) for name in BUFFERS]
    if not all(isinstance(each, Tensor) and not is_lazy(each) for each in tensors):
        return False
    (shape, *others) = {each.shape for each in tensors if each is not None}
    return len(shape) == 1 and not others


def form_of(kind: type) -> Form | None:
    """Find the form of a class's `forward`; None if it is not known."""
    if kind not in _FOUND:
        _FOUND[kind] = _form_of(kind)
    return _FOUND[kind]


_FOUND: weakref.WeakKeyDictionary[type, Form | None] = weakref.WeakKeyDictionary()


def _form_of(kind: Any) -> Form | None:
    if not inspect.isfunction(kind.forward):
        return None
    frozen = not issubclass(kind, _BatchNorm)
    find = _frozen_form if frozen else _repeated_form
    for shape in SHAPES[:1] if frozen else SHAPES:
        try:
            return find(kind, shape)
        except Exception:
            continue
    return None


def _repeated_form(kind: Any, shape: tuple[int, ...]) -> Form:
    """Give the form of a class whose `forward` does what PyTorch's does."""
    theirs: Any = getattr(nn, f"BatchNorm{max(len(shape) - 2, 1)}d")
    found = set()
    for training, momentum, tracked in product((True, False), (MOMENTUM, None), (True, False)):
        results = []
        for each in (kind, theirs):
            layer = _stand_in(each, training=training, eps=EPS, momentum=momentum)
            vars(layer).update(num_features=CHANNELS, affine=True, track_running_stats=tracked)
            counter = torch.tensor(3) if tracked else None
            layer.register_buffer("num_batches_tracked", counter)
            if not tracked:
                layer.running_mean = layer.running_var = None
            term, after = _recorded(layer, torch.ones(shape))
            results.append((term, counter))
            if each is kind:
                found.add(after)
        _check(results[0] == results[1] and results[0][0][0] == "batch_norm")
    (after,) = found
    return Form(False, None, after)


def _frozen_form(kind: Any, shape: tuple[int, ...]) -> Form:
    """Give the form of a class whose `forward` multiplies and adds by constants."""
    found = set()
    for training, recorded in product((True, False), repeat=2):
        layer = _stand_in(kind, training=training, eps=EPS)
        term, after = _recorded(layer, torch.ones(shape, requires_grad=recorded))
        found.add((_eps_of(term), after))
    ((eps, after),) = found
    return Form(True, None if eps == EPS else eps, after)


def _eps_of(term: Any) -> float:
    if term[0] == "batch_norm":
        *tensors, training, _, eps = term[1:]
        _check(tensors == ["x", "running_mean", "running_var", "weight", "bias"] and not training)
        return float(eps)
    (eps,) = {each for each in _leaves(term) if not isinstance(each, str)}
    scale = _mul("weight", ("rsqrt", _add("running_var", eps)))
    _check(term == _add(_mul("x", scale), ("sub", "bias", _mul("running_mean", scale))))
    return float(eps)


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("another form")


# --- running a forward pass -----------------------------------------------------------------------


def _stand_in(kind: Any, **attributes: Any) -> Any:
    layer: Any = object.__new__(kind)
    nn.Module.__init__(layer)
    vars(layer).update(attributes)
    for place, name in enumerate(BUFFERS):
        layer.register_buffer(name, torch.full((CHANNELS,), place + 1.0))
    return layer


def _recorded(layer: Any, x: Tensor) -> tuple[Any, tuple[str, ...]]:
    """Run a forward pass: the term of what comes before modules, and the names of these."""
    record = _Record({"x": x, **layer._buffers})
    for name in FOLLOWING:
        layer._modules[name] = _Step(name, record)
    before = {name: value for name, value in vars(layer).items() if name[0] != "_"}
    with record:
        result = type(layer).forward(layer, x)
    _check(before == {name: value for name, value in vars(layer).items() if name[0] != "_"})
    _check(not record.refused)
    term, after = record.terms[id(result)], []
    while term[0] == "step":
        _, name, term = term
        after.append(name)
    return term, tuple(reversed(after))


class _Step(nn.Module):
    """A module that follows; what it makes is a term of its own."""

    def __init__(self, name: str, record: _Record) -> None:
        super().__init__()
        self.name, self.record = name, record

    def forward(self, x: Tensor) -> Tensor:
        result = x.clone()
        self.record.terms[id(result)] = "step", self.name, self.record.term(x)
        return result


class _Record(TorchFunctionMode):
    """Terms of the tensors that functions make: a name, or a function's and terms of operands."""

    def __init__(self, named: dict[str, Any]) -> None:
        super().__init__()
        self.terms: dict[int, Any] = {
            id(tensor): name for name, tensor in named.items() if tensor is not None
        }
        self.kept: list[Any] = []  # so that no two of them have the same id
        self.refused = False

    def term(self, value: Any) -> Any:
        return self.terms.get(id(value), ("?",)) if isinstance(value, Tensor) else value

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.kept.append(result)
        if not isinstance(result, Tensor):
            self.refused |= not self._is_harmless(function, args)
        elif args and result is args[0]:
            # In place, unless it has nothing to do.
            counts = self.term(result) == "num_batches_tracked"
            self.refused |= not counts and _name(function) != "to"
        else:
            self.terms[id(result)] = self._made(function, args, kwargs, result)
        return result

    def _is_harmless(self, function: Any, args: Any) -> bool:
        name = _name(function)
        if name == "get":
            return function.__self__.__name__ in ("ndim", "dtype", "requires_grad")
        if name in ("float", "item", "int"):
            return bool(self.term(args[0]) == "num_batches_tracked")
        return name in ("dim", "assert", "ndimension")

    def _made(self, function: Any, args: Any, kwargs: Any, result: Tensor) -> Any:
        if function is PYTORCHS:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            return "batch_norm", *map(self.term, bound.arguments.values())
        name, terms = _name(function), [self.term(each) for each in args]
        if kwargs and name not in ("reshape", "view"):
            return ("?",)
        if name in ("reshape", "view") and isinstance(terms[0], str):
            spread = args[0].dim() == 1 and result.shape[1:2] == args[0].shape
            return terms[0] if spread else ("?",)
        if name in ("add", "radd", "mul", "rmul") and len(terms) == 2:
            return (_add if name.endswith("add") else _mul)(*terms)
        if name in ("sub", "rsqrt"):
            return name, *terms
        return ("?",)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", "")).strip("_")


def _add(*terms: Any) -> Any:
    return "add", *sorted(terms, key=repr)


def _mul(*terms: Any) -> Any:
    return "mul", *sorted(terms, key=repr)


def _leaves(term: Any) -> Iterator[Any]:
    if isinstance(term, tuple):
        for each in term:
            yield from _leaves(each)
    else:
        yield term
