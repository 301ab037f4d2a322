"""What the tests of `bnext.torch` share: pairs of layers, inputs, and comparisons with torch.nn."""

import math
from collections import namedtuple

import numpy as np
import pytest

from ..optional import import_torch
from ..tolerances import TORCH, TORCH_16_BITS

torch = import_torch()

import bnext.torch  # noqa: E402 - of which there is nothing without PyTorch

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Of tests that compile: nothing from before; without PyTorch's warning as it first loads Inductor.
COMPILED = [
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
]
LIBRARIES = {"torch.nn": torch.nn, "bnext.torch": bnext.torch}


def name_of(shape):
    """The layer for input of a shape."""
    return f"BatchNorm{max(len(shape) - 2, 1)}d"


def name_of_dtype(dtype):
    return str(dtype).removeprefix("torch.")


def bound_of(dtype):
    """How many units in the last place results may be apart from PyTorch's."""
    if dtype in (torch.float16, torch.bfloat16):
        return TORCH_16_BITS
    return TORCH[np.float64 if dtype == torch.float64 else np.float32]


# --- how tensors reach the kernels ----------------------------------------------------------------


class Transparent(torch.Tensor):
    """A subclass with no operations of its own: DLPack's table does not read it."""


class ByArrays:
    """The calls of `_core`, of tensors that no table reads."""

    def __getattr__(self, name):
        function = getattr(bnext._core, name)

        def call(*, plain=False, **operands):
            if plain:
                raise TypeError("no table reads this")
            hidden = {
                name: value.as_subclass(Transparent) if isinstance(value, torch.Tensor) else value
                for name, value in operands.items()
            }
            return function(**hidden)

        return call


def by_arrays(monkeypatch):
    """Let layers hand over tensors as arrays, as with a PyTorch that has no table."""
    monkeypatch.setattr("bnext.torch.kernels._core", ByArrays())
    monkeypatch.setattr("bnext.torch.kernels.engine_of", lambda x, name="x": ByArrays())


# --- layers ---------------------------------------------------------------------------------------

PARAMETERS = ("weight", "bias")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def layers(name, channels=5, *, without=(), **options):
    """torch.nn's layer and ours, with the same random parameters and statistics."""
    pair = [getattr(library, name)(channels, **options) for library in LIBRARIES.values()]
    weight, bias, mean, var = torch.rand(4, channels)
    values = {"weight": weight + 0.5, "bias": bias - 0.5, "running_mean": mean, "running_var": var}
    with torch.no_grad():
        for layer in pair:
            for parameter in without:
                setattr(layer, parameter, None)
            for key, value in values.items():
                if getattr(layer, key) is not None:
                    getattr(layer, key).copy_(value)
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(3)
    return pair


# --- inputs ---------------------------------------------------------------------------------------


def channels_last(x):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else None


def cropped(x):
    if x.dim() < 3:
        return None
    larger = torch.full((*x.shape[:-1], x.shape[-1] + 3), math.nan, dtype=x.dtype)
    larger[..., 1 : 1 + x.shape[-1]] = x
    return larger[..., 1 : 1 + x.shape[-1]]


def every_second(x, axis):
    larger = x.repeat_interleave(2, axis)
    return larger[::2] if axis == 0 else larger[:, ::2]


def first_half(x):
    return torch.cat([x, x * math.nan], 1)[:, : x.shape[1]]


def transposed(x, axes):
    """The same values, with axes in memory in another order."""
    back = [axes.index(axis) for axis in range(x.dim())]
    return x.permute(axes).contiguous().permute(back)


# Ways for the same values to lie in memory; None where a shape cannot.
MEMORIES = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "every-second-example": lambda x: every_second(x, 0),
    "every-second-channel": lambda x: every_second(x, 1),
    "half-the-channels": first_half,
    "cropped": cropped,
    "channels-first": lambda x: transposed(x, [1, 0, *range(2, x.dim())]),
    "axes-reversed": lambda x: transposed(x, [*reversed(range(x.dim()))]),
}


# --- what comes of a call -------------------------------------------------------------------------

Step = namedtuple("Step", "y dx gradients buffers")
Failure = namedtuple("Failure", "type text")


def outcome_of(function, *arguments, **named):
    """What a call returns, or a `Failure`."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        return Failure(type(error), str(error))


def step(layer, x, dy):
    """A forward and a backward pass, and what the layer has after them."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    gradients = {name: _gradient_of(layer, name) for name in PARAMETERS}
    return Step(y, leaf.grad, gradients, buffers_of(layer))


def _gradient_of(layer, name):
    parameter = getattr(layer, name)
    return None if parameter is None else parameter.grad


def buffers_of(layer):
    values = {name: getattr(layer, name) for name in BUFFERS}
    return {name: None if value is None else value.clone() for name, value in values.items()}


# --- comparisons ----------------------------------------------------------------------------------


def assert_close(actual, expected, what, scale=0.0):
    """Equal up to roundings at `scale` or at the largest magnitude, whichever is more."""
    if expected is None:
        assert actual is None, what
        return
    actual, expected, dtype = actual.detach(), expected.detach(), expected.dtype
    assert actual.dtype == dtype, what
    assert actual.shape == expected.shape, what
    if expected.numel() == 0:
        return
    assert expected.is_floating_point() or torch.equal(actual, expected), what
    if torch.equal(actual, expected):
        return
    actual, expected = actual.double(), expected.double()
    largest = max(float(expected.nan_to_num(0, 0, 0).abs().max()), scale)
    allowed = bound_of(dtype) * torch.finfo(dtype).eps * largest
    off = float(torch.where(actual == expected, 0.0, actual - expected).abs().nan_to_num().max())
    assert torch.equal(actual.isnan(), expected.isnan()), what
    assert off <= allowed, f"{what}: off by {off}, {off / allowed} times what is allowed"


def assert_same_steps(ours, theirs, scale):
    """Two steps gave the same, up to roundings; memory formats are the same as well."""
    assert_close(ours.y, theirs.y, "y", scale)
    assert_same_format(ours.y, theirs.y)
    assert_close(ours.dx, theirs.dx, "dx", scale)
    sums = scale * math.sqrt(max(theirs.y.numel(), 1))
    for name in PARAMETERS:
        assert_close(ours.gradients[name], theirs.gradients[name], name, sums)
    for name in BUFFERS:
        assert_close(ours.buffers[name], theirs.buffers[name], name, 1.0)


def assert_same_format(actual, expected):
    """The same strides; those of axes with one element mean nothing, but to later operators."""
    steps = zip(actual.stride(), expected.stride(), expected.shape, strict=True)
    assert all(a == b or n == 1 for a, b, n in steps), (actual.stride(), expected.stride())
    for kind in (torch.channels_last, torch.channels_last_3d):
        if expected.dim() == (4 if kind is torch.channels_last else 5):
            assert actual.is_contiguous(memory_format=kind) == expected.is_contiguous(
                memory_format=kind
            )
