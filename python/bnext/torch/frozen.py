"""Frozen layers of other packages over bnext's kernels: constants in place of statistics.

They are no layers of PyTorch's: modules with four buffers, which multiply and add by them, in four
operations and in every mode. As a call by given statistics it is one pass over memory, and the
backward pass keeps no input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext.torch.copies import shallow_copy
from bnext.torch.epilogues import Epilogue, applied
from bnext.torch.forms import Form
from bnext.torch.functional import activated_batch_norm, counted_batch_norm
from bnext.torch.patterns import own_activation

__all__ = ["FrozenForward"]


class FrozenForward(torch.nn.Module):
    """The forward pass of a frozen layer; classes that are made of it have a layer's class too."""

    _stands_for: tuple[type, bool]
    _form: Form
    _activation: tuple[str | None, float] = (None, 0.01)
    _acts = False
    _recompute = False  # it keeps no input to make its output again from

    def forward(self, input: Any) -> Any:
        """Multiply and add by constants, and call the modules that follow."""
        if type(input) is not Tensor and isinstance(input, torch.fx.Proxy):
            tracer = input.tracer
            if getattr(tracer, "root", None) is not self:
                return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
            return self._theirs(input)
        if not self._fits(input):
            return self._theirs(input)
        own = own_activation(self) if self._acts else None
        if own is not None:
            return self._normalized(input, Epilogue(None, *own))
        y: Any = self._normalized(input, None)
        for name in self._form.after:
            y = self._modules[name](y)
        return y

    def _normalized(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        """Normalize `input`, and do what follows."""
        if not self._fits(input):  # and nothing else follows here
            y = self._theirs(input)
            return y if epilogue is None else applied(y, epilogue)
        layer: Any = self
        eps = layer.eps if self._form.eps is None else self._form.eps
        tensors = layer.running_mean, layer.running_var, layer.weight, layer.bias
        if epilogue is None:
            return counted_batch_norm(input, *tensors, False, 0.0, eps, None)
        return activated_batch_norm(input, *tensors, False, 0.0, eps, None, epilogue)

    def _fits(self, input: Any) -> bool:
        """Whether the product and the sum are of the input's dtype and shape."""
        weight: Any = self.weight
        return (
            isinstance(input, Tensor)
            and input.dim() == 4
            and input.size(1) == weight.size(0)
            and input.dtype == weight.dtype
        )

    def _theirs(self, input: Any) -> Any:
        kind: Any = self._stands_for[0]
        return kind.forward(self, input)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Give TorchScript, which knows nothing of kernels, the layer as it was."""
        from bnext.torch.conversion import revert

        return revert(shallow_copy(self))
