"""Which class stands for a class of PyTorch's, or for a subclass that somebody has written.

PyTorch's own classes have a counterpart. For a subclass one is made, that derives from both: its
`forward`, if it has one and calls ``super().forward``, finds bnext's there, and if it has none it
inherits bnext's. Where a `forward` computes the normalization itself there is no counterpart,
unless its form is known (`FORMS`).
"""

from __future__ import annotations

import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from bnext.torch import lazy
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, Forward
from bnext.torch.sync import SyncBatchNorm

__all__ = [
    "FORMS", "WHEN_MADE", "ConversionWarning", "Form", "NoCounterpart", "class_for", "class_of",
    "counterparts", "is_exchanged", "is_ours", "is_synchronized", "original", "qualified",
    "reparametrized", "target_of",
]  # fmt: skip

OURS: dict[type, type] = {
    torch.nn.BatchNorm1d: BatchNorm1d,
    torch.nn.BatchNorm2d: BatchNorm2d,
    torch.nn.BatchNorm3d: BatchNorm3d,
    torch.nn.SyncBatchNorm: SyncBatchNorm,
    torch.nn.LazyBatchNorm1d: lazy.LazyBatchNorm1d,
    torch.nn.LazyBatchNorm2d: lazy.LazyBatchNorm2d,
    torch.nn.LazyBatchNorm3d: lazy.LazyBatchNorm3d,
}
# A class of bnext's says which class it stands for, and whether `convert` was given a group.
for _theirs, _ours in OURS.items():
    _ours._stands_for = (_theirs, False)  # type: ignore[attr-defined]


class Form(NamedTuple):
    """What a `forward` of known form does with the result of PyTorch's, whose code it repeats."""

    after: Callable[[Any, Any], Any]
    names: frozenset[str]  # in its code, besides those in PyTorch's

    def fits(self, kind: Any) -> bool:
        """Whether the `forward` of a class is still of this form."""
        names = {*_code_of(kind.forward).co_names}
        return self.names <= names <= self.names | {*_code_of(_BatchNorm.forward).co_names}


def _drop_and_act(layer: Any, y: Any) -> Any:
    return layer.act(layer.drop(y))


_DROP_AND_ACT = Form(_drop_and_act, frozenset({"_assert", "ndim", "drop", "act"}))

# Classes of other packages, which need not be installed.
FORMS: dict[str, Form] = {
    "timm.layers.norm_act.BatchNormAct2d": _DROP_AND_ACT,
    "timm.models.layers.norm_act.BatchNormAct2d": _DROP_AND_ACT,
}

# Called with each class that is made and the class that it stands for.
WHEN_MADE: list[Callable[[type, type], None]] = []

_MADE: weakref.WeakValueDictionary[tuple[type, bool], type] = weakref.WeakValueDictionary()


class ConversionWarning(UserWarning):
    """Layers of batch normalization stay PyTorch's where bnext's were asked for."""


class NoCounterpart(Exception):  # noqa: N818
    """A class for which there is none of bnext's; its text is the reason."""


class _Untold:
    """Keeps ``__init_subclass__`` of the user's class, a registry say, from classes made of it."""

    def __init_subclass__(cls, **named: Any) -> None:
        pass


class _Exchanged(_Untold):
    """What classes that are made have besides the class that they stand for."""

    _stands_for: tuple[type, bool]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as the class that can be found by its name, and made again."""
        kind, sync = type(self)._stands_for
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        function, arguments, *rest = reduced
        plain = tuple(kind if each is type(self) else each for each in arguments)
        return _remade, (function, plain, kind, sync), *rest

    def extra_repr(self) -> str:
        """Describe the layer as its class does, and whose kernels it runs."""
        text: str = super().extra_repr()  # type: ignore[misc]
        return text if "kernels=bnext" in text else ", ".join(filter(None, [text, "kernels=bnext"]))


def _remade(function: Any, arguments: tuple[Any, ...], kind: type, sync: bool) -> Any:
    layer = function(*arguments)
    try:
        layer.__class__ = class_for(kind, sync)
    except NoCounterpart as reason:  # it had one when the layer was saved
        warnings.warn(
            f"{qualified(kind)} stays as it is: {reason}", ConversionWarning, stacklevel=2
        )
    return layer


# --- from PyTorch's to bnext's --------------------------------------------------------------------


def class_for(kind: type, sync: bool = False) -> type:
    """Find or make the class of bnext's that stands for `kind`; NoCounterpart if there is none.

    With `sync`, find the one that normalizes in a group.
    """
    if kind in OURS and not (sync and issubclass(kind, LazyModuleMixin)):
        return SyncBatchNorm if sync else OURS[kind]
    made = _MADE.get((kind, sync))
    if made is not None:
        return made
    try:
        made = _lazy(kind, sync) if issubclass(kind, LazyModuleMixin) else _with_forward(kind, sync)
    except NoCounterpart:
        raise
    except Exception as error:  # of a metaclass, say
        raise NoCounterpart(f"its class has no subclass: {error}") from error
    made = _MADE.setdefault((kind, sync), made)
    for listener in WHEN_MADE:
        listener(made, kind)
    return made


def target_of(layer: Any, sync: bool) -> type:
    """Find the class that `convert` gives a layer of batch normalization; otherwise `class_for`."""
    kind: Any = class_of(layer)
    if is_ours(layer):
        if not sync or is_synchronized(kind):
            return kind
        return class_for(original(kind), sync)
    if "forward" in vars(layer):
        raise NoCounterpart("its forward was set on the object, where it hides the class's")
    return class_for(kind, sync)


def is_ours(layer: Any) -> bool:
    """Whether a layer runs bnext's kernels, or will from its first call on."""
    return isinstance(layer, Forward | lazy.LazyForward)


def is_synchronized(kind: Any) -> bool:
    """Whether layers of a class of bnext's normalize in a group, or will from their first call."""
    return issubclass(getattr(kind, "cls_to_become", None) or kind, SyncBatchNorm)


def _with_forward(kind: type, sync: bool) -> type:
    known = None
    for each in kind.__mro__:
        if each in OURS or each in OURS.values() or each in (Forward, _BatchNorm):
            break
        if known is None and qualified(each) in FORMS:
            known = each
            if not FORMS[qualified(each)].fits(each):
                raise NoCounterpart(f"{qualified(each)}.forward is of a form that is not known")
        elif known is None:
            _check_forward(each)
    base = OURS.get(each, Forward)
    if each is torch.nn.SyncBatchNorm:
        base = _Synchronized
    elif sync:
        base = SyncBatchNorm
    if known is not None:
        base = _followed(known, base, FORMS[qualified(known)].after)
    return _made(kind, (base,) if known is kind else (kind, base), sync)


def _followed(known: Any, base: type, after: Callable[[Any, Any], Any]) -> type:
    """Derive from a class of known form, with a `forward` that takes the place of its own."""

    def forward(self: Any, input: Any) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return self._node(input)
        return after(self, super(known, self).forward(input))

    forward.__doc__ = known.forward.__doc__
    kind: Any = types.new_class(known.__name__, (_Untold, known, base))
    kind.forward = forward
    return kind


def _check_forward(kind: type) -> None:
    """NoCounterpart if a class has a `forward` that does not call its ancestors'."""
    if "forward" in vars(kind) and not _calls_super(vars(kind)["forward"]):
        raise NoCounterpart(f"{kind.__qualname__}.forward does not call super().forward")


class _Synchronized(SyncBatchNorm, torch.nn.SyncBatchNorm):
    """Stands for `torch.nn.SyncBatchNorm` among the ancestors of its subclasses.

    They stay instances of it, which `SyncBatchNorm` is not.
    """


def _lazy(kind: Any, sync: bool) -> type:
    become = kind.cls_to_become
    if become is None:
        raise NoCounterpart("its class never becomes another")
    for each in kind.__mro__:
        if each in OURS:
            break
        _check_forward(each)
    base = OURS.get(each, lazy.LazyForward)
    made: Any = _made(kind, (base,) if kind in OURS else (kind, base), sync)
    made.cls_to_become = class_for(become, sync)
    return made


def _made(kind: type, bases: tuple[type, ...], sync: bool) -> type:
    body = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "_stands_for": (kind, sync),
    }
    return types.new_class(kind.__name__, (_Exchanged, *bases), {}, lambda made: made.update(body))


def qualified(kind: type) -> str:
    """Give the name of a class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _calls_super(function: Any) -> bool:
    """Whether the code of a method has a call of ``super().forward``."""
    return any("forward" in code.co_names for code in _with_super(_code_of(function)))


def _code_of(function: Any) -> types.CodeType:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        raise NoCounterpart(f"{function!r} is no function in Python")
    return code


def _with_super(code: types.CodeType) -> Iterator[types.CodeType]:
    if "super" in code.co_names:
        yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_super(constant)


# --- and back -------------------------------------------------------------------------------------


def original(kind: type) -> type:
    """Give the class that a class of bnext's stands for; of any other, itself."""
    stands_for: tuple[type, bool] = vars(kind).get("_stands_for", (kind, False))
    return stands_for[0]


def is_exchanged(kind: type) -> bool:
    """Whether `kind` is a class that stands for another."""
    return "_stands_for" in vars(kind)


def counterparts() -> list[tuple[type, type]]:
    """Every class of bnext's that there is now, and the class that it stands for."""
    made = [*OURS.items(), *((kind, made) for (kind, _), made in list(_MADE.items()))]
    return [(ours, theirs) for theirs, ours in made]


def reparametrized(kind: Any, base: type) -> type:
    """Make the class of a parametrized layer again, over another base.

    `torch.nn.utils.parametrize` gives each layer a class of its own, which has a property for each
    parametrized tensor, and whose only base is the class that the layer had.
    """
    assert kind.__bases__ != (base,)
    body = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), body)


def class_of(layer: torch.nn.Module) -> type:
    """Give the class of a layer as it was before it was parametrized."""
    if parametrize.is_parametrized(layer):
        return type(layer).__bases__[0]
    return type(layer)
