"""Tensors to kernels and back: no autograd here, and few checks but the kernels' own.

Every call has two ways. Usual tensors (dense, of the dtypes that kernels compute with) cross by
DLPack's table of C functions, in one call of `TensorCalls`: of `_core`, or of `_cuda` for tensors
on a GPU. The other tensors, and all where PyTorch has no table, go to `_core` as NumPy's arrays, or
to the engine of a GPU.

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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bnext import _core, cuda
from bnext.devices import DeviceSaved, engine_of
from bnext.devices.pytorch import calls_on_a_gpu
from bnext.rows import unbound
from bnext.torch.context import count_writes
from bnext.torch.formats import format_of, formatted

__all__ = [
    "KernelRefusal", "backward", "backward_by_rows", "backward_constant", "backward_of_parameters",
    "calls_there", "evaluate", "forward", "fuses", "has_memory", "inference", "move_running",
    "rows_of", "saved_beside", "saved_of", "statistics", "takes", "widened", "work_together",
]  # fmt: skip

DATA = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NARROW = (torch.float16, torch.bfloat16)

Results = tuple[Tensor, Any]  # y, and `saved`, which backward needs besides x and weight
Gradients = tuple[Tensor, Tensor, Tensor]  # dx, dweight, dbias


class KernelRefusal(Exception):  # noqa: N818
    """The kernels do not take the tensors of a call. Nothing was changed."""


def _calls() -> _core.TensorCalls | None:
    try:
        return _core.TensorCalls(Tensor, torch.nn.Parameter, torch.empty_like)
    except TypeError:  # a PyTorch without the table, or with one that is not known here
        return None


_CALLS: Any = _calls()


def calls_there() -> Any:
    """Give the calls for usual tensors on a GPU; None where there are no kernels for it."""
    if not _THERE:
        kernels = cuda._load() if _has_cuda() else None
        _THERE.append(kernels and calls_on_a_gpu(kernels.TensorCalls, torch, kernels))
    return _THERE[0]


_THERE: list[Any] = []


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

    Their dtype is that of x, or beside 16 bits also float32; they lie where x does.
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


def widened(x: Tensor, tensor: Tensor | None) -> Any:
    """Cast to the dtype that kernels take beside x: float32 beside 16 bits."""
    return tensor if tensor is None or x.dtype not in NARROW else tensor.float()


def _all_widened(x: Tensor, *others: Tensor | None) -> list[Any]:
    if not work_together(x, *others):
        raise KernelRefusal
    return [widened(x, tensor) for tensor in others]


# --- calls ----------------------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mean: Tensor | None = None,
    var: Tensor | None = None, momentum: float = 0.0, counter: Tensor | None = None,
    keeps: bool = True,
) -> Results:  # fmt: skip
    """Normalize by the batch, and move running statistics and their counter if there are any.

    `keeps` is False where no backward pass follows, which takes the second result.
    """
    done: Results | None
    if not x.is_cuda:
        done = _CALLS and _CALLS.forward(x, weight, bias, mean, var, momentum, counter, eps)
    else:
        calls, arguments = calls_there(), (x, weight, bias, mean, var, momentum, counter, eps)
        if keeps:
            done = calls and calls.forward(*arguments)
        else:
            y = calls and calls.forward_only(*arguments)
            done = None if y is None else (y, None)
    if done is None:
        return _forward_of_others(x, weight, bias, eps, mean, var, momentum, counter)
    if mean is not None and counter is not None:
        count_writes((mean, var, counter))
    else:
        count_writes(tuple(tensor for tensor in (mean, var, counter) if tensor is not None))
    return done


def _forward_of_others(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mean: Tensor | None,
    var: Tensor | None, momentum: float, counter: Tensor | None,
) -> Results:  # fmt: skip
    weight, bias, *wide = _all_widened(x, weight, bias, mean, var)
    done: Results | None = None
    if x.dtype in NARROW:
        calls = calls_there() if x.is_cuda else _CALLS
        done = calls and calls.forward(x, weight, bias, *wide, momentum, None, eps)
    if done is None:
        with _refusing():
            y, saved = _engine(x).forward(
                x=_given(x), weight=_given(weight), bias=_given(bias),
                running_mean=_given(wide[0], written=True),
                running_var=_given(wide[1], written=True), momentum=momentum,
                num_batches_tracked=None, eps=eps, channel_axis=1, out=None,
            )  # fmt: skip
        done = formatted(_tensor(y), x), saved
    _bring_back((mean, var), wide)
    if counter is not None:
        counter.add_(1)
    return done


def inference(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Results:  # fmt: skip
    """Normalize by running statistics; otherwise as `forward`."""
    calls = calls_there() if x.is_cuda else _CALLS
    done: Results | None = calls and calls.normalize_by_running(x, mean, var, weight, bias, eps)
    return _inference_of_others(x, mean, var, weight, bias, eps) if done is None else done


def evaluate(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Tensor:  # fmt: skip
    """Do `inference` where no backward pass follows: y alone."""
    calls = calls_there() if x.is_cuda else _CALLS
    y: Tensor | None = calls and calls.evaluate(x, mean, var, weight, bias, eps)
    return _inference_of_others(x, mean, var, weight, bias, eps)[0] if y is None else y


def _inference_of_others(
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> Results:  # fmt: skip
    if mean is None or var is None:
        raise KernelRefusal
    mean, var, weight, bias = _all_widened(x, mean, var, weight, bias)
    calls = calls_there() if x.is_cuda else _CALLS
    if x.dtype in NARROW:
        done: Results | None = calls and calls.normalize_by_running(x, mean, var, weight, bias, eps)
        if done is not None:
            return done
    with _refusing():
        y, saved = _engine(x).normalize_by_running(
            x=_given(x), running_mean=_given(mean), running_var=_given(var),
            weight=_given(weight), bias=_given(bias), eps=eps, channel_axis=1, out=None,
        )  # fmt: skip
    return formatted(_tensor(y), x), saved


def fuses(x: Tensor) -> bool:
    """Whether `statistics` has the first phase alone for a tensor in this place."""
    return _CALLS is not None and x.device.type == "cpu" and x.numel() > 0


def statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Give the rows of `rows_of`; and unit, center, scale and shift as rows, shape (4, C).

    ``y = (x * unit - center) * scale + shift``, in their dtype, equals the y of `forward`.
    """
    done = _CALLS.statistics(x, weight, bias, eps)
    if done is None:  # not dense, say
        dense = torch.empty_like(x, memory_format=format_of(x)).copy_(x)
        done = _CALLS.statistics(dense, _copy(weight), _copy(bias), eps)
    rows: tuple[Tensor, Tensor] = done
    return rows


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.empty_like(tensor).copy_(tensor)


def backward(dy: Tensor, x: Tensor, saved: Any, weight: Tensor | None) -> Gradients:
    """Give dx, dweight and dbias, by the statistics that forward left."""
    calls = calls_there() if x.is_cuda else _CALLS
    done: Gradients | None = calls and calls.backward(dy, x, saved, weight)
    if done is None and x.dtype in NARROW:
        weight = widened(x, weight)
        done = calls and calls.backward(dy, x, saved, weight)
    if done is not None:
        return done
    dy = _settled(dy)
    arrays = _engine(x).backward(
        dy=_given(dy), x=_given(x), saved=saved, weight=_given(weight), out=None
    )
    dx, dweight, dbias = map(_tensor, arrays)
    return formatted(dx, x), dweight, dbias


def backward_by_rows(
    dy: Tensor, x: Tensor, rows: Tensor, eps: float, weight: Tensor | None
) -> Gradients:
    """Do `backward` by the rows of the statistics that forward left."""
    calls = None if x.is_cuda else _CALLS
    done: Gradients | None = calls and calls.backward_by_rows(dy, x, rows, weight)
    return backward(dy, x, saved_of(x, rows, eps), weight) if done is None else done


def backward_of_parameters(dy: Tensor, x: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Give dweight and dbias alone, where dx is not wanted."""
    if x.is_cuda:  # its sums would come to the host in between
        return backward(dy, x, saved, None)[1:]
    dy = _settled(dy)
    sum_dy, sum_dy_xmu = _core.backward_reduce(dy=_given(dy), x=_given(x), saved=saved)
    dweight, dbias = _core.parameter_gradients(
        saved=saved, weight=None, sum_dy=sum_dy, sum_dy_xmu=sum_dy_xmu
    )
    return _tensor(dweight), _tensor(dbias)


def backward_constant(dy: Tensor, saved: Any, weight: Tensor | None) -> Tensor:
    """Give dx where the statistics are constants. It takes no x."""
    calls = calls_there() if dy.is_cuda else _CALLS
    weight = widened(dy, weight)
    dx: Tensor | None = calls and calls.backward_constant(dy, saved, weight)
    if dx is not None:
        return dx
    dy = _settled(dy)
    result = _engine(dy, "dy").backward_constant(
        dy=_given(dy), saved=saved, weight=_given(weight), out=None
    )
    return formatted(_tensor(result), dy)


def move_running(saved: Any, mean: Tensor, var: Tensor, momentum: float) -> None:
    """Move running statistics by the statistics of a batch."""
    wide = [widened(buffer, buffer) for buffer in (mean, var)]
    engine_of(mean).move_running(
        saved=saved, running_mean=wide[0], running_var=wide[1], momentum=momentum,
        num_batches_tracked=None,
    )  # fmt: skip
    _bring_back((mean, var), wide)


def _bring_back(buffers: tuple[Tensor | None, ...], wide: list[Any]) -> None:
    """Copy running statistics from the tensors that kernels wrote to the buffers of a layer."""
    for buffer, written in zip(buffers, wide, strict=True):
        if buffer is None:
            continue
        if written is buffer:
            count_writes((buffer,))
        else:
            buffer.copy_(written)


# --- statistics that forward leaves ---------------------------------------------------------------


def rows_of(saved: Any) -> Tensor:
    """Give the rows of statistics in `saved` as a tensor of float64, shape (5, C)."""
    rows: Any = saved.rows
    return rows if isinstance(saved, DeviceSaved) else torch.from_numpy(rows)


def saved_of(x: Tensor, rows: Tensor, eps: float) -> Any:
    """Make the `saved` of a forward call from its rows of statistics."""
    return _engine(x).restored(x=_given(x), rows=_given(rows), eps=eps, channel_axis=1)


def saved_beside(x: Tensor, saved: Any) -> Any:
    """Make the `saved` of a forward call of another x with the same statistics."""
    rows = rows_of(saved)
    if saved.batch_statistics:
        return saved_of(x, rows, saved.eps)
    of = unbound(rows if x.dtype == torch.float64 else rows.float())  # as they were given
    return inference(x, of.mean, of.var, None, None, saved.eps)[1]


# --- tensors as engines take them -----------------------------------------------------------------


def _engine(x: Tensor, name: str = "x") -> Any:
    """Find the engine for a tensor: `_given` makes its arguments, `_tensor` takes its results."""
    return engine_of(x, name) if x.is_cuda else _core


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise a KernelRefusal where a check of a forward pass finds something wrong."""
    try:
        yield
    except (TypeError, ValueError) as refusal:
        raise KernelRefusal(str(refusal)) from refusal


def _given(tensor: Tensor | None, written: bool = False) -> Any:
    """Give a tensor's memory, whatever autograd has to say; a copy to be read of a lazy negation.

    TypeError for a tensor without memory: NumPy would allocate some, and not initialise it.
    """
    if tensor is None:
        return None
    if not has_memory(tensor) or (written and tensor.is_neg()):
        raise TypeError("expected a tensor whose memory holds its values")
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor
    tensor = tensor.resolve_neg()
    if tensor.dtype is torch.bfloat16:  # which NumPy does not have
        return _core.from_dlpack(tensor.__dlpack__())
    return tensor.numpy()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has its values in memory: no zeros, no wrapper, none that was freed."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # it has not even a storage
        return False


def _settled(dy: Tensor) -> Tensor:
    """Give a gradient memory, if it is one of autograd's zeros, which have none."""
    return dy.clone() if dy._is_zerotensor() else dy


def _tensor(result: Any) -> Any:
    """Make a tensor of what an engine returned, on the same memory."""
    if isinstance(result, Tensor):
        return result
    if result.dtype.kind == "f":
        return torch.from_numpy(result)
    from_dlpack: Any = torch.utils.dlpack.from_dlpack
    return from_dlpack(_core.Exported(result))  # bfloat16
