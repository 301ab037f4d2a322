"""The two passes over rows, for functions, layers and PyTorch: layer and RMS normalization."""

from __future__ import annotations

from typing import Any

from numpy import ndarray

from bnext import _core, split_rows
from bnext.arrays import engine_of
from bnext.arrays.libraries import library_of
from bnext.groups.group import ALONE, Part

__all__ = ["backward_of_rows", "check_place", "forward_of_rows"]


def forward_of_rows(
    x: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: Any,
    out: Any,
    centered: bool = True,
    plain: bool = False,
    epilogue: Any = None,
    part: Part = ALONE,
    engine: Any = None,
) -> Any:
    """Normalize rows: y, and what `backward_of_rows` needs.

    With `plain`, TypeError for a tensor of PyTorch that is not plain; what autograd would record is
    not asked. `epilogue`: residual, activation and negative slope, or None. `part`: in a call of a
    group, whose members have parts of rows. `engine`: what computes on `x`; None where that is to
    be found, of a plain tensor `_core`.
    """
    if part is not ALONE:
        check_place(x)
        return split_rows.forward(
            x, normalized_shape, weight, bias, eps, out, centered, epilogue, part
        )
    if engine is None:
        engine = _core if type(x) is ndarray or plain else engine_of(x)
    # By position: names cost a small call more than the checks.
    return engine.rows_forward(
        x, normalized_shape, weight, bias, eps, out, centered, plain, epilogue
    )


def backward_of_rows(
    dy: Any,
    x: Any,
    saved: Any,
    weight: Any,
    out: Any,
    centered: bool = True,
    plain: bool = False,
    wants_parameters: bool = True,
    residual: Any = None,
    engine: Any = None,
) -> Any:
    """Gradients of `forward_of_rows`: dx, dweight, where rows are centered dbias, and dresidual."""
    if type(saved) is split_rows.SplitRowSaved:
        check_place(x)
        return split_rows.backward(dy, x, saved, weight, out, centered, wants_parameters, residual)
    if engine is None:
        engine = _core if type(x) is ndarray or plain else engine_of(x)
    return engine.rows_backward(
        dy, x, saved, weight, out, centered, plain, wants_parameters, residual
    )


def check_place(x: Any) -> None:
    """ValueError for an array that is not on the CPU, in a call of a group."""
    library = library_of(x)
    where = None if library is None else library.where(x)
    if where is not None and where.kind != "cpu":
        raise ValueError(
            f"x: expected an array on the CPU, got one on {where}, where groups have no kernels of "
            "layer and RMS normalization"
        )
