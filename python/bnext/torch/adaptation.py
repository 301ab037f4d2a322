"""Test-time adaptation of a model: to the statistics of test batches, and of affine parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnext.inference.adaptation import check_prior, share_of_batch
from bnext.torch.batch_statistics import statistics_of
from bnext.torch.epilogues import Epilogue
from bnext.torch.functional import activated_batch_norm, counted_batch_norm
from bnext.torch.ghosts import Ghosts, ghosts_of
from bnext.torch.modules import Forward
from bnext.torch.reports import check_module

__all__ = ["Adaptation", "Blended", "adapt"]


@dataclass(frozen=True)
class Blended:
    """What a layer's calls normalize by: the batch's statistics and the running ones.

    `before`: the ghosts that come back after it.
    """

    prior: float
    before: Ghosts | None = None

    def __call__(self, layer: Any, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        """Normalize `input`, do what follows, as ``layer._normalized`` does."""
        layer._check_input_dim(input)
        mean, var, by_batch = layer.running_mean, layer.running_var, self.prior == 0
        if by_batch:
            mean = var = None
        elif not math.isinf(self.prior) and input.numel() > 0:
            share = share_of_batch(input.size(0), self.prior)
            with torch.no_grad():
                own = statistics_of(input.detach())
                mean, var = (
                    (source.double() * (1 - share) + share * batch).to(source.dtype)
                    for source, batch in zip((mean, var), own, strict=True)
                )
        of = input, mean, var, layer.weight, layer.bias, by_batch, 0.0, layer.eps, None
        return counted_batch_norm(*of) if epilogue is None else activated_batch_norm(*of, epilogue)


class Adaptation:
    """What `adapt` gives: a model while it is adapted to test batches.

    Attributes
    ----------
    model : torch.nn.Module
        The model.
    prior : float
        How many examples the source's statistics count for.
    layers : dict of str to torch.nn.Module
        The layers that normalize by blended statistics, by their names.
    trained : dict of str to Parameter
        The parameters that train, by their names; empty unless ``train="affine"``.
    """

    def __init__(self, model: torch.nn.Module, prior: float, train: str | None) -> None:
        self.model: torch.nn.Module = model
        self.prior: float = check_prior(prior)
        check_module(model)
        if train not in (None, "affine"):
            raise ValueError(f"train: expected 'affine' or None, got {train!r}")
        self.layers: dict[str, _BatchNorm] = {
            name: layer for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None
        }  # fmt: skip
        if not self.layers:
            raise ValueError("model: expected a layer with running statistics, got none")
        for name, layer in self.layers.items():
            if not isinstance(layer, Forward):
                raise ValueError(
                    "model: expected layers of bnext.torch (bnext.torch.convert(model)), got "
                    f"{type(layer).__name__} at {name or 'the model itself'}"
                )
            if isinstance(vars(layer).get("_special"), Blended):
                raise RuntimeError("model: expected one that is not adapted, got one that is")
        self.trained: dict[str, torch.nn.Parameter] = {}
        if train == "affine":
            ours = {id(p) for layer in self.layers.values() for p in layer.parameters(False)}
            self.trained = {n: p for n, p in model.named_parameters() if id(p) in ours}
            if not self.trained:
                raise ValueError("train: expected None for layers without parameters, got 'affine'")
        self._modes = [(module, module.training) for module in model.modules()]
        self._flags = [(p, p.requires_grad) for p in model.parameters()] if train else []
        self._open = True
        model.eval()
        for layer in self.layers.values():
            vars(layer)["_special"] = Blended(self.prior, ghosts_of(layer))
        trained = {id(p) for p in self.trained.values()}
        for parameter, _ in self._flags:
            parameter.requires_grad_(id(parameter) in trained)
        self.snapshot()

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Give the parameters that train, for an optimizer.

        Yields
        ------
        Parameter
            Weights and biases of `layers`; none unless ``train="affine"``.
        """
        yield from self.trained.values()

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember the parameters and the running statistics of `layers` as they are now."""
        self._snapshot = [(t, t.clone()) for t in self._tensors()]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring back what `snapshot` remembered: at first, what the model came with."""
        for tensor, values in self._snapshot:
            tensor.copy_(values)

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self.layers.values():
            yield from layer.parameters(False)
            yield from layer.buffers(False)

    def close(self) -> None:
        """Give layers, modes and ``requires_grad`` back as they were; parameters stay adapted.

        The end of a ``with`` block does so too. `restore` still works.
        """
        if not self._open:
            return
        self._open = False
        for layer in self.layers.values():
            ghosts = ghosts_of(layer)
            vars(layer).pop("_special", None)
            if ghosts is not None:
                vars(layer)["_special"] = ghosts
        for module, mode in self._modes:
            module.training = mode
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)

    def __enter__(self) -> Adaptation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Say what was done."""
        count, kind = len(self.layers), type(self.model).__name__
        subject = f"1 layer of {kind} normalizes" if count == 1 else (
            f"{count} layers of {kind} normalize"
        )  # fmt: skip
        names = ", ".join(name or "the model itself" for name in self.layers)
        lines = [f"{subject} by {self._by()}, in evaluation mode: {names}"]
        if self.trained:
            values = sum(p.numel() for p in self.trained.values())
            lines.append(
                f"{len(self.trained)} parameters with {values} values train, and no others"
            )
        if not self._open:
            lines.append("closed")
        return "\n".join(lines)

    def _by(self) -> str:
        if self.prior == 0:
            return "the statistics of the batch"
        if math.isinf(self.prior):
            return "their running statistics"
        return (
            f"the statistics of the batch, blended with running statistics worth {self.prior:g} "
            "examples"
        )


def adapt(
    model: torch.nn.Module, prior: float = 16, *, train: Literal["affine"] | None = None
) -> Adaptation:
    """Have a model adapt to the test batches that it is called with.

    The model goes to evaluation mode, and its layers normalize n examples by
    ``mean = (prior * running_mean + n * mean_batch) / (prior + n)``, and so for the variances
    (Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift
    adaptation", eq. 1). Running statistics stay as they are. With ``train="affine"`` only the
    weights and biases of these layers require gradients (Wang et al. 2021, "Tent: fully test-time
    adaptation by entropy minimization", which has prior 0).

    Parameters
    ----------
    model : torch.nn.Module
        With layers of `bnext.torch` (`convert`) that have running statistics.
    prior : float
        How many examples the source's statistics count for: 0 for the batch's alone, infinity for
        the source's alone.
    train : {"affine"}, optional
        Which parameters require gradients; as they did before if not given.

    Returns
    -------
    Adaptation
        A context, whose end undoes everything but what an optimizer has changed, which its
        `restore` undoes; ``print`` tells what was done.

    Raises
    ------
    ValueError
        `prior` is negative; the model has no layer with running statistics, or one of PyTorch's;
        `train` is something else. Nothing was changed then.
    TypeError
        `model` is no module, or `prior` no number.
    RuntimeError
        The model is being adapted already.

    Notes
    -----
    Gradients go through the statistics of the batch for prior 0; blended ones are constants.

    Examples
    --------
    >>> with bnext.torch.adapt(model, prior=16) as adaptation:         # doctest: +SKIP
    ...     print(adaptation)
    ...     y = model(x)
    """
    return Adaptation(model, prior, train)
