"""Tensors to kernels and back: no autograd here, and few checks but the kernels' own.

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

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnext import _core, cuda
from bnext.devices import DeviceSaved, engine_of
from bnext.devices.pytorch import calls_on_a_gpu
from bnext.rows import unbound
from bnext.torch.context import count_write

__all__ = [
    "KernelRefusal", "Rows", "Running", "agree", "backward", "backward_constant",
    "backward_of_parameters", "bring_back", "calls_there", "evaluate_plain", "format_of",
    "formatted", "forward", "forward_plain", "fuses", "inference", "inference_plain", "rows_of",
    "saved_beside", "saved_of", "statistics", "takes", "widened",
]  # fmt: skip

# Of which NumPy has the dtype, so that a tensor and an array are made of each other in no time.
OF_NUMPY = (torch.float32, torch.float64, torch.float16)
DATA = (*OF_NUMPY, torch.bfloat16)
NARROW = (torch.float16, torch.bfloat16)


def _calls() -> _core.TensorCalls | None:
    try:
        return _core.TensorCalls(Tensor, torch.nn.Parameter, torch.empty_like)
    except TypeError:  # a PyTorch without the table, or with one that is not known here
        return None


# What is plain crosses by DLPack's table of C functions. The rest, and all where PyTorch has none,
# goes by arrays.
_CALLS = _calls()


def _refused(*arguments: Any) -> None:
    """Do nothing: for a PyTorch without the table."""


# Calls of plain tensors on the CPU; None for all others. `forward` with what is in `Running` one by
# one; `inference`; and the same where no backward pass follows, y alone.
forward_plain: Any = _refused if _CALLS is None else _CALLS.forward
inference_plain: Any = _refused if _CALLS is None else _CALLS.normalize_by_running
evaluate_plain: Any = _refused if _CALLS is None else _CALLS.evaluate


def calls_there() -> Any:
    """Give the same calls for plain tensors on a GPU; None where there are no kernels for it."""
    if not _THERE:
        kernels = cuda._load() if _has_cuda() else None
        _THERE.append(kernels and calls_on_a_gpu(kernels.TensorCalls, torch, kernels))
    return _THERE[0]


_THERE: list[Any] = []


class KernelRefusal(Exception):  # noqa: N818
    """The kernels do not take the arguments of a forward call, and have changed nothing."""


class Running(NamedTuple):
    """Running statistics that a call moves, by how much, and a count of such calls."""

    mean: Tensor
    var: Tensor
    momentum: float
    counter: Tensor | None = None


class Rows(NamedTuple):
    """What `rows_of` gives of what a forward call left, and its eps."""

    values: Tensor
    eps: float


NOT_RUNNING = (None, None, 0.0, None)


# --- what kernels take ----------------------------------------------------------------------------


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


def agree(x: Tensor, *others: Tensor | None) -> bool:
    """Whether parameters and running statistics have the one dtype that they may have beside x."""
    dtypes = {tensor.dtype for tensor in others if tensor is not None}
    if len(dtypes) != 1:
        return not dtypes
    return x.dtype in dtypes or (x.dtype in NARROW and torch.float32 in dtypes)


def widened(x: Tensor, tensor: Tensor | None) -> Any:
    """Cast to what kernels compute with beside x: float32 beside 16 bits."""
    return tensor if tensor is None or x.dtype not in NARROW else tensor.float()


def bring_back(buffers: tuple[Tensor | None, ...], wide: tuple[Tensor | None, ...]) -> None:
    """Bring running statistics from where kernels wrote them to where a layer has them."""
    for buffer, written in zip(buffers, wide, strict=True):
        if buffer is None or written is None:
            continue
        if written is buffer:
            count_write(buffer)
        else:
            buffer.copy_(written)


# --- calls ----------------------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None, eps: float
) -> tuple[Tensor, Any]:
    """Normalize by the batch: y, and what backward needs besides x and weight."""
    mean, var, momentum, counter = NOT_RUNNING if running is None else running
    calls: Any = calls_there() if x.is_cuda else _CALLS
    if calls is not None:
        done: tuple[Tensor, Any] | None = calls.forward(
            x, weight, bias, mean, var, momentum, counter, eps
        )
        if done is not None:
            return done
    try:
        if x.dtype in OF_NUMPY and not x.is_cuda:
            y, saved = _core.forward(
                _array(x), _array(weight), _array(bias), _written(mean), _written(var),
                momentum, _written(counter), eps, 1, None,
            )  # fmt: skip
            return formatted(torch.from_numpy(y), x), saved
        on_host = None if x.is_cuda else _written(counter)
        y, saved = engine_of(x).forward(
            _plain(x), _plain(weight), _plain(bias), _plain(mean), _plain(var), momentum, on_host,
            eps, 1, None,
        )  # fmt: skip
        if counter is not None and on_host is None:
            counter.add_(1)
    except (TypeError, ValueError) as refusal:
        raise KernelRefusal(str(refusal)) from refusal
    return formatted(y, x), saved


def fuses(x: Tensor) -> bool:
    """Whether there is a first phase alone for a tensor of this place, as `statistics` gives it."""
    return _CALLS is not None and x.device.type == "cpu" and x.numel() > 0


def statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Give the rows of `rows_of`, and those of unit, center, scale and shift, shape (4, C).

    ``y = (x * unit - center) * scale + shift``, in their dtype, is what `forward` gives.
    """
    calls: Any = _CALLS
    done = calls.statistics(x, weight, bias, eps)
    if done is None:  # not dense, say
        plain = (
            torch.empty_like(x, memory_format=format_of(x)).copy_(x),
            _copy(weight),
            _copy(bias),
        )
        done = calls.statistics(*plain, eps)
    rows: tuple[Tensor, Tensor] = done
    return rows


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.empty_like(tensor).copy_(tensor)


def inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Any]:
    """Normalize by running statistics; otherwise as `forward`."""
    calls: Any = calls_there() if x.is_cuda else _CALLS
    if calls is not None:
        done: tuple[Tensor, Any] | None = calls.normalize_by_running(
            x, mean, var, weight, bias, eps
        )
        if done is not None:
            return done
    try:
        if x.dtype in OF_NUMPY and not x.is_cuda:
            y, saved = _core.normalize_by_running(
                _array(x), _array(mean), _array(var), _array(weight), _array(bias), eps, 1, None
            )
            return formatted(torch.from_numpy(y), x), saved
        y, saved = engine_of(x).normalize_by_running(
            _plain(x), _plain(mean), _plain(var), _plain(weight), _plain(bias), eps, 1, None
        )
    except (TypeError, ValueError) as refusal:
        raise KernelRefusal(str(refusal)) from refusal
    return formatted(y, x), saved


def backward(
    dy: Tensor, x: Tensor, saved: Any, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Give dx, dweight and dbias, by what forward left or `Rows` of it."""
    calls: Any = calls_there() if x.is_cuda else _CALLS
    if type(saved) is Rows and x.is_cuda:
        saved = saved_of(x, *saved)
    if calls is not None:
        if type(saved) is Rows:
            done = calls.backward_by_rows(dy, x, saved.values, weight)
        else:
            done = calls.backward(dy, x, saved, weight)
        if done is not None:
            return done
    if type(saved) is Rows:
        saved = saved_of(x, *saved)
    dy = _settled(dy)
    if x.dtype in OF_NUMPY and not x.is_cuda:
        arrays = _core.backward(_array(dy), _array(x), saved, _array(weight), None)
        dx, dweight, dbias = map(torch.from_numpy, arrays)
    else:
        dx, dweight, dbias = engine_of(x).backward(
            _plain(dy), _plain(x), saved, _plain(weight), None
        )
    return formatted(dx, x), dweight, dbias


def backward_of_parameters(dy: Tensor, x: Tensor, saved: Any) -> tuple[Tensor, Tensor]:
    """Give dweight and dbias alone, where nobody wants dx."""
    dy = _settled(dy)
    if x.is_cuda:  # its sums would come to the host in between
        return backward(dy, x, saved, None)[1:]
    if x.dtype in OF_NUMPY:
        sums = _core.backward_reduce(_array(dy), _array(x), saved)
    else:
        sums = engine_of(x).backward_reduce(_plain(dy), _plain(x), saved)
    dweight, dbias = _core.parameter_gradients(saved, None, *sums)
    return torch.from_numpy(dweight), torch.from_numpy(dbias)


def backward_constant(dy: Tensor, saved: Any, weight: Tensor | None) -> Tensor:
    """Give dx where the statistics are constants, which takes no x."""
    calls: Any = calls_there() if dy.is_cuda else _CALLS
    if calls is not None:
        done: Tensor | None = calls.backward_constant(dy, saved, weight)
        if done is not None:
            return done
    dy = _settled(dy)
    if dy.dtype in OF_NUMPY and not dy.is_cuda:
        dx = _core.backward_constant(_array(dy), saved, _array(weight), None)
        return formatted(torch.from_numpy(dx), dy)
    dx = engine_of(dy, "dy").backward_constant(_plain(dy), saved, _plain(weight), None)
    return formatted(dx, dy)


# --- what forward leaves --------------------------------------------------------------------------


def rows_of(saved: Any) -> Tensor:
    """Give what the kernels left as a tensor of float64, shape (5, C); see `saved_of`."""
    rows: Any = saved.rows
    return rows if isinstance(saved, DeviceSaved) else torch.from_numpy(rows)


def saved_of(x: Tensor, rows: Tensor, eps: float) -> Any:
    """Make what the kernels left from `rows_of` it."""
    if x.is_cuda:
        return engine_of(x).restored(_plain(x), _plain(rows), eps, 1)
    if x.dtype in OF_NUMPY:
        return _core.restored(_array(x), _array(rows), eps, 1)
    return engine_of(x).restored(_plain(x), _array(rows), eps, 1)


def saved_beside(x: Tensor, saved: Any, eps: float) -> Any:
    """Make what the kernels would have left of another x with the same statistics."""
    rows = rows_of(saved)
    if saved.batch_statistics:
        return saved_of(x, rows, eps)
    of = unbound(rows if x.dtype == torch.float64 else rows.float())  # as they were given
    return inference(x, of.mean, of.var, None, None, eps)[1]


# --- tensors and arrays ---------------------------------------------------------------------------


def _array(tensor: Tensor | None) -> Any:
    # force: whatever autograd and lazy negation have to say; otherwise memory is the tensor's own.
    return None if tensor is None else _with_memory(tensor).numpy(force=True)


def _written(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    try:
        return _with_memory(tensor).numpy()
    except RuntimeError as error:  # it is to be negated, say: that would be a copy
        raise TypeError(str(error)) from error


def _with_memory(tensor: Tensor) -> Tensor:
    """TypeError for a tensor whose values are nowhere: a tensor of zeros, a wrapper, a freed one.

    NumPy would make memory of its own beside it, and leave in it what was there.
    """
    try:
        has_none = tensor.data_ptr() == 0 and tensor.numel() > 0
    except RuntimeError as error:  # it has not even a storage
        raise TypeError(str(error)) from error
    if has_none:
        raise TypeError("expected a tensor whose memory holds its values, got one without memory")
    return tensor


def _settled(dy: Tensor) -> Tensor:
    """Give a gradient memory, if it is one of autograd's zeros, which have none."""
    return dy.clone() if dy.data_ptr() == 0 and dy.numel() > 0 else dy


def _plain(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach()


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
