"""Running statistics of several domains for the layers of a PyTorch model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.inference.domains import NAMES, Switch
from bnext.torch.reports import check_module
from bnext.torch.skipping import SKIPPED

__all__ = ["Domains"]

Buffers = dict[str, Tensor]


class Domains(Switch[Buffers]):
    """Running statistics of several domains for the layers of a model, which share parameters.

    Statistics differ between domains where parameters may serve all of them (Li et al. 2016,
    "Revisiting Batch Normalization for Practical Domain Adaptation"; Chang et al. 2019,
    "Domain-Specific Batch Normalization"). Each domain begins with the statistics that the layers
    have; the layers then use and move the current one's, which are their buffers.

    Parameters
    ----------
    model : torch.nn.Module
        A model with layers of batch normalization, bnext's or PyTorch's, with running statistics.
    names : iterable of str
        The domains. The first is the current one, and has the layers' own buffers.

    Attributes
    ----------
    names : tuple of str
        The domains.
    layers : dict of str to torch.nn.Module
        The layers by their names in the model.

    Raises
    ------
    ValueError
        There is no such layer or no name, or a name is given twice.
    TypeError
        An argument is of a wrong type.

    Notes
    -----
    A domain's statistics go where the layer's are when it becomes the current one. The model's
    state dict has the current domain's; `state_dict` here has all.

    Examples
    --------
    >>> domains = bnext.torch.Domains(model, ["photo", "sketch"])      # doctest: +SKIP
    >>> with domains("sketch"):                                        # doctest: +SKIP
    ...     model(x)
    """

    def __init__(self, model: torch.nn.Module, names: Iterable[str]) -> None:
        check_module(model)
        self.layers: dict[str, _BatchNorm] = {
            name: layer for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        }  # fmt: skip
        if not self.layers:
            raise ValueError("model: expected a layer with running statistics, got none")
        super().__init__(names, [*self.layers])

    def _now(self) -> list[Buffers]:
        names = (*NAMES, SKIPPED)
        every: list[dict[str, Any]] = [layer._buffers for layer in self.layers.values()]
        return [{n: of[n] for n in names if of.get(n) is not None} for of in every]

    def _give(self, statistics: list[Buffers]) -> None:
        for layer, buffers in zip(self.layers.values(), statistics, strict=True):
            for name, tensor in layer._buffers.items():
                if tensor is not None and name in (*NAMES, SKIPPED):
                    given = buffers.get(name)
                    given = torch.zeros_like(tensor) if given is None else given.to(tensor)
                    layer._buffers[name] = given

    def _copied(self, statistics: Buffers) -> Buffers:
        return {name: tensor.clone() for name, tensor in statistics.items()}

    def _arrays(self, statistics: Buffers) -> dict[str, Any]:
        return {name: tensor for name, tensor in statistics.items() if name != SKIPPED}

    def state_dict(self) -> dict[str, Tensor]:
        """Copy the statistics of all domains.

        Returns
        -------
        dict of str to Tensor
            By ``domain.layer.name``.
        """
        return {name: tensor.clone() for name, tensor in self._everything().items()}

    @torch.no_grad()
    def _write(self, found: list[tuple[str, Any, Any]]) -> None:
        for name, _, value in found:
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        for _, tensor, value in found:
            tensor.copy_(value)
