"""Layers that normalize each example by itself: the backward pass, which all of them share."""

from __future__ import annotations

import abc
from typing import Any, overload

import numpy.typing as npt

from bnext.array_types import Array, ArrayT, Parameter
from bnext.groups.visits import Latest, latest_call
from bnext.layers.holder import Holder

__all__ = ["ExampleNormalization"]


class ExampleNormalization(Holder, abc.ABC):
    """A layer whose calls have no group: each example is normalized by itself.

    Subclasses set the attributes, and note each forward call in `_latest`.
    """

    weight: Parameter
    bias: Parameter
    weight_grad: Parameter
    bias_grad: Parameter
    _latest: Latest

    @abc.abstractmethod
    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any) -> tuple[Any, Any, Any]:
        """Give dx, dweight and dbias; None for gradients of parameters that do not train."""

    @overload
    def backward(self, dy: ArrayT, *, out: ArrayT | None = None) -> ArrayT: ...

    @overload
    def backward(self, dy: npt.ArrayLike, *, out: Array | None = None) -> Array: ...

    def backward(self, dy: Any, *, out: Any = None) -> Any:
        """Gradient by the input of the latest forward call, which it consumes.

        The gradient is taken through the statistics of each example. Where running statistics
        normalized, these are constants, and ``dx`` is ``dy * weight * rstd``.

        Parameters
        ----------
        dy : array, shape of `x`
            Gradient of the loss by the output; of the dtype of `x`.
        out : array, shape of `x`, optional
            Where to put the result; also `dy` itself.

        Returns
        -------
        array, shape of `x`
            ``dx``. The call replaces `weight_grad` and `bias_grad`.

        Raises
        ------
        RuntimeError
            There was no forward call, or its input was consumed by an earlier `backward`.
        ValueError, TypeError
            `dy` has another shape or dtype than the input, or the input has changed since.
        """
        latest = self._latest
        x, saved, _ = latest.get(None) or latest_call(None, latest, "backward")[1]
        dx, dweight, dbias = self._gradients(dy, x, saved, out)
        if self.weight is not None and dweight is not None:
            self.weight_grad = dweight
        if self.bias is not None and dbias is not None:
            self.bias_grad = dbias
        latest.clear()
        return dx
