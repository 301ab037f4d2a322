"""What follows normalization, ``act(norm(x) + residual)``: PyTorch's functions by bnext's names.

Kernels apply it in their own passes. Where they cannot, PyTorch's operators follow: for a residual
of another shape or dtype, under transforms, in exported graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bnext import _core

__all__ = ["ACTIVATIONS", "Epilogue", "applied", "checked", "derivative", "made"]

_SQRT_2, _SQRT_2_PI, _SQRT_8_PI = math.sqrt(2.0), math.sqrt(2.0 * math.pi), math.sqrt(8.0 / math.pi)
_CUBIC = 0.044715  # of GELU's approximation (Hendrycks and Gimpel 2016)


class Epilogue(NamedTuple):
    """An addition and an activation after normalization, as `bnext.spine` takes them."""

    residual: Any
    activation: str | None
    negative_slope: float


# Makes one of its three fields. (The class itself is called by a function in Python.)
made: Callable[[tuple[Any, str | None, float]], Epilogue] = partial(tuple.__new__, Epilogue)

# y of z and of the negative slope.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: functional.relu(z),
    "relu6": lambda z, _: functional.relu6(z),
    "leaky_relu": functional.leaky_relu,
    "silu": lambda z, _: functional.silu(z),
    "hardswish": lambda z, _: functional.hardswish(z),
    "gelu": lambda z, _: functional.gelu(z),
    "gelu_tanh": lambda z, _: functional.gelu(z, approximate="tanh"),
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "tanh": lambda z, _: torch.tanh(z),
}


def checked(residual: Any, activation: Any, negative_slope: Any) -> Epilogue | None:
    """Give the epilogue of a call, None without one.

    Errors are as in `bnext.batch_norm_forward`.
    """
    if activation is None and residual is None:
        return None
    if activation is not None and (
        not isinstance(activation, str) or activation not in ACTIVATIONS
    ):
        _core.check_activation(activation=activation)
    if type(negative_slope) is not float or not math.isfinite(negative_slope):
        negative_slope = _core.check_negative_slope(negative_slope=negative_slope)
    return Epilogue(residual, activation, negative_slope)


def applied(y: Tensor, epilogue: Epilogue) -> Tensor:
    """Add the residual and apply the activation by PyTorch's operators."""
    if epilogue.residual is not None:
        y = y + epilogue.residual
    if epilogue.activation is not None:
        y = ACTIVATIONS[epilogue.activation](y, epilogue.negative_slope)
    return y


# --- derivatives of activations by z, which can be differentiated in turn -------------------------


def derivative(activation: str, negative_slope: float) -> Callable[[Tensor], Tensor]:
    """Give act' as a function of z."""
    function = _DERIVATIVES[activation]
    return lambda z: function(z, negative_slope)


def _where(condition: Tensor, inside: Any, outside: Any, like: Tensor) -> Tensor:
    return torch.where(condition, inside, outside).to(like.dtype)


def _of_silu(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _of_gelu(z: Tensor, _: float) -> Tensor:
    return 0.5 * (1 + torch.erf(z / _SQRT_2)) + z * torch.exp(-0.5 * z * z) / _SQRT_2_PI


def _of_gelu_tanh(z: Tensor, _: float) -> Tensor:
    t = torch.tanh(0.5 * _SQRT_8_PI * (z + _CUBIC * z**3))
    return 0.5 * (1 + t) + 0.25 * z * (1 - t * t) * _SQRT_8_PI * (1 + 3 * _CUBIC * z * z)


_DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, _: _where(z > 0, 1.0, 0.0, z),
    "relu6": lambda z, _: _where((z > 0) & (z < 6), 1.0, 0.0, z),
    "leaky_relu": lambda z, slope: _where(z > 0, 1.0, slope, z),
    "silu": _of_silu,
    "hardswish": lambda z, _: _where(
        z < -3, torch.zeros_like(z), torch.where(z <= 3, z / 3 + 0.5, torch.ones_like(z)), z
    ),
    "gelu": _of_gelu,
    "gelu_tanh": _of_gelu_tanh,
    "sigmoid": lambda z, _: torch.sigmoid(z) * (1 - torch.sigmoid(z)),
    "tanh": lambda z, _: 1 - torch.tanh(z) ** 2,
}
