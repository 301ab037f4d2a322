"""Folding: batch normalization in inference, merged into a neighbouring layer.

With the running statistics, ``y = scale * x + shift`` per channel, where

    scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale.

The linear layer or convolution before it takes both into its weight and bias; so does the one after
it, where that is exact.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext import _core
from bnext.arguments import index_of, values_of
from bnext.array_types import ArrayT
from bnext.arrays.libraries import library_of
from bnext.running import check_tracked

if TYPE_CHECKING:
    from bnext.layers.normalization import Normalization

__all__ = ["Affine", "affine_of", "fold", "fold_into_next"]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]


class Affine(NamedTuple):
    """A layer in inference, per channel: ``scale * x + shift``.

    Attributes
    ----------
    scale : array of float64, shape (C,)
        ``weight / sqrt(running_var + eps)``.
    shift : array of float64, shape (C,)
        ``bias - running_mean * scale``.
    """

    scale: Float64Array
    shift: Float64Array


def affine_of(bn: Normalization) -> Affine:
    """Make `Affine` of a layer; see `BatchNorm.as_affine`."""
    check_tracked(bn, "bn")
    if bn.activation is not None:
        raise ValueError(
            f"bn: expected a layer without an activation, got one that applies {bn.activation!r} "
            "(set bn.activation = None, and apply it after what was folded)"
        )
    mean, var = _of_layer(bn, "running_mean"), _of_layer(bn, "running_var")
    with np.errstate(under="ignore"):
        root = np.sqrt(var + bn.eps)
        scale = np.divide(1.0, root, out=np.zeros_like(root), where=root != 0)  # 0, like rstd
        shift = -mean * scale
        if bn.weight is not None:
            weight = _of_layer(bn, "weight")
            scale, shift = weight * scale, weight * shift
        if bn.bias is not None:
            shift = shift + _of_layer(bn, "bias")
    return Affine(scale, shift)


def fold(
    weight: ArrayT,
    bias: Any,
    bn: Normalization,
    *,
    axis: int | tuple[int, ...] = 0,
    groups: int = 1,
) -> tuple[ArrayT, ArrayT]:
    """Fold `bn` into the linear layer or convolution before it.

    ``bn(W x + b)`` in inference is ``W' x + b'`` with ``W' = scale * W`` along the outputs and
    ``b' = scale * b + shift``. This is exact for every padding and stride.

    Parameters
    ----------
    weight : array
        Of any library; its outputs are along `axis`.
    bias : array, shape (C,), or None
        C outputs.
    bn : BatchNorm
        With running statistics, over C channels.
    axis : int or tuple of int
        The axis of `weight` with the outputs: 0 for PyTorch's Linear (out, in) and Conv (out,
        in/groups, ...); -1 for weights (in, out), and for convolutions (..., in, out) of Keras and
        Flax; 1 for PyTorch's ConvTranspose (in, out/groups, ...). If outputs lie along two axes
        (depthwise kernels of Keras, (..., in, multiplier)), both, the slower first.
    groups : int
        Groups of a transposed convolution, whose weight has only out/groups along `axis`, and the
        group along axis 0. Otherwise 1: other convolutions have all outputs along one axis.

    Returns
    -------
    weight, bias : array
        New arrays with the library and dtype of `weight`; computed in float64 and rounded once.

    Raises
    ------
    ValueError
        The shapes do not fit, `bn` has no running statistics, or it has an activation.
    """
    scale, shift = affine_of(bn)
    values = _values_of(weight, "weight")
    axes = _axes_of(axis, "axis", values.ndim)
    _check_groups(groups, values.shape, 0)
    if groups > 1 and (len(axes) > 1 or axes == (0,)):
        raise ValueError(f"groups: expected 1 with outputs along axis {axis}, got {groups}")
    count = math.prod(values.shape[a] for a in axes) * groups
    _check_count(scale, count, "outputs", f"(shape {values.shape}, axis {axis}, {groups} group(s))")
    with np.errstate(under="ignore"):
        folded = values * _spread(scale, values.shape, axes, groups, 0)
        of_outputs = scale * _offset(bias, count) + shift
    return _like(folded, weight), _like(of_outputs, weight if bias is None else bias)


def fold_into_next(
    bn: Normalization,
    weight: ArrayT,
    bias: Any,
    *,
    axis: int = 1,
    output_axis: int = 0,
    groups: int = 1,
    padded: bool = False,
    transposed: bool = False,
) -> tuple[ArrayT, ArrayT]:
    """Fold `bn` into the linear layer or convolution after it, where that is exact.

    ``W bn(x) + b`` is ``W' x + b'`` with ``W' = W * scale`` along the inputs and
    ``b' = b + W shift``, the latter summed over the inputs and the positions of the kernel.

    Parameters
    ----------
    bn : BatchNorm
        With running statistics, over as many channels as the next layer has inputs; nothing but
        linear steps may stand between the two.
    weight : array
        Of any library; its inputs are along `axis`, its outputs along `output_axis`.
    bias : array, shape (C,), or None
        C outputs.
    axis, output_axis : int
        1 and 0 for PyTorch's Linear (out, in) and Conv (out, in/groups, ...); 0 and 1 for weights
        (in, out) and for ConvTranspose (in, out/groups, ...); -2 and -1 for (..., in, out).
    groups : int
        Groups of the convolution.
    padded : bool
        Whether the convolution pads its input with zeros. It pads the output of `bn`, where a zero
        is not a zero of the input: folding is exact only where `shift` is 0.
    transposed : bool
        Whether the convolution is transposed. At its borders, and between strides, it uses only
        some positions of the kernel: folding is exact only where `shift` is 0, or where the kernel
        has a single position.

    Returns
    -------
    weight, bias : array
        As from `fold`.

    Raises
    ------
    ValueError
        Folding is not exact here, the shapes do not fit, `bn` has no running statistics, or it has
        an activation.
    """
    scale, shift = affine_of(bn)
    values = _values_of(weight, "weight")
    (inputs,) = _axes_of(axis, "axis", values.ndim)
    (outputs,) = _axes_of(output_axis, "output_axis", values.ndim)
    if inputs == outputs:
        raise ValueError(f"output_axis: expected another than axis, got {output_axis} for both")
    positions = values.size // max(values.shape[inputs] * values.shape[outputs], 1)
    if (padded or (transposed and positions > 1)) and np.any(shift != 0):
        what = "a padded convolution" if padded else "a transposed convolution"
        raise ValueError(
            f"bn: expected a shift of 0 before {what}, where folding is not exact otherwise, got "
            f"one of up to {np.max(np.abs(shift)):.3g}"
        )
    # The axis with the groups has all channels of its side; the other has one group's.
    whole = inputs if transposed else outputs
    _check_groups(groups, values.shape, whole)
    groups_of_inputs = 1 if transposed else groups
    count = values.shape[inputs] * groups_of_inputs
    _check_count(scale, count, "inputs", f"(shape {values.shape}, axis {axis}, {groups} group(s))")
    factor, addend = (
        _spread(vector, values.shape, (inputs,), groups_of_inputs, outputs)
        for vector in (scale, shift)
    )
    rest = tuple(a for a in range(values.ndim) if a not in (inputs, outputs))
    with np.errstate(under="ignore"):
        through = (values * addend).sum(axis=rest, keepdims=True)
        values = values * factor
    through = np.moveaxis(through, (inputs, outputs), (0, 1))
    if transposed:  # each group of inputs has outputs of its own
        through = through.reshape(groups, -1, values.shape[outputs]).sum(axis=1)
    else:
        through = through.reshape(values.shape[inputs], -1).sum(axis=0)
    of_outputs = _offset(bias, through.size) + through.reshape(-1)
    return _like(values, weight), _like(of_outputs, weight if bias is None else bias)


def _spread(
    vector: Float64Array,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    groups: int,
    group_axis: int,
) -> Float64Array:
    """Lay a vector of channels along `axes`, to be broadcast against `shape`.

    With groups, `axes` is one axis with the channels of one group, and `group_axis` has the groups.
    """
    if groups > 1:
        (axis,) = axes
        rows = vector.reshape(groups, shape[axis])
        rows = rows.repeat(shape[group_axis] // groups, axis=0)
        vector, axes = rows, (group_axis, axis)
    sizes = [shape[axis] for axis in axes]
    in_order: Float64Array = vector.reshape(sizes).transpose(np.argsort(axes))
    return in_order.reshape([n if a in axes else 1 for a, n in enumerate(shape)])


def _axes_of(axis: Any, name: str, rank: int) -> tuple[int, ...]:
    axes = axis if isinstance(axis, tuple) else (axis,)
    try:
        counted = [operator.index(a) for a in axes]
    except TypeError:
        raise TypeError(f"{name}: expected integers, got {axis!r}") from None
    if any(not -rank <= a < rank for a in counted) or len({a % rank for a in counted}) < len(axes):
        raise ValueError(
            f"{name}: expected different axes of a {rank}-dimensional array, got {axis}"
        )
    return tuple(a % rank for a in counted)


def _check_groups(groups: Any, shape: tuple[int, ...], axis: int) -> None:
    if index_of(groups, "groups") < 1 or shape[axis] % groups:
        raise ValueError(
            f"groups: expected a divisor of the {shape[axis]} channels along axis {axis} of "
            f"weight, got {groups}"
        )


def _values_of(array: Any, name: str) -> Float64Array:
    """Copy to NumPy's float64."""
    library = library_of(array)
    if library is not None and str(array.dtype).endswith("bfloat16"):  # NumPy may not read it
        array = library.converted(array, "float32")
    values = values_of(array, name)
    if not _core.is_data_dtype(values.dtype):
        raise TypeError(
            f"{name}: expected dtype float16, bfloat16, float32 or float64, got {values.dtype}"
        )
    wide: Float64Array = values.astype(np.float64)
    return wide


def _of_layer(bn: Normalization, name: str) -> Float64Array:
    wide: Float64Array = values_of(getattr(bn, name), name).astype(np.float64)
    return wide


def _check_count(scale: Float64Array, count: int, what: str, weight: str) -> None:
    if count != len(scale):
        raise ValueError(
            f"weight: expected {len(scale)} {what}, as bn has channels, got {count} {weight}"
        )


def _offset(bias: Any, count: int) -> Float64Array | float:
    if bias is None:
        return 0.0
    values = _values_of(bias, "bias")
    if values.shape != (count,):
        raise ValueError(f"bias: expected shape ({count},), got {values.shape}")
    return values


def _like(values: Float64Array, like: Any) -> Any:
    """Round to the dtype of `like`, in its library and on its device."""
    library = library_of(like)
    with np.errstate(under="ignore"):
        if library is None:
            return values.astype(np.asarray(like).dtype)
        name = str(like.dtype).rpartition(".")[2]
        through_float32 = name == "bfloat16"  # NumPy may not have it
        rounded = values.astype(np.float32 if through_float32 else name)
    array = library.from_numpy(rounded, like)
    return library.converted(array, name) if through_float32 else array
