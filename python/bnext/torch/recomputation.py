"""Outputs of layers that autograd does not keep: they are made again in the backward pass.

An operation that follows a layer keeps the layer's output y for its own backward pass, and the
layer keeps its input x. One of them is enough: y follows from x, the statistics and the parameters
of the call, to the bit, in one pass over memory. `recomputing` has autograd ask before it keeps a
tensor (saved-tensor hooks). For the output of a layer with ``recompute=True``, or a view of it, it
keeps a `Recomputed` in place of the tensor.

A concatenation of such outputs and other tensors, as in decoders beside an encoder, is made again
from its parts; of the other tensors a copy is kept.

With a residual this pays where the residual is kept by another operation, or is a layer's output
that is made again by itself. The output of the last block of a network would then take all blocks
before it to be made again; so every second block's output is kept.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnext import spine
from bnext.torch.context import is_compiling
from bnext.torch.disguises import Disguise, disguised, reduced

__all__ = ["Kept", "Recomputed", "is_recomputing", "note", "recomputing", "set_recomputing"]

MOST_RESIDUALS = 1  # that are added one after the other to make one output again
LEAST_SHARE = 0.25  # of a concatenation is made again, or all of it is kept
_AUTOGRAD: Any = torch._C._autograd
_top_hooks = getattr(_AUTOGRAD, "_top_saved_tensors_default_hooks", lambda _: None)
_may_hook = getattr(_AUTOGRAD, "_saved_tensors_hooks_is_enabled", lambda: True)
_NOTE = "_bnext_recomputed"  # attribute of an output
_EMPTY = torch.empty(0)


class Kept:
    """A tensor that autograd keeps, and notices writes to."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor = tensor.detach()  # no cycle through the graph
        self.version: int = tensor._version

    def value(self) -> Tensor:
        """Give it back; RuntimeError if it was written to, as autograd has it without hooks."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: [{self.tensor.dtype}, {[*self.tensor.shape]}] is at version "
                f"{self.tensor._version}; expected version {self.version} instead"
            )
        return self.tensor

    def is_of(self, tensor: Tensor) -> bool:
        """Whether it keeps this tensor, as it is now."""
        ours = self.tensor
        return (
            ours.data_ptr() == tensor.data_ptr()
            and ours.shape == tensor.shape
            and ours.stride() == tensor.stride()
            and self.version == tensor._version
        )


class Recomputed:
    """The output of a layer's call, which is made again from the input that autograd keeps.

    Attributes
    ----------
    x : weak reference
        To what autograd keeps for the layer: it lets go of it with the graph.
    saved : Saved or SyncSaved
        The statistics and the parameters of the call.
    residual : Kept, Recomputed or None
        What the call added.
    shape, strides, version : torch.Size, tuple of int, int
        Of the output as the call left it.
    counter : Tensor
        Without values; it shares the version of the output, and tells it when the output is gone.
    """

    __slots__ = (
        "__weakref__", "counter", "residual", "saved", "shape", "strides", "version", "x",
    )  # fmt: skip

    def __init__(self, y: Tensor, x: Any, saved: Any, residual: Any) -> None:
        self.x: weakref.ref[Any] = weakref.ref(x)
        self.saved: Any = saved
        self.residual: Any = residual
        self.shape: torch.Size = y.shape
        self.strides: tuple[int, ...] = y.stride()
        self.version: int = y._version
        self.counter: Tensor = y.detach()
        self.counter.data = _EMPTY

    def is_of(self, tensor: Tensor) -> bool:
        """Whether it stands for this tensor, as it is now."""
        return _noted(tensor) is self

    @property
    def residuals(self) -> int:
        """How many residuals it takes to make the output again."""
        if self.residual is None:
            return 0
        return 1 + getattr(self.residual, "residuals", 0)

    def value(self) -> Tensor:
        """Make the output again: one pass over memory, for each operation that asks."""
        kept = self.x()
        if kept is None:
            raise RuntimeError(
                "the input of a layer with recompute=True is gone, since a backward pass went "
                "through the layer before: retain_graph=True keeps it"
            )
        with torch.no_grad():
            residual = None if self.residual is None else self.residual.value()
            y: Tensor = spine.recompute(kept.value(), self.saved, residual)
            return _laid_out(y, self.strides)


def _laid_out(y: Tensor, strides: tuple[int, ...]) -> Tensor:
    if y.stride() == strides:
        return y
    return torch.empty_strided(y.shape, strides, dtype=y.dtype).copy_(y)


def note(y: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """Note on the output of a layer's call how it is made again, if it can be and may have to."""
    if is_compiling() or not _STATE.hooked:
        return y
    node: Any = y.grad_fn
    saved = getattr(node, "statistics", None) or getattr(node, "saved", None)
    kept = _STATE.kept.get(id(x))
    if saved is None or kept is None or y.device.type != "cpu" or not kept.is_of(x):
        return y
    if not (
        getattr(saved, "batch_statistics", True)
        or getattr(saved, "activation", None) is not None
        or any(node.needs_input_grad[1:3])
    ):
        return y  # a call by constants, which does not keep x
    added: Any = None
    if residual is not None:
        added = _noted(residual) or _STATE.kept.get(id(residual))
        if added is None or not added.is_of(residual):
            return y  # the residual would be kept in place of y
    again = Recomputed(y, kept, saved, added)
    if again.residuals <= MOST_RESIDUALS:
        vars(y)[_NOTE] = _STATE.outputs[node] = again
    return y


def _noted(tensor: Tensor) -> Recomputed | _Joined | None:
    """Find how a tensor is made again; None if nothing is known of it, or it has changed since."""
    again: Recomputed | _Joined | None = tensor.__dict__.get(_NOTE)
    if again is None and type(tensor.grad_fn).__name__ == "CatBackward0":
        again = _joined(tensor)
    return again if again is not None and tensor._version == again.version else None


# --- concatenations -------------------------------------------------------------------------------


class _Joined:
    """A concatenation of outputs that are made again and of tensors that are kept.

    Attributes
    ----------
    parts : tuple of Recomputed or Kept
        From the first to the last.
    dim : int
        Along which they are put together.
    strides, version : tuple of int, int
        Of the concatenation.
    """

    __slots__ = ("__weakref__", "dim", "parts", "strides", "version")

    def __init__(self, tensor: Tensor, parts: tuple[Kept | Recomputed, ...], dim: int) -> None:
        self.parts, self.dim = parts, dim
        self.strides: tuple[int, ...] = tensor.stride()
        self.version: int = tensor._version

    def is_of(self, tensor: Tensor) -> bool:
        """Whether it stands for this tensor, as it is now."""
        return _noted(tensor) is self

    @property
    def residuals(self) -> int:
        """How many residuals it takes to make it again, at most for one part."""
        return max(getattr(part, "residuals", 0) for part in self.parts)

    def value(self) -> Tensor:
        with torch.no_grad():
            joined = torch.cat([part.value() for part in self.parts], self.dim)
            return _laid_out(joined, self.strides)


def _joined(tensor: Tensor) -> _Joined | None:
    """Note on a concatenation how it is made again, if enough of it is outputs of layers."""
    node: Any = tensor.grad_fn
    if tensor._version or tensor.device.type != "cpu":
        return None
    made = [_unchanged(parent) for parent, _ in node.next_functions]
    if not any(made):
        return None
    dim = node._saved_dim
    dim -= 2**64 if dim >= 2**63 else 0  # it is shown without a sign
    # Other parts that follow each other are kept as one, whose length is what is left.
    runs = [each for i, each in enumerate(made) if each or i == 0 or made[i - 1]]
    known = sum(each.shape[dim] for each in runs if each)
    rest = tensor.shape[dim] - known
    if runs.count(None) > 1 or known < LEAST_SHARE * tensor.shape[dim]:
        return None
    parts: list[Kept | Recomputed] = []
    start = 0
    for each in runs:
        length = each.shape[dim] if each else rest
        parts.append(each or Kept(tensor.detach().narrow(dim, start, length).clone()))
        start += length
    vars(tensor)[_NOTE] = joined = _Joined(tensor, tuple(parts), dim)
    return joined


def _unchanged(node: Any) -> Recomputed | None:
    """Find the output of a layer's call by its node; None if it has changed since, or is deep."""
    ours = isinstance(node, torch.autograd.function.BackwardCFunction)  # a node of Python code
    again = _STATE.outputs.get(node) if ours else None
    if again is None or again.counter._version != again.version:
        return None
    return None if isinstance(again.x(), Recomputed | _Joined | _View) else again


# --- what autograd keeps --------------------------------------------------------------------------


class _View:
    """A view of an output that is made again."""

    __slots__ = ("__weakref__", "again", "place")

    def __init__(self, again: Recomputed | _Joined, view: Tensor) -> None:
        self.again, self.place = again, (view.shape, view.stride(), view.storage_offset())

    def value(self) -> Tensor:
        return self.again.value().as_strided(*self.place)

    def is_of(self, tensor: Tensor) -> bool:
        base = tensor._base
        return base is not None and _noted(base) is self.again


def pack(tensor: Tensor) -> Kept | Recomputed | _Joined | _View:
    """Give what autograd is to keep of a tensor."""
    kept: Any = _noted(tensor)
    if kept is None and tensor._is_view():
        base = tensor._base
        again = None if base is None or base.dtype != tensor.dtype else _noted(base)
        kept = None if again is None else _View(again, tensor)
    if kept is None:
        kept = Kept(tensor)
    _STATE.kept[id(tensor)] = kept
    return kept


def unpack(kept: Kept | Recomputed | _Joined | _View) -> Tensor:
    """Give back a tensor for what autograd has kept of it."""
    return kept.value()


class _State(threading.local):
    def __init__(self) -> None:
        self.depth = 0
        self.hooked = False
        # What is kept of a tensor, by its id, as long as it is.
        self.kept: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        # How outputs of layers are made again, by their nodes, while the hooks are there.
        self.outputs: weakref.WeakKeyDictionary[Any, Recomputed] = weakref.WeakKeyDictionary()


_STATE = _State()


class recomputing:  # noqa: N801
    """Context in which outputs of layers with ``recompute=True`` are not kept, but made again.

    ``convert(model, recompute=True)`` has the forward pass of `model` in it. It is of use where
    layers are called by other code: it must contain the operations that follow them. Where other
    saved-tensor hooks are active when it begins (activation checkpointing, offloading), they decide
    alone what is kept; where PyTorch allows none (`torch.func`), everything is.
    """

    def __enter__(self) -> None:
        if _STATE.depth == 0 and _may_hook() and _top_hooks(True) is None:
            _AUTOGRAD._push_saved_tensors_default_hooks(pack, unpack)
            _STATE.hooked = True
        _STATE.depth += 1

    def __exit__(self, *_: object) -> None:
        _STATE.depth -= 1
        if _STATE.depth == 0 and _STATE.hooked:
            _STATE.hooked = False
            _STATE.outputs.clear()
            _AUTOGRAD._pop_saved_tensors_default_hooks()


# --- models ---------------------------------------------------------------------------------------


class _RecomputingForward(Disguise):
    """The forward of a model in which outputs of layers are not kept."""

    _recomputes: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled as the class that can be found by its name, and made again."""
        return reduced(super().__reduce_ex__(protocol), type(self), self._recomputes, _remade)


def _remade(function: Any, arguments: tuple[Any, ...]) -> Any:
    model = function(*arguments)
    set_recomputing(model, True)
    return model


def _forward_of(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.forward)  # tracers and users look at the arguments
    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        if is_compiling():  # compilers choose themselves what is made again
            return kind.forward(self, *inputs, **named)
        with recomputing():
            return kind.forward(self, *inputs, **named)

    return forward


_MADE: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()


def is_recomputing(model: Any) -> bool:
    """Whether a model's forward pass runs in `recomputing`."""
    return isinstance(model, _RecomputingForward)


def set_recomputing(model: Any, on: bool) -> None:
    """Have the forward pass of a model run in `recomputing`, or not."""
    kind: Any = type(model)
    if on == is_recomputing(model):
        return
    if not on:
        model.__class__ = kind._recomputes
        return
    made = _MADE.get(kind)
    if made is None:
        made = disguised(kind, _RecomputingForward, _forward_of(kind), _recomputes=kind)
        made = _MADE.setdefault(kind, made)
    model.__class__ = made
