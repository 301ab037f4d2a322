"""Ghost batches: consecutive parts of a training batch that are normalized each by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bnext.ghosts import check_size, cuts_of
from bnext.torch.epilogues import Epilogue, applied

__all__ = ["Ghosts", "ghosts_of", "set_ghosts"]


@dataclass(frozen=True)
class Ghosts:
    """What a layer's calls do in place of normalizing a batch: they do it for ghosts of a size."""

    size: int

    def __call__(self, layer: Any, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        """Normalize `input`, do what follows, as ``layer._normalized`` does for a batch."""
        layer._check_input_dim(input)
        sizes = [cut.stop - cut.start for cut in self._cuts(layer, input)]
        if len(sizes) == 1:
            y: Tensor = layer._normalized(input, epilogue, special=False)
            return y
        after, residuals = epilogue, [None] * len(sizes)
        if epilogue is not None and epilogue.residual is not None:
            if epilogue.residual.shape != input.shape:  # which PyTorch broadcasts
                after = None
            else:
                residuals = list(epilogue.residual.split(sizes))
        parts = []
        for part, residual in zip(input.split(sizes), residuals, strict=True):
            then = None if after is None else after._replace(residual=residual)
            parts.append(layer._normalized(part, then, special=False))
        y = torch.cat(parts)
        return y if after is epilogue or epilogue is None else applied(y, epilogue)

    def _cuts(self, layer: Any, input: Tensor) -> list[slice]:
        examples, values = input.size(0), 1
        if not layer.training:
            return [slice(0, examples)]
        for extent in input.shape[2:]:
            values *= extent
        return cuts_of(examples, self.size, values)


def set_ghosts(layer: Any, size: Any) -> None:
    """Have a layer normalize ghosts of so many examples, or None."""
    checked = check_size(size)
    if checked is not None and not layer.takes_ghosts:
        raise ValueError(
            f"ghost_batch_size: expected None for {type(layer).__name__}, got {checked}"
        )
    ghosts, of = None if checked is None else Ghosts(checked), vars(layer)
    special = of.get("_special")
    if special is not None and not isinstance(special, Ghosts):  # they come back after it
        of["_special"] = replace(special, before=ghosts)
    elif ghosts is None:
        of.pop("_special", None)
    else:
        of["_special"] = ghosts


def ghosts_of(layer: Any) -> Ghosts | None:
    """Give the ghosts of a layer, also while it is adapted to test batches."""
    special = vars(layer).get("_special")
    ghosts: Ghosts | None = getattr(special, "before", special)
    return ghosts
