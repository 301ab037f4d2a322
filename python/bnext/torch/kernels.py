"""Tensors to kernels and back: no autograd here, and few checks but the kernels' own.

Both passes come through `bnext.spine`. Plain tensors (dense, of the dtypes that kernels compute
with) go as they are: the kernels read them by DLPack's table of C functions. Others, and all where
PyTorch has no table, go again, prepared: widened to the dtype that kernels take beside 16 bits, or
without what autograd has to say of them.

On the CPU results are memory of bnext's pool, which tensors take over: with PyTorch's allocator,
whose memory is mapped anew for each large tensor, forward and backward of a layer took 1.8 to 3
times as long from 1 MB on, and below 64 KiB, where the pool has no part, the same. A ResNet-18 step
took the same with either. Evaluation that autograd does not record has PyTorch's memory, which the
layers before have just given back and which its profiler counts: a whole pass of ResNet-18,
MobileNetV2, DenseNet-121 and an MLP took 1 to 5 % less in seven of nine runs, up to 2.5 % more in
two, on a machine in use (2 cores of an Intel Xeon, Sapphire Rapids class; 2026-11-28).

On a GPU results are PyTorch's, on its current stream. On either device they are in the memory
format in which PyTorch's operators have theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnext import _core, cuda, spine
from bnext.arrays import DeviceSaved, engine_of
from bnext.groups.group import ALONE
from bnext.rows import unbound
from bnext.torch.epilogues import Epilogue
from bnext.torch.formats import formatted

__all__ = [
    "KernelRefusal", "RunningTensors", "activated_backward_by_rows", "backward", "backward_by_rows",
    "backward_of_parameters", "calls_on", "double_backward", "double_backward_of_shard",
    "evaluate_layer", "forward", "fuses",
    "has_memory",
    "move_running", "normalize_together", "rows_of", "saved_beside", "saved_of", "slope_by_flags",
    "statistics", "takes", "widened", "work_together",
]  # fmt: skip

DATA = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NARROW = (torch.float16, torch.bfloat16)

RunningTensors = tuple[
    Tensor | None, Tensor | None, Any, Any
]  # mean, var, weight of a batch, counter
Gradients = tuple[Any, ...]  # dx, dweight, dbias; and dresidual after a residual


class KernelRefusal(Exception):  # noqa: N818
    """The kernels do not take the tensors of a call. Nothing was changed."""


def calls_on(x: Tensor) -> Any:
    """Give the calls for a tensor on a GPU; KernelRefusal without kernels."""
    device = x.get_device()
    if device not in _THERE:
        if not _has_cuda():
            raise KernelRefusal
        _THERE[device] = engine_of(x)
    return _THERE[device]


_THERE: dict[int, Any] = {}


# --- tensors that kernels take --------------------------------------------------------------------


def takes(x: Tensor) -> bool:
    """Whether there are kernels for a tensor of this dtype and place."""
    if x.dtype not in DATA or x.layout is not torch.strided or x.is_nested:
        return False
    return x.device.type == "cpu" or (x.device.type == "cuda" and _has_cuda())


def _has_cuda() -> bool:
    if not _FOUND:  # asked for once: where there is none, to look costs more than a small call
        _FOUND.append(cuda.is_available())
    return _FOUND[0]


_FOUND: list[bool] = []
# As torch.compiler.assume_constant_result has it, which would import all of the compiler.
_has_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


def work_together(x: Tensor, *others: Tensor | None) -> bool:
    """Whether kernels take x, which has values, and beside it parameters and statistics like these.

    They have the dtype of x, or beside 16 bits also float32, and lie on its device.
    """
    given = [tensor for tensor in others if tensor is not None]
    dtypes = {tensor.dtype for tensor in given}
    beside = [{x.dtype}, {torch.float32}] if x.dtype in NARROW else [{x.dtype}]
    return (
        takes(x)
        and x.numel() > 0
        and (not dtypes or dtypes in beside)
        and all(tensor.device == x.device for tensor in given)
    )


def normalize_together(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None
) -> bool:
    """Whether kernels take x with these parameters and statistics.

    They are of one dtype, or as in a sharded model: parameters of 16 bits, and float32 statistics.
    """
    if work_together(x, weight, bias, mean, var):
        return True
    apart = work_together(x, weight, bias) and work_together(x, mean, var)
    return apart and all(each is None or each.dtype == torch.float32 for each in (mean, var))


def widened(x: Tensor, tensor: Tensor | None) -> Any:
    """Cast to the dtype that kernels take beside x: float32 beside 16 bits."""
    return tensor if tensor is None or x.dtype not in NARROW else tensor.float()


# --- calls ----------------------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    given: RunningTensors | None = None, moved: RunningTensors | None = None, keeps: bool = True,
    epilogue: Epilogue | None = None,
) -> tuple[Tensor, Any]:  # fmt: skip
    """Normalize by `given`, or by the batch, which moves `moved`: y, and what backward needs.

    `keeps` is False where no backward pass follows, which takes the second result. `epilogue` is
    what follows normalization.
    """
    engine = calls_on(x) if x.is_cuda else _core
    try:
        result: tuple[Tensor, Any] = spine.forward(
            x, weight, bias, eps, 1, None, given, moved, ALONE, epilogue, engine, None, True, keeps
        )
    except (TypeError, ValueError):
        return _forward_of_others(x, weight, bias, eps, given, moved, keeps, epilogue)
    return result


# (layer, x, epilogue, over): `forward` by a layer's running statistics, for no backward pass; with
# `over` the result is written over x, and x is returned. None where a layer in evaluation has no
# such statistics, and for tensors that are not plain ones on the CPU.
evaluate_layer: Any = _core.evaluate_layer


def _forward_of_others(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, given: RunningTensors | None,
    moved: RunningTensors | None, keeps: bool, epilogue: Epilogue | None,
) -> tuple[Tensor, Any]:  # fmt: skip
    mean, var, momentum, _ = given or moved or (None,) * 4
    tensors = (weight, bias, mean, var)
    if not normalize_together(x, *tensors) or (given and (mean is None or var is None)):
        raise KernelRefusal
    wide = [widened(x, tensor) for tensor in tensors]
    if any(before is not after for before, after in zip(tensors, wide, strict=True)):
        taken = (*wide[2:], momentum, None)
        result = forward(
            x, wide[0], wide[1], eps, given and taken, moved and taken, keeps, epilogue
        )
    else:
        try:
            data, *vectors = map(_detached, (x, *tensors))
            taken = (*vectors[2:], momentum, None)
            if epilogue is not None:
                epilogue = epilogue._replace(residual=_detached(epilogue.residual))
            y, saved = spine.forward(
                data, vectors[0], vectors[1], eps, 1, None, given and taken, moved and taken,
                epilogue=epilogue, engine=engine_of(x), keeps=keeps,
            )  # fmt: skip
        except (TypeError, ValueError) as refusal:
            raise KernelRefusal(str(refusal)) from refusal
        result = formatted(y, x), saved
    if moved is not None:
        _bring_back(moved, wide[2:])
    return result


def fuses(x: Tensor) -> bool:
    """Whether `statistics` has the first phase alone for a tensor in this place."""
    return x.device.type == "cpu" and x.numel() > 0


def statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Give the rows of `rows_of`; and unit, center, scale and shift as rows, shape (4, C).

    ``y = (x * unit - center) * scale + shift``, in their dtype, equals the y of `forward`.
    """
    try:
        return _core.statistics(x=x, weight=weight, bias=bias, eps=eps, channel_axis=1, plain=True)
    except TypeError:
        return _core.statistics(
            x=_settled(x.detach()), weight=_detached(weight), bias=_detached(bias), eps=eps,
            channel_axis=1,
        )  # fmt: skip


def backward(
    dy: Tensor, x: Tensor | None, saved: Any, weight: Tensor | None, residual: Tensor | None = None
) -> Gradients:
    """Give dx, dweight and dbias by the statistics that forward left; dresidual, if it had one.

    Without `x` the statistics are constants, and gradients of parameters None. `residual` is the
    forward call's, where ``saved.reads_residual``.
    """
    engine = calls_on(dy) if dy.is_cuda else _core
    try:
        result: Gradients = spine.backward(
            dy, x, saved, weight, None, "local", residual, engine, True
        )
    except TypeError:
        like = dy if x is None else x
        wide = widened(like, weight)
        if wide is not weight:
            return backward(dy, x, saved, wide, residual)
        dx, dweight, dbias, *dresidual = spine.backward(
            _detached(_settled(dy)), _detached(x), saved, _detached(weight), None,
            residual=_detached(residual), engine=engine_of(like),
        )  # fmt: skip
        result = formatted(dx, like), dweight, dbias, *(formatted(each, like) for each in dresidual)
    return result


def double_backward(
    saved: Any, inputs: Sequence[Any], gradients: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Any, ...] | None:
    """Give the gradients of `backward` by its inputs, from gradients of its results.

    `inputs` are dy, x, weight, and perhaps bias and residual, and `wanted` has a truth for each;
    `gradients` are by dx, dweight, dbias, and perhaps dresidual. None where kernels do not take
    these, and on the CPU after hooks that have changed x; the caller has formulas.
    """
    x = inputs[1]
    if x is None:
        return None
    operands, bits = _twice(inputs, gradients, wanted)
    found: tuple[Any, ...]
    try:
        found = spine.double_backward(**operands, saved=saved, wanted=bits, plain=True)
    except TypeError:
        try:
            found = spine.double_backward(**_taken(operands), saved=saved, wanted=bits)
        except (TypeError, ValueError):
            return None
    except ValueError:
        return None
    return _second_gradients(found, inputs)


def double_backward_of_shard(
    saved: Any, inputs: Sequence[Any], gradients: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Any, ...]:
    """Do `double_backward` of a call in a group, at once: members wait for each other in it."""
    operands, bits = _twice(inputs, gradients, wanted)
    found = spine.double_backward(**_taken(operands), saved=saved, wanted=bits)
    return _second_gradients(found, inputs)


def _twice(
    inputs: Sequence[Any], gradients: Sequence[Any], wanted: Sequence[bool]
) -> tuple[dict[str, Any], int]:
    dy, x, weight, _, residual = (*inputs, None, None)[:5]
    ddx, ddweight, ddbias, ddresidual = (*gradients, None)[:4]
    operands = {
        "dy": dy, "x": x, "weight": weight, "residual": residual, "ddx": ddx, "ddweight": ddweight,
        "ddbias": ddbias, "ddresidual": ddresidual,
    }  # fmt: skip
    return operands, sum(1 << place for place, wants in enumerate(wanted) if wants)


def _taken(operands: dict[str, Any]) -> dict[str, Any]:
    """Give tensors with memory, without what autograd has to say, in the dtypes of kernels."""
    taken: dict[str, Any] = {
        name: None if each is None else _detached(_settled(each)) for name, each in operands.items()
    }
    for name in ("weight", "ddweight", "ddbias"):
        taken[name] = widened(taken["x"], taken[name])
    return taken


def _second_gradients(found: tuple[Any, ...], inputs: Sequence[Any]) -> tuple[Any, ...]:
    x = inputs[1]
    return tuple(
        each if each is None or place in (2, 3) else formatted(each, x)
        for place, each in enumerate(found[: len(inputs)])
    )


def backward_by_rows(
    dy: Tensor, x: Tensor, weight: Tensor | None, rows: Tensor, eps: float
) -> Gradients:
    """Do `backward` by the rows of the statistics that forward left."""
    return backward(dy, x, saved_of(x, rows, eps), weight)


def activated_backward_by_rows(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Tensor, eps: float,
    activation: str, negative_slope: float,
) -> Gradients:  # fmt: skip
    """Do `backward` of an activation after normalization, without a residual, by such rows."""
    epilogue = Epilogue(None, activation, negative_slope)
    return backward(dy, x, saved_of(x, rows, eps, weight, bias, epilogue), weight)


def backward_of_parameters(dy: Tensor, x: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Give dweight and dbias alone, where dx is not wanted."""
    if x.is_cuda:  # its sums would come to the host in between
        return backward(dy, x, saved, None)[1:]
    try:
        return _core.backward_of_parameters(dy=dy, x=x, saved=saved, plain=True)
    except TypeError:
        return _core.backward_of_parameters(dy=_detached(_settled(dy)), x=_detached(x), saved=saved)


def move_running(saved: Any, running: RunningTensors) -> None:
    """Move running statistics by the statistics of a batch, and count it."""
    mean, var, momentum, _ = running
    wide = [mean, var]
    if mean is not None and var is not None:
        wide = [widened(buffer, buffer) for buffer in (mean, var)]
        engine_of(mean).move_running(
            saved=saved, running_mean=wide[0], running_var=wide[1], momentum=momentum,
            num_batches_tracked=None,
        )  # fmt: skip
    _bring_back(running, wide)


def _bring_back(running: RunningTensors, wide: list[Any]) -> None:
    """Copy running statistics from the tensors that kernels wrote, and count the batch."""
    *buffers, _, counter = running
    for buffer, written in zip(buffers, wide, strict=True):
        if buffer is not None and written is not buffer:
            buffer.copy_(written)
    if counter is not None:
        counter.add_(1)


# --- statistics that forward leaves ---------------------------------------------------------------


def rows_of(saved: Any) -> Tensor:
    """Give the rows of statistics in `saved` as a tensor of float64, shape (5, C)."""
    rows: Any = saved.rows
    return rows if isinstance(saved, DeviceSaved) else torch.from_numpy(rows)


def saved_of(
    x: Tensor, rows: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None,
    epilogue: Epilogue | None = None,
) -> Any:  # fmt: skip
    """Make the `saved` of a forward call from its rows of statistics.

    The parameters are those that the argument of an activation follows from.
    """
    if not x.is_cuda:
        try:
            return _core.restored(
                x=x, rows=rows, eps=eps, channel_axis=1, weight=weight, bias=bias,
                epilogue=epilogue, plain=True,
            )  # fmt: skip
        except TypeError:
            pass
    return engine_of(x).restored(
        x=_detached(x), rows=_detached(rows), eps=eps, channel_axis=1, weight=_detached(weight),
        bias=_detached(bias), epilogue=epilogue,
    )  # fmt: skip


def slope_by_flags(x: Tensor, saved: Any) -> Tensor:
    """Give act'(z) where a forward pass has left flags and z is not known: the gradient of ones."""
    with torch.no_grad():
        x = x.detach()
        ones = torch.ones_like(x)
        try:
            return backward(ones, x, saved, None)[3]
        except ValueError:  # hooks gave back another x
            state = list(saved.__getstate__())
            state[_FINGERPRINT] = saved_of(x, rows_of(saved), saved.eps).__getstate__()[
                _FINGERPRINT
            ]
            beside = saved.__class__.__new__(saved.__class__)
            beside.__setstate__(tuple(state))
            return backward(ones, x, beside, None)[3]


_FINGERPRINT = 5  # in the state of a pickle


def saved_beside(x: Tensor, saved: Any) -> Any:
    """Make the `saved` of a forward call of another x with the same statistics."""
    rows = rows_of(saved)
    if saved.batch_statistics:
        return saved_of(x, rows, saved.eps)
    of = unbound(rows if x.dtype == torch.float64 else rows.float())  # as they were given
    return forward(x, None, None, saved.eps, (of.mean, of.var, None, None))[1]


# --- tensors as engines take them -----------------------------------------------------------------


def _detached(tensor: Tensor | None) -> Any:
    """Give a tensor without what autograd has to say of it; TypeError for one without memory."""
    if tensor is None:
        return None
    if not has_memory(tensor):
        raise TypeError("expected a tensor whose memory holds its values")
    return tensor.detach()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has its values in memory: no zeros, no wrapper, none that was freed."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # it has not even a storage
        return False


def _settled(tensor: Tensor) -> Tensor:
    """Give a tensor memory, if it is one of autograd's zeros, which have none."""
    return tensor.clone() if tensor._is_zerotensor() else tensor
