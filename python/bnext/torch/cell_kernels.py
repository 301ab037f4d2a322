"""Tensors to the kernels of group and instance normalization and back; no autograd.

As in `bnext.torch.kernels`: plain tensors go as they are, others go again, prepared, and results
are in the memory format of `x`, on the CPU memory of bnext's pool, on a GPU of PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnext import _core
from bnext.arrays import DeviceSaved, engine_of
from bnext.torch.epilogues import Epilogue
from bnext.torch.formats import formatted
from bnext.torch.kernels import (
    KernelRefusal,
    _detached,
    _settled,
    calls_on,
    widened,
    work_together,
)

__all__ = ["backward", "backward_by_rows", "forward", "restored", "rows_of"]


def forward(
    x: Tensor, num_groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float,
    epilogue: Epilogue | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Normalize each example by its groups, or without a number of them by its channels.

    What follows is in the epilogue: its residual has the shape and the dtype of x.
    """
    engine = calls_on(x) if x.is_cuda else _core
    try:
        result: tuple[Tensor, Any] = engine.cell_forward(
            x=x, num_groups=num_groups, weight=weight, bias=bias, eps=eps, channel_axis=1, out=None,
            plain=True, epilogue=epilogue,
        )  # fmt: skip
        return result
    except (TypeError, ValueError):
        if not work_together(x, weight, bias):
            raise KernelRefusal from None
    try:
        y, saved = engine_of(x).cell_forward(
            x=_detached(x), num_groups=num_groups, weight=_detached(widened(x, weight)),
            bias=_detached(widened(x, bias)), eps=eps, channel_axis=1, out=None,
            epilogue=_detached_epilogue(epilogue),
        )  # fmt: skip
    except (TypeError, ValueError) as refusal:  # PyTorch has the error
        raise KernelRefusal(str(refusal)) from refusal
    return formatted(y, x), saved


def _detached_epilogue(epilogue: Epilogue | None) -> Any:
    return epilogue and epilogue._replace(residual=_detached(epilogue.residual))


def backward(
    dy: Tensor, x: Tensor, saved: Any, weight: Tensor | None, residual: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Give dx, dweight and dbias by the statistics that forward left; and dresidual if it added.

    `residual` is the forward call's, where ``saved.reads_residual``.
    """
    engine = calls_on(x) if x.is_cuda else _core
    try:
        result: tuple[Tensor, ...] = engine.cell_backward(
            dy=dy, x=x, saved=saved, weight=weight, out=None, plain=True, residual=residual
        )
        return result
    except TypeError:
        dx, dweight, dbias, *dresidual = engine_of(x).cell_backward(
            dy=_detached(_settled(dy)), x=_detached(x), saved=saved,
            weight=_detached(widened(x, weight)), out=None, residual=_detached(residual),
        )  # fmt: skip
    return formatted(dx, x), dweight, dbias, *dresidual


def backward_by_rows(
    dy: Tensor, x: Tensor, weight: Tensor | None, rows: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Do `backward` by the rows of the statistics that forward left."""
    dx, dweight, dbias = backward(dy, x, restored(x, rows, eps), weight)
    return dx, dweight, dbias


def rows_of(saved: Any) -> Tensor:
    """Give the rows of statistics in `saved` as a tensor of float64, shape (5, N, G)."""
    rows: Any = saved.rows
    return rows if isinstance(saved, DeviceSaved) else torch.from_numpy(rows)


def restored(
    x: Tensor, rows: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Any:  # fmt: skip
    """Make the `saved` of a forward call from its rows of statistics.

    With an activation also from the parameters, of which its argument is made again, and from the
    residual that the epilogue has.
    """
    rows = _detached(rows)
    return engine_of(x).cell_restored(
        x=_detached(x), num_groups=rows.size(2), rows=rows.reshape(rows.size(0), -1), eps=eps,
        channel_axis=1, weight=_detached(widened(x, weight)), bias=_detached(widened(x, bias)),
        epilogue=_detached_epilogue(epilogue),
    )  # fmt: skip
