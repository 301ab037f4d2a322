"""Memory formats of results: PyTorch's operators have theirs in these."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["format_of", "formatted"]


def formatted(result: Tensor, x: Tensor) -> Tensor:
    """Give the result of kernels, which is ordered as x is, the format that PyTorch's would have.

    They are the same, but for the strides of axes of one element, and for an x of which neither
    the planes nor the channels follow each other: a transposed one, say.
    """
    strides = result.stride()
    if strides == x.stride() and x.is_contiguous():
        return result
    expected = torch.empty_like(x, device="meta", memory_format=format_of(x)).stride()
    if strides == expected:
        return result
    if all(a == b or n == 1 for a, b, n in zip(strides, expected, x.shape, strict=True)):
        return result.as_strided(x.shape, expected)
    return torch.empty_strided(x.shape, expected, dtype=x.dtype, device=x.device).copy_(result)


def format_of(x: Tensor) -> torch.memory_format:
    """Name the format in which PyTorch's operator has its result.

    It is that in which x is dense. Otherwise strides decide by themselves: channels, then the axes
    from the last to the first; as c10's MemoryFormat.h has it.
    """
    if x.dim() not in (4, 5) or x.stride(1) == 0:
        return torch.contiguous_format
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    least = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        stride, extent = x.stride(axis), x.size(axis)
        if extent == 0 or stride < least or (axis == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = stride * extent
    return last
