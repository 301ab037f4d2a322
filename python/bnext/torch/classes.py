"""Which class stands for a class of PyTorch's, or for a subclass that somebody has written.

PyTorch's own classes have a counterpart. For a subclass one is made, that derives from both: its
`forward`, if it has one and calls ``super().forward``, finds bnext's there, and if it has none it
inherits bnext's. Where a `forward` computes the normalization itself there is no counterpart,
unless its form is known (`forms`); so it is for frozen layers.
"""

from __future__ import annotations

import inspect
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from bnext.torch import lazy
from bnext.torch.epilogues import Epilogue
from bnext.torch.forms import form_of, looks_frozen
from bnext.torch.frozen import FrozenForward
from bnext.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, Forward
from bnext.torch.patterns import own_activation
from bnext.torch.recomputation import note
from bnext.torch.sync import SyncBatchNorm

__all__ = [
    "WHEN_MADE", "ConversionWarning", "NoCounterpart", "class_for", "class_of", "counterparts",
    "is_candidate", "is_exchanged", "is_ours", "is_synchronized", "original", "qualified",
    "reparametrized", "target_of",
]  # fmt: skip

OURS: dict[type, type] = {
    getattr(torch.nn, ours.__name__): ours
    for ours in (
        BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, lazy.LazyBatchNorm1d,
        lazy.LazyBatchNorm2d, lazy.LazyBatchNorm3d,
    )
}  # fmt: skip
# A class of bnext's says which class it stands for, and whether `convert` was given a group.
for _theirs, _ours in OURS.items():
    _ours._stands_for = (_theirs, False)  # type: ignore[attr-defined]


# Classes of PyTorch's other norms, and bnext's that stand for them: `norms` enters them.
OTHERS: dict[type, type] = {}

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
    if kind in OTHERS:
        return OTHERS[kind]
    if kind in OURS and not (sync and issubclass(kind, LazyModuleMixin)):
        return SyncBatchNorm if sync else OURS[kind]
    made = _MADE.get((kind, sync))
    if made is not None:
        return made
    try:
        made = _made_for(kind, sync)
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
        if hasattr(kind, "_alone"):
            raise NoCounterpart(kind._alone)
        return class_for(original(kind), sync)
    if "forward" in vars(layer):
        raise NoCounterpart("its forward was set on the object, where it hides the class's")
    return class_for(kind, sync)


def is_ours(layer: Any) -> bool:
    """Whether a layer runs bnext's kernels, or will from its first call on."""
    return isinstance(layer, Forward | lazy.LazyForward | FrozenForward)


def is_candidate(module: Any) -> bool:
    """Whether a module is a layer of PyTorch's batch normalization, or like a frozen one."""
    return isinstance(module, _BatchNorm) or looks_frozen(module)


def is_synchronized(kind: Any) -> bool:
    """Whether layers of a class of bnext's normalize in a group, or will from their first call."""
    return issubclass(getattr(kind, "cls_to_become", None) or kind, SyncBatchNorm)


def _made_for(kind: Any, sync: bool) -> type:
    if issubclass(kind, tuple(OTHERS)):
        return _made_for_other(kind)
    if not issubclass(kind, _BatchNorm):
        return _made_for_frozen(kind)
    is_lazy = issubclass(kind, LazyModuleMixin)
    if is_lazy and kind.cls_to_become is None:
        raise NoCounterpart("its class never becomes another")
    known, nearest = _checked(kind)
    if is_lazy:
        base = OURS.get(nearest, lazy.LazyForward)
    elif nearest is torch.nn.SyncBatchNorm:
        base = _Synchronized
    else:
        base = SyncBatchNorm if sync else OURS.get(nearest, Forward)
    if known is not None:
        base = _followed(known, base)
    bases = (base,) if kind is known or kind in OURS else (kind, base)
    more = {"cls_to_become": class_for(kind.cls_to_become, sync)} if is_lazy else {}
    return _derived(kind, bases, _stands_for=(kind, sync), **more)


def _made_for_frozen(kind: Any) -> type:
    form = form_of(kind)
    if form is None or not form.frozen:
        raise NoCounterpart("no subclass of PyTorch's layers, and no frozen layer of a known form")
    base: Any = types.new_class(kind.__name__, (_Untold, kind, FrozenForward))
    base.forward, base._form, base._after = FrozenForward.forward, form, form.after
    return _derived(kind, (base,), _stands_for=(kind, False))


def _made_for_other(kind: Any) -> type:
    for each in kind.__mro__:
        if each in OTHERS:
            break
        if "_apply_instance_norm" in vars(each) or not _calls_super(vars(each).get("forward")):
            raise NoCounterpart(f"{each.__qualname__} has a computation of its own")
    more = {}
    if issubclass(kind, LazyModuleMixin):
        if kind.cls_to_become is None:
            raise NoCounterpart("its class never becomes another")
        more["cls_to_become"] = class_for(kind.cls_to_become)
    return _derived(kind, (kind, OTHERS[each]), _stands_for=(kind, False), **more)


def _derived(kind: Any, bases: tuple[type, ...], **body: Any) -> type:
    names = ("__doc__", "__module__", "__qualname__")
    body |= {name: getattr(kind, name) for name in names}
    return types.new_class(kind.__name__, (_Exchanged, *bases), {}, lambda made: made.update(body))


def _checked(kind: type) -> tuple[type | None, type]:
    """Find the ancestor of known form, if there is one, and the nearest of PyTorch or bnext.

    NoCounterpart if a `forward` before these does not call its ancestors'.
    """
    known = None
    for each in kind.__mro__:
        if each in OURS or each in OURS.values() or each in (Forward, _BatchNorm):
            break
        if known is None and not _calls_super(vars(each).get("forward")):
            if form_of(each) is None:
                raise NoCounterpart(
                    f"{each.__qualname__}.forward does not call super().forward, and is of no "
                    "known form"
                )
            known = each
    return known, each


def _followed(known: Any, base: type) -> type:
    """Derive from a class of known form, with a `forward` that takes the place of its own."""
    names = getattr(form_of(known), "after")  # noqa: B009 - there is a form

    def forward(self: Any, input: Any) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return self._node(input)
        if self._acts:
            own = own_activation(self)
            if own is not None:
                if self._recompute:
                    return note(self._normalized(input, Epilogue(None, *own)), input, None)
                return self._normalized(input, Epilogue(None, *own))
        y = super(known, self).forward(input)
        for name in names:
            y = self._modules[name](y)
        return y

    forward.__doc__ = known.forward.__doc__
    kind: Any = types.new_class(known.__name__, (_Untold, known, base))
    kind.forward = forward
    kind._after = names
    return kind


class _Synchronized(SyncBatchNorm, torch.nn.SyncBatchNorm):
    """An ancestor of its subclasses: they stay instances of it, which `SyncBatchNorm` is not."""


def qualified(kind: type) -> str:
    """Give the name of a class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _calls_super(function: Any) -> bool:
    """Whether the code of a method, if there is one, has a call of ``super().forward``."""
    codes = [_code_of(function)] if function is not None else []
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return not codes or any({"super", "forward"} <= {*code.co_names} for code in codes)


def _code_of(function: Any) -> types.CodeType:
    code: Any = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        raise NoCounterpart(f"{function!r} is no function in Python")
    return code


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
    made = [
        *OURS.items(),
        *OTHERS.items(),
        *((kind, made) for (kind, _), made in list(_MADE.items())),
    ]
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
