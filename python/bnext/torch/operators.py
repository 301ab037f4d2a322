"""The two passes as registered operators, which torch.compile and dispatch modes see.

``bnext::batch_norm_training``        x, weight, bias, eps -> y, statistics, first
``bnext::fused_batch_norm_training``  the same -> y, statistics
``bnext::activated_batch_norm_training``  these, activation, negative_slope -> the same
``bnext::batch_norm_backward``        dy, x, weight, statistics, eps -> dx, dweight, dbias
``bnext::activated_batch_norm_backward``  dy, x, weight, bias, statistics, eps, activation,
                                      negative_slope -> the same

`statistics` has the rows of `bnext.rows`, one value for each channel, in float64. The operators are
functional: running statistics are moved from these rows, by operations that a compiler can fuse.
`first` is the integer 1, or 0 where the pass repeats one in a backward pass: a graph finds that out
when it runs. The others, and small calls, which are none of these operators (`small_calls`), are in
graphs of compilers, which know (`repetition`). The backward operator has a backward pass in turn,
by `formulas`.

All are composites. They record for autograd, and leave the work to operators that do not: the first
and the last to ``bnext::forward_by_batch`` and ``bnext::backward_by_batch``, of the same arguments
and results. The second, for compilers, has ``bnext::statistics_and_coefficients`` for its first
phase, and its second phase in PyTorch's operators: a compiler computes y in the loop of the
operator that follows, an activation, a sum, a pooling, and need not write and read it.

Dynamo sees one operator, ``bnext::batch_norm_of_layer`` (`functional`), in place of a layer's call,
and traces these behind it: compiled code checks before every call what Dynamo has read.

The final graph of a compiler has only the latter operators. They are registered with nothing
between PyTorch's dispatcher and the kernels: a wrapper for autograd, and one that looks for
aliases, would cost four times the kernels' time for a small tensor. A graph that make_fx draws
outside a compiler has twins of them that record (`registration`), so it can be differentiated.

The kernels take tensors of any layout, and give results in the format of PyTorch's operator. The
tag says so to Inductor, which lays convolutions out with channels last. Without it tensors are
copied to the strides that they were traced with, and back: five more passes over the data for each
layer. An operator that gets another tag, or results of another shape, needs another name as well:
compilers' caches of graphs have neither in their keys.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnext.rows import Statistics
from bnext.torch import compilers, formulas, kernels, small_calls
from bnext.torch.context import is_compiling, is_drawn, is_recomputed, is_traced_by_dynamo
from bnext.torch.epilogues import Epilogue, applied, derivative
from bnext.torch.formats import format_of
from bnext.torch.registration import define, define_recorded, work_of

__all__ = ["batch_norm"]

Results = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, ...]


def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, momentum: Any, eps: float, counter: Tensor | None, fused: bool,
    epilogue: Epilogue | None = None,
) -> Tensor:  # fmt: skip
    """Normalize by the batch, move running statistics and a counter, in ways that can be traced."""
    functional: Any = torch.nn.functional
    functional._verify_batch_size(x.size())
    weight, bias = kernels.widened(x, weight), kernels.widened(x, bias)
    ours: Any = torch.ops.bnext
    first: Any = 1
    if fused and not is_traced_by_dynamo() and small_calls.is_small(x):
        y, mean, m2 = small_calls.normalize(x, weight, bias, eps, epilogue)
    else:
        if not fused:
            y, statistics, first = ours.batch_norm_training(x, weight, bias, eps)
        else:
            by = ours.fused_batch_norm_training
            if epilogue is not None:  # an activation alone
                by = partial(ours.activated_batch_norm_training, **_named(epilogue))
            y, statistics = by(x, weight, bias, eps)
        if not is_compiling():  # a graph of make_fx may run where gradients are recorded
            statistics = statistics.detach()
        of = Statistics(*statistics.unbind())
        mean, m2 = of.mean, of.m2
    if not is_recomputed():  # nothing here is differentiated: statistics and `first` are not
        count = math.prod(x.shape) // max(x.shape[1], 1)
        if running_mean is not None and running_var is not None and count > 1:
            _move(running_mean, mean, momentum, first)
            _move(running_var, m2 / (count - 1), momentum, first)
        if counter is not None:
            counter.add_(first)
    result: Tensor = y
    return result


def _move(running: Tensor, batch: Tensor, momentum: Any, first: Any) -> None:
    moved = (1 - momentum) * running.double() + momentum * batch
    running.copy_(torch.where(first > 0, moved, running) if isinstance(first, Tensor) else moved)


# --- the work -------------------------------------------------------------------------------------


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Results:
    y, saved = kernels.forward(x, weight, bias, eps)
    return y, kernels.rows_of(saved), _first(x)


def _fake_forward(x: Tensor, *_: Any) -> Results:
    return _like(x), *_fake_rest(x)


def _statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Give statistics, and coefficients (`_in_pieces`)."""
    return kernels.statistics(x, weight, bias, eps)


def _fake_statistics(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_rest(x)[0], _fake_vectors(x, 4)


def _backward(*given: Any) -> Results:
    return kernels.backward_by_rows(*given)


def _fake_backward(dy: Tensor, x: Tensor, *_: Any) -> Results:
    return _like(x), _fake_vectors(x), _fake_vectors(x)


def _activated_backward(*given: Any) -> Results:
    return kernels.activated_backward_by_rows(*given)


def _first(x: Tensor) -> Tensor:
    return torch.full((), 0 if is_recomputed() else 1, device=x.device)


def _fake_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.new_empty((len(Statistics._fields), x.size(1)), dtype=torch.float64)
    return rows, x.new_empty((), dtype=torch.int64)


def _fake_vectors(x: Tensor, *rows: int) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((*rows, x.size(1)), dtype=dtype)


def _like(x: Tensor) -> Tensor:
    """Make a tensor like a result of the kernels."""
    return torch.empty_like(x, memory_format=format_of(x))


# --- autograd -------------------------------------------------------------------------------------


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, by: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, ...]:
        y, statistics, *first = by(x, weight, bias, eps)
        ctx.mark_non_differentiable(statistics, *first)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps = eps
        return y, statistics, *first

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Gradients:
        if dy is None:
            return (None,) * 5
        gradients = torch.ops.bnext.batch_norm_backward(dy, *ctx.saved_tensors, ctx.eps)
        wanted = zip(gradients, ctx.needs_input_grad[1:4], strict=True)
        return None, *(gradient if wants else None for gradient, wants in wanted), None


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
        activation: str, negative_slope: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        after = Epilogue(None, activation, negative_slope)
        y, statistics = _in_pieces(x, weight, bias, eps, after)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, statistics)
        ctx.others = eps, activation, negative_slope
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Gradients:
        if dy is None:
            return (None,) * 6
        backward: Any = torch.ops.bnext.activated_batch_norm_backward
        gradients = backward(dy, *ctx.saved_tensors, *ctx.others)
        wanted = zip(gradients, ctx.needs_input_grad[:3], strict=True)
        return *(gradient if wants else None for gradient, wants in wanted), None, None, None


def _recorded(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    return _Forward.apply(work_of("forward_by_batch"), x, weight, bias, eps)


def _fused_recorded(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if is_drawn():  # the pieces have no derivatives
        return _recorded(x, weight, bias, eps)[:2]
    return _Forward.apply(_in_pieces, x, weight, bias, eps)


def _activated_recorded(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str,
    negative_slope: float,
) -> Any:  # fmt: skip
    if is_drawn():
        y, statistics, _ = _recorded(x, weight, bias, eps)
        return applied(y, Epilogue(None, activation, negative_slope)), statistics
    return _Activated.apply(x, weight, bias, eps, activation, negative_slope)


def _backward_recorded(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, eps: float
) -> Any:
    work = partial(work_of("backward_by_batch"), statistics=statistics, eps=eps)
    return formulas.Backward.apply(work, partial(formulas.backward, eps=eps), dy, x, weight)


def _activated_backward_recorded(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor,
    eps: float, activation: str, negative_slope: float,
) -> Any:  # fmt: skip
    operator = work_of("activated_backward_by_batch")

    def work(dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
        return operator(dy, x, weight, bias, statistics, eps, activation, negative_slope)

    again = partial(formulas.backward, eps=eps, slope=derivative(activation, negative_slope))
    return formulas.Backward.apply(work, again, dy, x, weight, bias)


def _named(epilogue: Epilogue) -> dict[str, Any]:
    return {"activation": epilogue.activation, "negative_slope": epilogue.negative_slope}


def _in_pieces(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    after: Epilogue | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    for each in (torch.ops.bnext.backward_by_batch, torch.ops.bnext.activated_backward_by_batch):
        compilers.inform(each.default)  # not where Dynamo looks: Inductor may not be imported yet
    statistics, coefficients = torch.ops.bnext.statistics_and_coefficients(x, weight, bias, eps)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    unit, center, scale, shift = (row.view(shape) for row in coefficients.unbind())
    y = (x.to(coefficients.dtype) * unit - center) * scale + shift
    if after is not None:
        y = applied(y, after)
    return y.to(x.dtype).contiguous(memory_format=format_of(x)), statistics


# --- for transforms of functions, which know PyTorch's operators ----------------------------------


def _forward_by_formulas(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Results:
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    values = x.detach().double()
    var, mean = torch.var_mean(values, formulas.channel_dims(x), correction=0)
    m2, rstd = var * (math.prod(x.shape) // max(x.shape[1], 1)), formulas.rstd_of(var, eps)
    rows = Statistics(mean=mean, m2=m2, var=var, rstd=rstd, mean_low=torch.zeros_like(mean))
    return y, torch.stack(rows), _first(x)


def _backward_by_formulas(
    dy: Tensor, x: Tensor, weight: Tensor | None, _: Tensor, eps: float
) -> Gradients:
    return formulas.backward(dy, x, weight, eps=eps)[:3]


def _activated_backward_by_formulas(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, _: Tensor, eps: float,
    activation: str, negative_slope: float,
) -> Gradients:  # fmt: skip
    slope = derivative(activation, negative_slope)
    return formulas.backward(dy, x, weight, bias, eps=eps, slope=slope)[:3]


# --- registration ---------------------------------------------------------------------------------

_GIVEN = "(Tensor x, Tensor? weight, Tensor? bias, float eps"
_OF_FORWARD = f"{_GIVEN}) -> (Tensor, Tensor, Tensor)"
_IN_PIECES = f"{_GIVEN}) -> (Tensor, Tensor)"
_OF_BACKWARD = (
    "(Tensor dy, Tensor x, Tensor? weight, Tensor statistics, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)

_OF_ACTIVATED_FORWARD = f"{_GIVEN}, str activation, float negative_slope) -> (Tensor, Tensor)"
_OF_ACTIVATED_BACKWARD = (
    "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor statistics, float eps, "
    "str activation, float negative_slope) -> (Tensor, Tensor, Tensor)"
)

define("statistics_and_coefficients", _IN_PIECES, _statistics, _fake_statistics)
define_recorded(
    "batch_norm_training", "forward_by_batch", _OF_FORWARD, _recorded,
    _forward, _fake_forward, _forward_by_formulas,
)  # fmt: skip
define("fused_batch_norm_training", _IN_PIECES, _fused_recorded)
define("activated_batch_norm_training", _OF_ACTIVATED_FORWARD, _activated_recorded)
define_recorded(
    "batch_norm_backward", "backward_by_batch", _OF_BACKWARD, _backward_recorded,
    _backward, _fake_backward, _backward_by_formulas,
)  # fmt: skip
define_recorded(
    "activated_batch_norm_backward", "activated_backward_by_batch", _OF_ACTIVATED_BACKWARD,
    _activated_backward_recorded, _activated_backward, _fake_backward,
    _activated_backward_by_formulas,
)  # fmt: skip
