"""Layers that normalize each example by itself: `torch.nn.LayerNorm` and `torch.nn.RMSNorm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, overload

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.array_types import Array, ArrayT, Parameter, Values
from bnext.groups.group import ALONE, Group, check_group
from bnext.layers.checks import taken_by_rows
from bnext.layers.examples import ExampleNormalization, text_of_activation
from bnext.layers.holder import parameter_dtype
from bnext.layers.modes import TrainingMode
from bnext.row_passes import backward_of_rows, forward_of_rows
from bnext.spine import epilogue_of

__all__ = ["LayerNorm", "RMSNorm"]


class RowNormalization(ExampleNormalization, TrainingMode):
    """Parameters of the shape of an example, and both passes."""

    names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    movable: ClassVar[tuple[str, ...]] = ("weight", "bias", "weight_grad", "bias_grad")
    version = 1
    centered: ClassVar[bool]
    # Here too, for pickles of layers from before there were activations.
    activation: str | None = None
    negative_slope: float = 0.01

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None,
        elementwise_affine: bool,
        bias: bool,
        dtype: npt.DTypeLike,
        activation: str | None,
        negative_slope: float,
        group: Group | None,
    ) -> None:
        check_group(group)
        self.group = group
        self.normalized_shape: tuple[int, ...] = _core.check_normalized_shape(
            normalized_shape=normalized_shape
        )
        if eps is not None:
            _core.check_eps(eps=eps)
        self.eps = eps
        _core.check_activation(activation=activation)
        self.activation = activation
        self.negative_slope = _core.check_negative_slope(negative_slope=negative_slope)
        self.dtype: np.dtype[Any] = parameter_dtype(dtype)
        self.elementwise_affine: bool = bool(elementwise_affine)
        shape, has_bias = self.normalized_shape, self.elementwise_affine and bias
        self.weight: Parameter = np.ones(shape, self.dtype) if self.elementwise_affine else None
        self.bias: Parameter = np.zeros(shape, self.dtype) if has_bias else None
        self.weight_grad: Parameter = None
        self.bias_grad: Parameter = None
        self.training = True
        # The input of the latest forward call and what it saved, until backward consumes them.
        self._latest = {}

    @overload
    def forward(
        self, x: ArrayT, *, out: ArrayT | None = None, residual: Values | None = None
    ) -> ArrayT: ...

    @overload
    def forward(
        self, x: npt.ArrayLike, *, out: Array | None = None, residual: Values | None = None
    ) -> Array: ...

    def forward(self, x: Any, *, out: Any = None, residual: Any = None) -> Any:
        """Normalize `x`; the same as calling the layer.

        Parameters
        ----------
        x : array, shape (*, normalized_shape)
            Of any library, where the layer's arrays are. Of the layer's dtype; for a float32 layer
            also float16 or bfloat16. The layer keeps it, without a copy, until `backward` or the
            next call: it must not change.
        out : array, shape of `x`, optional
            Where to put the result.
        residual : array, shape of `x`, optional
            Added to the normalized values, before the activation; of the dtype of `x`. With an
            activation the layer keeps it as it keeps `x`.

        Returns
        -------
        array, shape of `x`
            Of the dtype of `x`, in C order, or `out`.

        Raises
        ------
        ValueError, TypeError
            `x` has a wrong shape or dtype or is not where the layer's arrays are, or what
            `bnext.layer_norm_forward` raises.
        RuntimeError
            `x` is on a GPU on which bnext cannot compute.
        bnext.sync.GroupError
            A member of the group is missing, has failed, or called something else.
        """
        group = self.group
        part = ALONE if group is None else group.part(self)
        with part:
            x, engine = taken_by_rows(self, x, part)
        epilogue = epilogue_of(residual, self.activation, self.negative_slope)
        y, saved = forward_of_rows(
            x, self.normalized_shape, self.weight, self.bias, self.eps, out, self.centered, False,
            epilogue, part, engine,
        )  # fmt: skip
        kept = residual if epilogue is not None and saved.reads_residual else None
        self._latest[None if group is None else group.rank_or_none] = x, saved, kept
        return y

    __call__ = forward

    def _gradients(self, dy: Any, x: Any, saved: Any, out: Any, residual: Any) -> tuple[Any, ...]:
        dx, dweight, *rest = backward_of_rows(
            dy, x, saved, self.weight, out, self.centered, False, self.weight is not None, residual
        )
        return (dx, dweight, *rest) if self.centered else (dx, dweight, None, *rest)

    def reset_parameters(self) -> None:
        """Set `weight` to 1 and `bias` to 0.

        Raises
        ------
        ValueError, TypeError
            An array cannot be written; then none has changed.
        """
        self._fill(weight=1, bias=0)

    def _text(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )

    def __repr__(self) -> str:
        """As PyTorch prints it, with `dtype` where it is not the default."""
        text = self._text() + text_of_activation(self)
        if self.dtype != np.float32:
            text += f", dtype={self.dtype}"
        if self.group is not None:
            text += f", group={self.group!r}"
        return f"{type(self).__name__}({text})"


class LayerNorm(RowNormalization):
    """Layer normalization: each example by the mean and the biased variance of its own values.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` (Ba, Kiros and Hinton 2016), over the
    trailing axes of `normalized_shape`, the same in training and in evaluation.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the trailing axes of the input that are normalized together.
    eps : float
        Added to the variance, in the square of the unit of the input.
    elementwise_affine : bool
        Whether the layer has `weight`, and `bias` if that is asked for.
    bias : bool
        Whether an affine layer has `bias`.
    dtype : dtype
        float32 or float64: of the parameters. The input has it as well; a float32 layer also takes
        float16 and bfloat16 (as ``ml_dtypes`` has it).
    activation : str, optional
        What is applied to the result, in the same pass; `bnext.batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    group : bnext.sync.Group, optional
        Members that hold parts of the normalized axes of the same examples, as
        `bnext.layer_norm_forward` has it: each has a layer of its part's `normalized_shape`.

    Attributes
    ----------
    weight, bias : array, shape (normalized_shape), or None
        Parameters, initially 1 and 0.
    weight_grad, bias_grad : array, shape (normalized_shape), or None
        Set by `backward`; each call replaces them.
    activation, negative_slope
        As they were given; may be replaced at any time. A backward call goes by what its forward
        call applied.

    A new layer's arrays are NumPy's. They serve input of any library on the CPU; for input on a GPU
    they must be there as well, and `to` moves them.

    Raises
    ------
    ValueError
        `normalized_shape` is empty or has a negative length; `eps` is negative or not finite;
        `activation` is not one of the names, `negative_slope` is not finite.
    TypeError
        `dtype` is not float32 or float64, an argument is not a number, or `activation` is not a
        string.
    """

    centered = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        activation: str | None = None,
        negative_slope: float = 0.01,
        group: Group | None = None,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, bias, dtype, activation, negative_slope,
            group,
        )  # fmt: skip

    def _text(self) -> str:
        return f"{super()._text()}, bias={self.bias is not None}"


class RMSNorm(RowNormalization):
    """RMS normalization: each example divided by the root of the mean of its squares.

    ``y = x / sqrt(mean(x * x) + eps) * weight`` (Zhang and Sennrich 2019), over the trailing axes
    of `normalized_shape`, the same in training and in evaluation.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Lengths of the trailing axes of the input that are normalized together.
    eps : float, optional
        Added to the mean of squares. If not given, the machine epsilon of the arithmetic, as
        PyTorch has it: 2**-52 for a float64 input, 2**-23 for all others.
    elementwise_affine : bool
        Whether the layer has `weight`.
    dtype : dtype
        float32 or float64: of the weight. The input has it as well; a float32 layer also takes
        float16 and bfloat16 (as ``ml_dtypes`` has it).
    activation : str, optional
        What is applied to the result, in the same pass; `bnext.batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    group : bnext.sync.Group, optional
        Members that hold parts of the normalized axes of the same examples, as
        `bnext.layer_norm_forward` has it: each has a layer of its part's `normalized_shape`.

    Attributes
    ----------
    weight : array, shape (normalized_shape), or None
        The parameter, initially 1.
    weight_grad : array, shape (normalized_shape), or None
        Set by `backward`; each call replaces it.
    activation, negative_slope
        As they were given; may be replaced at any time. A backward call goes by what its forward
        call applied.

    A new layer's arrays are NumPy's. They serve input of any library on the CPU; for input on a GPU
    they must be there as well, and `to` moves them.

    Raises
    ------
    ValueError
        `normalized_shape` is empty or has a negative length; `eps` is negative or not finite;
        `activation` is not one of the names, `negative_slope` is not finite.
    TypeError
        `dtype` is not float32 or float64, an argument is not a number, or `activation` is not a
        string.
    """

    centered = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        activation: str | None = None,
        negative_slope: float = 0.01,
        group: Group | None = None,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, False, dtype, activation, negative_slope,
            group,
        )  # fmt: skip
