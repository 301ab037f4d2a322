"""What layers of the norms of examples share: an activation of their own, or a fused one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bnext import _core
from bnext.torch.epilogues import Epilogue
from bnext.torch.kernel_module import KernelModule

__all__ = ["ActivatingModule"]


class ActivatingModule(KernelModule):
    """A layer, to stand before PyTorch's class, that applies an activation to what it normalizes.

    Subclasses have `_normalized`, which `bnext.torch.fusion` calls as well.
    """

    _recompute = False

    def _set_activation(self, activation: Any, negative_slope: Any) -> None:
        _core.check_activation(activation=activation)
        slope = _core.check_negative_slope(negative_slope=negative_slope)
        if activation is not None:
            self._activation = activation, slope

    def _epilogue(self, residual: Any = None) -> Epilogue | None:
        """Give what follows normalization, if anything does."""
        if residual is None and self._activation[0] is None:
            return None
        return Epilogue(residual, *self._activation)

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        raise NotImplementedError

    def _besides(self) -> str:
        activation, negative_slope = self._activation
        text = "" if activation is None else f", activation={activation}"
        return text + (f", negative_slope={negative_slope}" if activation == "leaky_relu" else "")
