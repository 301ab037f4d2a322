"""The kernels as each backend of Keras calls them: `train` and `infer`, over tensors of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import keras

import bnext

__all__ = ["BACKENDS", "Call", "Kernels", "kernels"]


class Call(NamedTuple):
    """What of a call is no tensor."""

    eps: float
    axis: int
    activation: str | None
    negative_slope: float

    @property
    def applied(self) -> dict[str, Any]:
        """The activation, as all functions have it."""
        return {"activation": self.activation, "negative_slope": self.negative_slope}

    @property
    def options(self) -> dict[str, Any]:
        """All, as the functions for arrays and those for JAX have it."""
        return {"eps": self.eps, "channel_axis": self.axis, **self.applied}


class Kernels(NamedTuple):
    """The calls of a backend.

    Attributes
    ----------
    train : callable
        Of call, x, weight, bias and residual: y, and the batch's mean and biased variance, through
        which no gradient goes. These are None where they must not move anything: when the forward
        pass of a step runs again.
    infer : callable
        Of call, x, mean, var, weight, bias and residual: y.
    train_masked : callable or None
        Of call, x, weight, bias, residual and a mask of positions: as `train`, by the statistics of
        positions that count. Every value is normalized, and has a gradient. None where there are no
        such kernels.
    """

    train: Callable[..., tuple[Any, Any, Any]]
    infer: Callable[..., Any]
    train_masked: Callable[..., tuple[Any, Any, Any]] | None = None


# --- NumPy ----------------------------------------------------------------------------------------


def _numpy_train(
    call: Call, x: Any, weight: Any, bias: Any, residual: Any
) -> tuple[Any, Any, Any]:  # fmt: skip
    y, saved = bnext.batch_norm_forward(x, weight, bias, residual=residual, **call.options)
    return y, saved.mean, saved.var


def _numpy_train_masked(
    call: Call, x: Any, weight: Any, bias: Any, residual: Any, mask: Any
) -> tuple[Any, Any, Any]:
    y, saved = bnext.batch_norm_forward(
        x, weight, bias, residual=residual, mask=mask, masked="normalized", **call.options
    )
    return y, saved.mean, saved.var


def _numpy_infer(
    call: Call, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any
) -> Any:
    return bnext.normalize(x, mean, var, weight, bias, residual=residual, **call.options)


# --- JAX ------------------------------------------------------------------------------------------


def _jax() -> Kernels:
    import jax

    functions: ModuleType = importlib.import_module("bnext.jax")
    internal: ModuleType = importlib.import_module("bnext.jax.functional")

    def without_gradient(found: Any) -> tuple[Any, Any]:
        mean, var = jax.lax.stop_gradient((found.mean, found.var))
        return mean, var

    def train(
        call: Call, x: Any, weight: Any, bias: Any, residual: Any
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        y, found = functions.batch_norm(x, weight, bias, residual=residual, **call.options)
        return y, *without_gradient(found)

    def train_masked(
        call: Call, x: Any, weight: Any, bias: Any, residual: Any, mask: Any
    ) -> tuple[Any, Any, Any]:
        y, found = internal.normalize_by_counted(
            x, weight, bias, mask, axis_name=None, residual=residual, **call.options
        )
        return y, *without_gradient(found)

    def infer(
        call: Call, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any
    ) -> Any:
        return functions.normalize(x, mean, var, weight, bias, residual=residual, **call.options)

    return Kernels(train, infer, train_masked)


# --- PyTorch --------------------------------------------------------------------------------------


def _torch() -> Kernels:
    import torch

    from bnext.torch.context import is_recomputed
    from bnext.torch.functional import batch_norm

    def moved(axis: int, x: Any) -> Any:
        """Give a view of x with channels where PyTorch has them."""
        return x if x is None else x.movedim(axis, 1)

    def run(
        call: Call, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any,
        training: bool,
    ) -> Any:  # fmt: skip
        y = batch_norm(
            moved(call.axis, x), mean, var, weight, bias, training, 1.0, call.eps,
            residual=moved(call.axis, residual), **call.applied,
        )  # fmt: skip
        return y.movedim(1, call.axis)

    def train(call: Call, x: Any, weight: Any, bias: Any, residual: Any) -> tuple[Any, Any, Any]:
        channels = x.shape[call.axis]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        # With a momentum of 1 the statistics are the batch's.
        mean, var = torch.zeros(2, channels, dtype=wide, device=x.device)
        y = run(call, x, mean, var, weight, bias, residual, True)
        if is_recomputed():
            return y, None, None
        count = x.numel() // channels
        return y, mean, var * ((count - 1) / count)  # PyTorch's variance has Bessel's correction

    def infer(
        call: Call, x: Any, mean: Any, var: Any, weight: Any, bias: Any, residual: Any
    ) -> Any:
        return run(call, x, mean, var, weight, bias, residual, False)

    return Kernels(train, infer)


BACKENDS: dict[str, Callable[[], Kernels]] = {
    "jax": _jax,
    "torch": _torch,
    "numpy": lambda: Kernels(_numpy_train, _numpy_infer, _numpy_train_masked),
}


def kernels() -> Kernels:
    """Give the kernels for Keras's backend; ImportError where there are none."""
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise ImportError(
            f"bnext.keras: expected one of {', '.join(BACKENDS)} as Keras's backend "
            f"(KERAS_BACKEND), got {name}"
        )
    return BACKENDS[name]()
