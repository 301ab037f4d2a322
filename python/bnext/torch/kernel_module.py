"""PyTorch's layers with bnext's kernels: what they all are to the tools that look at modules."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from bnext.torch.copies import shallow_copy

__all__ = ["KernelModule", "with_types"]


def with_types(forward: Any) -> Any:
    """Give a `forward` types in place of strings, which a graph of the layer alone pickles."""
    types = {"input": Tensor, "x": Tensor, "residual": Optional[Tensor], "return": Tensor}  # noqa: UP045
    known = forward.__annotations__
    known.update({name: each for name, each in types.items() if name in known})
    return forward


class KernelModule(torch.nn.Module):
    """A layer of PyTorch's, to stand before its class, for `torch.fx`, TorchScript and readers."""

    # Name of the activation, negative slope. (Subclasses may have an `activation` of their own.)
    _activation: tuple[str | None, float] = (None, 0.01)

    def _is_one_node(self, proxy: Any) -> bool:
        """Whether the layer is a node of a graph of `torch.fx`, not the function that it calls.

        The function stands in the graph of a layer that is traced by itself, which is no module in
        it, and within the `forward` of a subclass, which is traced through.
        """
        forward = type(self).forward
        is_ours = forward.__module__.startswith("bnext.torch.")
        return is_ours and getattr(proxy.tracer, "root", None) is not self

    def _node(self, proxy: Any, residual: Any = None) -> Any:
        """Be one node of a graph of `torch.fx`, as its tracer makes only PyTorch's own modules."""
        tracer = proxy.tracer
        given = (proxy,) if residual is None else (proxy, residual)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), given, {})

    def _besides(self) -> str:
        """Describe what PyTorch's layer has not."""
        return ""

    def extra_repr(self) -> str:
        """Describe the layer as PyTorch does, what it has besides, and whose kernels it runs."""
        return f"{super().extra_repr()}{self._besides()}, kernels=bnext"

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Give TorchScript, which knows nothing of kernels, PyTorch's layer of the same tensors."""
        from bnext.torch.conversion import revert
        from bnext.torch.patterns import module_of

        activation, negative_slope = self._activation
        plain = shallow_copy(self)
        vars(plain).pop("_activation", None)
        plain = revert(plain)
        if activation is None:
            return plain
        return torch.nn.Sequential(plain, module_of(activation, negative_slope))
