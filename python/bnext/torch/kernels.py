"""Tensors to kernels and back: no autograd here, and no checks but the kernels' own.

On the CPU results are memory of bnext's pool, which tensors take over: fresh pages would cost more
than the kernels do. On a GPU they are PyTorch's, on its current stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnext import _core
from bnext.devices import DeviceSaved, engine_of

__all__ = [
    "Running", "backward", "backward_constant", "backward_of_parameters", "forward", "inference",
    "rows_of", "saved_of", "takes",
]  # fmt: skip

# Of which NumPy has the dtype, so that a tensor and an array are made of each other in no time.
OF_NUMPY = (torch.float32, torch.float64, torch.float16)
DATA = (*OF_NUMPY, torch.bfloat16)


class Running(NamedTuple):
    """Running statistics that a call moves, and by how much."""

    mean: Tensor
    var: Tensor
    momentum: float


def takes(x: Tensor) -> bool:
    """Whether there are kernels for a tensor of this dtype and place."""
    if x.dtype not in DATA or x.layout is not torch.strided:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and _has_cuda())


def _has_cuda() -> bool:
    from bnext import cuda

    return cuda.is_available()


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None, eps: float
) -> tuple[Tensor, Any]:
    """Normalize by the batch: y, and what backward needs besides x and weight."""
    mean, var, momentum = (None, None, None) if running is None else running
    if x.dtype in OF_NUMPY and not x.is_cuda:
        y, saved = _core.forward(
            _array(x), _array(weight), _array(bias), _array(mean), _array(var), momentum, None, eps,
            1, None,
        )  # fmt: skip
        return torch.from_numpy(y), saved
    result: tuple[Tensor, Any] = engine_of(x).forward(
        _plain(x), _plain(weight), _plain(bias), mean, var, momentum, None, eps, 1, None
    )
    return result


def inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Any]:
    """Normalize by running statistics; otherwise as `forward`."""
    if x.dtype in OF_NUMPY and not x.is_cuda:
        y, saved = _core.normalize_by_running(
            _array(x), _array(mean), _array(var), _array(weight), _array(bias), eps, 1, None
        )
        return torch.from_numpy(y), saved
    result: tuple[Tensor, Any] = engine_of(x).normalize_by_running(
        _plain(x), _plain(mean), _plain(var), _plain(weight), _plain(bias), eps, 1, None
    )
    return result


def backward(
    dy: Tensor, x: Tensor, saved: Any, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias."""
    if x.dtype in OF_NUMPY and not x.is_cuda:
        dx, dweight, dbias = _core.backward(_array(dy), _array(x), saved, _array(weight), None)
        return torch.from_numpy(dx), torch.from_numpy(dweight), torch.from_numpy(dbias)
    result: tuple[Tensor, Tensor, Tensor] = engine_of(x).backward(
        _plain(dy), _plain(x), saved, _plain(weight), None
    )
    return result


def backward_of_parameters(dy: Tensor, x: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Give dweight and dbias alone, where nobody wants dx."""
    if x.is_cuda:  # its sums would come to the host in between
        return backward(dy, x, saved, None)[1:]
    if x.dtype in OF_NUMPY:
        sums = _core.backward_reduce(_array(dy), _array(x), saved)
    else:
        sums = engine_of(x).backward_reduce(_plain(dy), _plain(x), saved)
    dweight, dbias = _core.parameter_gradients(saved, None, *sums)
    return torch.from_numpy(dweight), torch.from_numpy(dbias)


def rows_of(saved: Any) -> Tensor:
    """Give what the kernels left as a tensor of float64, shape (4, C); see `saved_of`."""
    rows = (saved.mean, saved.m2, saved.var, saved.rstd)
    if isinstance(saved, DeviceSaved):
        return torch.stack(rows)
    return torch.from_numpy(np.stack(rows))


def saved_of(x: Tensor, rows: Tensor, eps: float) -> Any:
    """Make what the kernels left from `rows_of` it."""
    if x.is_cuda:
        return engine_of(x).restored(_plain(x), _plain(rows), eps, 1)
    if x.dtype in OF_NUMPY:
        return _core.restored(_array(x), _array(rows), eps, 1)
    return engine_of(x).restored(_plain(x), _array(rows), eps, 1)


def backward_constant(dy: Tensor, saved: Any, weight: Tensor | None) -> Tensor:
    """Give dx where the statistics are constants, which takes no x."""
    if dy.dtype in OF_NUMPY and not dy.is_cuda:
        return torch.from_numpy(_core.backward_constant(_array(dy), saved, _array(weight), None))
    dx: Tensor = engine_of(dy, "dy").backward_constant(_plain(dy), saved, _plain(weight), None)
    return dx


def _array(tensor: Tensor | None) -> Any:
    # force: whatever autograd and lazy conjugation have to say; the memory is the tensor's own.
    return None if tensor is None else tensor.numpy(force=True)


def _plain(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach()
