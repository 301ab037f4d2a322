"""`torch.nn.SyncBatchNorm` over bnext's groups: processes with gloo, NCCL or MPI, and threads."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnext.devices import engine_of
from bnext.sync import Group, TorchDistributedGroup
from bnext.sync.group import announcing
from bnext.sync.phases import move_once, synchronized_backward, synchronized_forward
from bnext.torch import gradients, kernels
from bnext.torch.functional import NARROW, is_recomputed, widened
from bnext.torch.modules import Forward

__all__ = ["SyncBatchNorm", "check_group", "group_of"]


class SyncBatchNorm(Forward, torch.nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm`, also on the CPU, and in groups of bnext's.

    In training every member normalizes its shard by the statistics of the whole batch, and its
    backward pass goes through these. Shards may be of any size, also empty. Gradients of parameters
    are the shard's, as the averaging of gradients (`DistributedDataParallel`) expects them. Where a
    member fails or is missing, the others get a `bnext.sync.GroupError` instead of waiting for
    ever.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup or bnext.sync.Group, optional
        The others are those of PyTorch's layer. Here:
        Who has the shards; PyTorch's default group if not given. Without torch.distributed, or in a
        group of one process, the layer normalizes by itself.

    Notes
    -----
    Threads of a `bnext.sync.ThreadGroup` may share the layer, or have a replica each. PyTorch's
    autograd runs the backward pass of a CPU in the thread that asked for it, which is then the
    member.
    """

    _moved_at: tuple[Group, int] | None = None

    @torch._dynamo.disable  # what waits for others is no part of a graph
    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input`, a shard of the batch."""
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        group = group_of(self.process_group) if self.training else None
        if group is None or not kernels.takes(input):
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if input.dtype in NARROW:  # kernels compute with float32 parameters
            weight, bias = widened(weight), widened(bias)
        call = _Call(group, self, self.eps)
        if gradients.records(input, weight, bias):
            y: Tensor = _InGroup.apply(input, weight, bias, call)
        else:
            y = call.forward(input, weight, bias)
        if self.track_running_stats and not is_recomputed():
            momentum = self._weight_of_batch(self.num_batches_tracked)
            with announcing(group):
                move_once(self, group, call.generation, lambda: self._move(call, momentum))
        return y

    def _move(self, call: _Call, momentum: float) -> None:
        mean, var = self.running_mean, self.running_var
        if mean is not None and var is not None:
            call.move(mean, var, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def __getstate__(self) -> dict[str, Any]:
        """All but what a call has left."""
        return {name: value for name, value in vars(self).items() if name != "_moved_at"}


class _Call:
    """One call of a layer in a group, and what it left."""

    def __init__(self, group: Group, layer: SyncBatchNorm, eps: float) -> None:
        self.group = group
        self.layer = layer
        self.eps = eps
        self.saved: Any = None

    @property
    def generation(self) -> int:
        """Number of the exchange."""
        return int(self.saved.generation)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Normalize a shard."""
        given: Any = (None if t is None else t.detach() for t in (x, weight, bias))
        x, weight, bias = given
        result: Any = synchronized_forward(
            x, weight, bias, self.eps, 1, None, self.group, self.layer
        )
        y, self.saved = result
        return y

    def move(self, mean: Tensor, var: Tensor, momentum: float) -> None:
        """Move running statistics by those of the batch."""
        wide = [buffer if buffer.dtype not in NARROW else buffer.float() for buffer in (mean, var)]
        engine_of(wide[0]).move_running(self.saved.local, *wide, momentum, None)
        for buffer, value in zip((mean, var), wide, strict=True):
            if value is not buffer:
                buffer.copy_(value)
            elif not buffer.is_inference():
                torch.autograd.graph.increment_version(buffer)


class _InGroup(torch.autograd.Function):
    """y of a shard, weight and bias by the statistics of the whole batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, call: _Call
    ) -> Tensor:
        y = call.forward(x, weight, bias)
        ctx.save_for_backward(x, weight)
        ctx.saved = call.saved
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight = None if weight is None else weight.detach()
        # All of it, whatever is wanted here: others wait for this member.
        given: Any = (dy.detach(), x.detach(), ctx.saved, weight, None)
        every: Any = synchronized_backward(*given)
        wanted = zip(every, ctx.needs_input_grad, strict=False)
        return *(gradient if wants else None for gradient, wants in wanted), None


_GROUPS: weakref.WeakKeyDictionary[Any, TorchDistributedGroup] = weakref.WeakKeyDictionary()


def check_group(group: Any, name: str) -> None:
    """TypeError unless it is a group of bnext's, a process group of PyTorch's, or None."""
    if group is None or isinstance(group, Group):
        return
    if dist.is_available() and isinstance(group, dist.ProcessGroup):
        return
    raise TypeError(
        f"{name}: expected a bnext.sync group or a torch.distributed.ProcessGroup, got "
        f"{type(group).__name__}"
    )


def group_of(group: Any) -> Group | None:
    """Find who is to be waited for; None if there is nobody."""
    if isinstance(group, Group):
        return group
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if group is None else group
    if dist.get_world_size(group) == 1:
        return None
    made = _GROUPS.get(group)
    if made is None:
        made = _GROUPS[group] = TorchDistributedGroup(group)
    return made
