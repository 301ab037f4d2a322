"""`torch.nn.SyncBatchNorm` over bnext's groups: processes with gloo, NCCL or MPI, and threads."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.function import once_differentiable

from bnext import spine
from bnext.groups.group import Group, announcing
from bnext.groups.torch_distributed import TorchDistributedGroup
from bnext.torch import kernels
from bnext.torch.context import (
    in_a_range,
    is_compiling,
    is_exported,
    is_in_a_graph,
    is_recomputed,
    is_traced_by_dynamo,
)
from bnext.torch.epilogues import Epilogue, applied
from bnext.torch.formats import formatted
from bnext.torch.functional import weight_of_batch
from bnext.torch.masked import masked_batch_norm
from bnext.torch.modules import Forward
from bnext.torch.roads import GROUP, fits_kernels, road_of_shard
from bnext.torch.skipping import guarded

__all__ = ["SyncBatchNorm", "check_group", "group_of"]

THEIRS: Any = torch.nn.SyncBatchNorm
_NO_GRAPH = (
    "input: expected a call of its own, since the members of a group wait for each other, got one "
    "that becomes part of a graph: trace the model in evaluation mode, or after bnext.torch.revert"
)


class SyncBatchNorm(Forward):
    """`torch.nn.SyncBatchNorm`, also on the CPU, and in groups of bnext's.

    In training every member normalizes its shard by the statistics of the whole batch, and its
    backward pass goes through these. Shards may be of any size, also empty. Gradients of parameters
    are the shard's, as the averaging of gradients (`DistributedDataParallel`) expects them. Where a
    member fails or is missing, the others get a `bnext.sync.GroupError` instead of waiting for
    ever.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in PyTorch's layer, and in its order.
    activation, negative_slope, recompute, skip_nonfinite
        As in `BatchNorm1d`.
    process_group : torch.distributed.ProcessGroup or bnext.sync.Group, optional
        The group of the members that hold the shards; PyTorch's default group if not given. Without
        torch.distributed, or in a group of one process, the layer normalizes by itself.

    Notes
    -----
    It is no subclass of `torch.nn.SyncBatchNorm`, only of the base class of that layer: on the CPU
    `DistributedDataParallel` refuses all models that have an instance of PyTorch's layer. State
    dicts are the same.

    Threads of a `bnext.sync.ThreadGroup` may share the layer, or have a replica each. PyTorch's
    autograd runs the backward pass of a CPU in the thread that asked for it, which is then the
    member.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        recompute: bool = False,
        skip_nonfinite: bool = False,
        **more: Any,
    ) -> None:
        check_group(process_group, "process_group")
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, negative_slope=negative_slope, recompute=recompute,
            skip_nonfinite=skip_nonfinite, **more,
        )  # fmt: skip
        self.process_group = process_group

    takes_ghosts = False

    def _normalized(
        self, input: Tensor, epilogue: Epilogue | None, special: bool | None = None,
        over: bool = False,
    ) -> Tensor:  # fmt: skip
        if self.ghost_batch_size is not None:  # of a layer that `convert` has made synchronized
            raise ValueError(
                "ghost_batch_size: expected None for a synchronized layer, got "
                f"{self.ghost_batch_size}"
            )
        if not isinstance(input, Tensor):
            return super()._normalized(input, epilogue, special, over)
        if not (self.training and has_others(self.process_group)):
            self._check_input(input)
            return super()._normalized(input, epilogue, special, over)
        if is_compiling():  # a wait for others is no part of a graph
            if not is_exported():
                return torch._dynamo.disable(SyncBatchNorm._in_group)(self, input, epilogue)
            if is_traced_by_dynamo():
                raise TypeError(_NO_GRAPH)
        if profiler._is_profiler_enabled:
            return in_a_range("batch_norm", self._in_group, input, epilogue)
        return self._in_group(input, epilogue)

    def _announcing(self) -> Any:
        if self.training and has_others(self.process_group):
            return announcing(group_of(self.process_group))
        return super()._announcing()

    def _weighted(self, input: Tensor, weighting: Any, epilogue: Epilogue) -> Tensor:
        if not (self.training and has_others(self.process_group)):
            return super()._weighted(input, weighting, epilogue)
        group = group_of(self.process_group)
        part = group.part(self)
        y, saved = masked_batch_norm(
            input, (None,) * 4, self.weight, self.bias, True, self.eps, weighting, epilogue, part
        )
        self._move(saved, group)
        return y

    def _in_group(self, input: Tensor, epilogue: Epilogue | None) -> Tensor:
        if epilogue is not None and not (
            fits_kernels(input, epilogue.residual)
            and input.device.type == "cpu"
            and road_of_shard(input) is GROUP
        ):
            return applied(self._in_group(input, None), epilogue)
        group = group_of(self.process_group)
        with announcing(group):
            self._check_input(input)
            if is_in_a_graph():
                raise TypeError(_NO_GRAPH)
            if road_of_shard(input) is not GROUP:
                if self.skip_nonfinite:
                    raise ValueError(
                        "skip_nonfinite: expected False where bnext has no kernels for the input, "
                        f"got True for {input.dtype} on {input.device}"
                    )
                if group is not self.process_group:  # which PyTorch's layer knows as well
                    return THEIRS.forward(self, input)
                raise TypeError(
                    "input: expected a dense float32, float64, float16 or bfloat16 tensor where "
                    f"bnext has kernels, got {input.layout}, {input.dtype} on {input.device}"
                )
        weight, bias = kernels.widened(input, self.weight), kernels.widened(input, self.bias)
        if torch.is_grad_enabled():
            residual = None if epilogue is None else epilogue.residual
            y: Tensor = _InGroup.apply(input, weight, bias, residual, self, group, epilogue)
            return y
        return self._shard(input, weight, bias, group, epilogue)[0]

    def _shard(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, group: Group,
        epilogue: Epilogue | None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """Normalize a shard by the statistics of the whole batch, which move the running ones."""
        part = group.part(self)
        y, saved = spine.forward(x, weight, bias, self.eps, 1, None, part=part, epilogue=epilogue)
        self._move(saved, group)
        return formatted(y, x), saved

    def _move(self, saved: Any, group: Group) -> None:
        """Move the running statistics by the whole batch, once for all members that share them."""
        if not self.track_running_stats or is_recomputed():
            return
        counter = self.num_batches_tracked
        momentum = weight_of_batch(counter) if self.momentum is None else self.momentum
        running = (self.running_mean, self.running_var, momentum, counter)
        move: Any = functools.partial(kernels.move_running, saved.local, running)
        if self.skip_nonfinite:
            call = functools.partial(_move, saved.local, momentum)
            buffers = self.running_mean, self.running_var, counter, self.num_batches_skipped
            move = functools.partial(guarded, call, *buffers)
        with announcing(group):
            group.once(self, saved.generation, move)

    def _check_input(self, input: Tensor) -> None:
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)

    _check_input_dim = THEIRS._check_input_dim
    _check_non_zero_input_channels = THEIRS._check_non_zero_input_channels

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: Any = None
    ) -> torch.nn.Module:
        """Do what PyTorch's layer does under this name, with layers of this class.

        `bnext.torch.convert` does it without making new modules.

        Parameters
        ----------
        module : torch.nn.Module
            A model, or a single layer.
        process_group : torch.distributed.ProcessGroup or bnext.sync.Group, optional
            The group of the members that hold the shards; PyTorch's default group if not given.

        Returns
        -------
        torch.nn.Module
            `module` with new layers in it; a new layer, if it is one itself.
        """
        converted: torch.nn.Module = THEIRS.convert_sync_batchnorm(module, process_group)
        layer: Any
        for layer in converted.modules():
            if type(layer) is THEIRS:
                layer.__class__ = cls
        return converted


def _move(saved: Any, momentum: Any, mean: Tensor, var: Tensor, counter: Tensor) -> None:
    kernels.move_running(saved, (mean, var, momentum, counter))


class _InGroup(torch.autograd.Function):
    """y of a shard, weight and bias by the statistics of the whole batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
        layer: SyncBatchNorm, group: Group, epilogue: Epilogue | None,
    ) -> Tensor:  # fmt: skip
        if epilogue is not None:
            epilogue = epilogue._replace(residual=residual)
        y, ctx.saved = layer._shard(x, weight, bias, group, epilogue)
        # The backward pass is a function of the bias where z follows from it.
        of_z = None if ctx.saved.activation is None else bias
        ctx.save_for_backward(x, weight, of_z, residual if ctx.saved.reads_residual else None)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual = ctx.saved_tensors
        # All gradients, whichever are wanted here: the other members wait for this one.
        every: Any
        if torch.is_grad_enabled():
            every = _GradientsInGroup.apply(ctx.saved, dy, x, weight, bias, residual)
        else:
            every = spine.backward(dy, x, ctx.saved, weight, None, residual=residual)
        wanted = zip(every, ctx.needs_input_grad, strict=False)
        found = [gradient if wants else None for gradient, wants in wanted]
        return *found, *(None,) * (7 - len(found))


class _GradientsInGroup(torch.autograd.Function):
    """The backward pass of a shard, for gradients of gradients; these have none in turn."""

    @staticmethod
    def forward(
        ctx: Any, saved: Any, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.saved = saved
        ctx.save_for_backward(dy, x, weight, bias, residual)
        dy = dy.detach()
        weight, residual = (None if each is None else each.detach() for each in (weight, residual))
        every: tuple[Tensor, ...] = spine.backward(
            dy, x.detach(), saved, weight, None, residual=residual
        )
        # Without an activation the residual's gradient is dy itself.
        return tuple(each.view_as(each) if each is dy else each for each in every)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        with announcing(ctx.saved.group):
            found = kernels.double_backward_of_shard(
                ctx.saved, ctx.saved_tensors, gradients, ctx.needs_input_grad[1:]
            )
        return None, *found


# One for each process group, since layers are told apart by the order of their calls in it. Neither
# keeps a process group alive that was destroyed, with its sockets and threads.
_GROUPS: weakref.WeakKeyDictionary[Any, TorchDistributedGroup] = weakref.WeakKeyDictionary()


def check_group(group: Any, name: str) -> None:
    """TypeError unless it is a group of bnext's, a process group of PyTorch's, or None."""
    if group is None or isinstance(group, Group):
        return
    if dist.is_available() and (
        isinstance(group, dist.ProcessGroup) or group == dist.GroupMember.NON_GROUP_MEMBER
    ):
        return
    raise TypeError(
        f"{name}: expected a bnext.sync group or a torch.distributed.ProcessGroup, got "
        f"{type(group).__name__}"
    )


def has_others(group: Any) -> bool:
    """Whether a group of either kind has other members (None: PyTorch's default group)."""
    if isinstance(group, Group):
        return True
    # The size is -1 where this process is no member.
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def group_of(group: Any) -> Group:
    """Find the group of bnext's that is a process group, or is it already."""
    if isinstance(group, Group):
        return group
    group = dist.group.WORLD if group is None else group
    made = _GROUPS.get(group)
    if made is None or made.closed:
        for known in [known for known in _GROUPS if _is_destroyed(known)]:
            del _GROUPS[known]
        made = _GROUPS[group] = TorchDistributedGroup(group)
    return made


def _is_destroyed(group: Any) -> bool:
    try:
        dist.get_rank(group)
    except (RuntimeError, ValueError):
        return True
    return False
