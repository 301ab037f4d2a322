"""Batches that are not finite, which leave the running statistics of a layer alone.

A call moves copies of the running statistics. They take the place of the layer's if all of them are
finite; otherwise the batch is counted as skipped. The decision is made of a few operations on
tensors of shape (C,), without a look at their values, so that it can be compiled and a GPU is not
waited for. In a group the copies move by the statistics of the whole batch: members decide alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["SKIPPED", "guarded", "set_skipping"]

SKIPPED = "num_batches_skipped"

Result = TypeVar("Result")


def guarded(
    call: Callable[[Tensor, Tensor, Tensor], Result], running_mean: Tensor, running_var: Tensor,
    counter: Tensor, skipped: Tensor,
) -> Result:  # fmt: skip
    """Give the result of `call`, which moves running statistics and a counter that it is given.

    Parameters
    ----------
    call : callable
        Called with copies of `running_mean`, `running_var` and `counter`.
    running_mean, running_var, counter : Tensor
        The layer's. They become the copies, if these are finite.
    skipped : Tensor
        Counts the batch otherwise.

    Returns
    -------
    object
        What `call` returned.
    """
    mean, var, seen = running_mean.clone(), running_var.clone(), counter.clone()
    result = call(mean, var, seen)
    with torch.no_grad():
        moves = mean.isfinite().all() & var.isfinite().all()
        batches = seen - counter  # 0 where autograd repeats the pass
        running_mean.copy_(torch.where(moves, mean, running_mean))
        running_var.copy_(torch.where(moves, var, running_var))
        counter.add_(batches * moves)
        skipped.add_(batches * ~moves)
    return result


def set_skipping(layer: Any, on: bool) -> None:
    """Give a layer a counter for batches that are skipped, or take it away."""
    if on is (SKIPPED in layer._buffers):
        return
    if not on:
        del layer._buffers[SKIPPED]
        layer._non_persistent_buffers_set.discard(SKIPPED)
        return
    counter = layer._buffers.get("num_batches_tracked")
    if counter is None:
        raise ValueError(
            "skip_nonfinite: expected False for a layer without running statistics, got True"
        )
    # As register_buffer does, which refuses the name of a property. No state dict has it.
    layer._buffers[SKIPPED] = torch.zeros_like(counter)
    layer._non_persistent_buffers_set.add(SKIPPED)
