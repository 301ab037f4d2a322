"""PyTorch's tensors on the CPU in place of CUDA tensors, for calls without a GPU.

`bnext._cuda_emulated` replaces `bnext._cuda`; its device memory is the CPU's. The code between a
call from Python and the launch is the same as on a GPU, with three exceptions:

- PyTorch's allocations, which the CPU's allocator serves.
- The CUDA runtime: the current device, the memset of counters and `cudaLaunchKernelExC` are the
  emulation's. With ``kernels.run_kernels(False)`` a launch returns at once.
- The current stream, which is PyTorch's null stream.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from bnext import cuda
from bnext.arrays import pytorch
from bnext.arrays.library import Where
from bnext.torch import kernels as layer_kernels

__all__ = ["pretended_gpu"]

HERE = Where("cuda", 0)


@contextmanager
def pretended_gpu(kernels):
    """Let all of PyTorch's tensors be on GPU 0, with the kernels of the module `kernels`."""
    with ExitStack() as stack:
        patch = mock.patch.object
        stack.enter_context(patch(cuda, "_load", lambda: kernels))
        stack.enter_context(patch(pytorch.Torch, "where", lambda self, array: HERE))
        stack.enter_context(patch(pytorch.Torch, "stream", lambda self, view, index: 0))
        stack.enter_context(patch(layer_kernels, "_FOUND", [True]))
        stack.enter_context(patch(layer_kernels, "_THERE", {}))
        stack.enter_context(patch(torch.Tensor, "is_cuda", True))
        yield
