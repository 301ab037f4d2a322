"""Layers that normalize each example by itself: the backward pass, which all of them share."""

from __future__ import annotations

import abc
from typing import Any, Literal, overload

import numpy.typing as npt

from bnext.array_types import Array, ArrayT, Parameter
from bnext.groups.group import Group
from bnext.groups.visits import Latest, latest_call
from bnext.layers.checks import check_residual_grad
from bnext.layers.holder import Holder

__all__ = ["ExampleNormalization", "text_of_activation"]


def text_of_activation(layer: Any) -> str:
    """Describe a layer's activation as a representation has it; empty where there is none."""
    if layer.activation is None:
        return ""
    text = f", activation={layer.activation!r}"
    if layer.activation == "leaky_relu":
        text += f", negative_slope={layer.negative_slope}"
    return text


class ExampleNormalization(Holder, abc.ABC):
    """A layer that normalizes each example by itself, which a group may hold together.

    Subclasses set the attributes, and note each forward call in `_latest`.
    """

    weight: Parameter
    bias: Parameter
    weight_grad: Parameter
    bias_grad: Parameter
    group: Group | None = None
    _latest: Latest

    @abc.abstractmethod
    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any, residual: Any) -> tuple[Any, ...]:
        """Give dx, dweight and dbias; None for gradients of parameters that do not train.

        Behind them dresidual, if the forward call had a residual. `residual` is what the call kept.
        """

    @overload
    def backward(
        self, dy: ArrayT, *, out: ArrayT | None = None, residual_grad: Literal[True]
    ) -> tuple[ArrayT, ArrayT]: ...

    @overload
    def backward(
        self, dy: npt.ArrayLike, *, out: Array | None = None, residual_grad: Literal[True]
    ) -> tuple[Array, Array]: ...

    @overload
    def backward(
        self, dy: ArrayT, *, out: ArrayT | None = None, residual_grad: Literal[False] | None = None
    ) -> ArrayT: ...

    @overload
    def backward(
        self,
        dy: npt.ArrayLike,
        *,
        out: Array | None = None,
        residual_grad: Literal[False] | None = None,
    ) -> Array: ...

    def backward(self, dy: Any, *, out: Any = None, residual_grad: bool | None = None) -> Any:
        """Gradient by the input of the latest forward call, which it consumes.

        The gradient is taken through the statistics of each example. Where running statistics
        normalized, these are constants, and ``dx`` is ``dy * weight * rstd``.

        Parameters
        ----------
        dy : array, shape of `x`
            Gradient of the loss by the output; of the dtype of `x`.
        out : array, shape of `x`, optional
            Where to put the result; also `dy` itself, unless it is ``dresidual`` too.
        residual_grad : bool, optional
            Whether ``dresidual`` is expected; not needed. Type checkers, which cannot know of the
            forward call, tell both results apart by it, and take one without it for an array.

        Returns
        -------
        array, shape of `x`
            ``dx``; or ``(dx, dresidual)``, a tuple, if the forward call had a residual. The call
            replaces `weight_grad` and `bias_grad`.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by an earlier `backward`.
        ValueError, TypeError
            `dy` has another shape or dtype than the input, or the input has changed since; the
            forward call had a residual and `residual_grad` is False, or the other way round.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        latest, group = self._latest, self.group
        member = None if group is None else group.rank_or_none
        x, saved, residual = latest.get(member) or latest_call(group, latest, "backward")[1]
        if residual_grad is not None:
            check_residual_grad(residual_grad, saved)
        dx, dweight, dbias, *dresidual = self._gradients(dy, x, saved, out, residual)
        if self.weight is not None and dweight is not None:
            self.weight_grad = dweight
        if self.bias is not None and dbias is not None:
            self.bias_grad = dbias
        del latest[member]
        return (dx, *dresidual) if dresidual else dx
