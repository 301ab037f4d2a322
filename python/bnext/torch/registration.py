"""How the operators are registered, and which operator does the work of a composite.

A composite records for autograd, and leaves the work to an operator that does not (`work_of`). The
final graph of a compiler has only the latter, with nothing between PyTorch's dispatcher and the
kernels.

A graph that make_fx draws outside a compiler is run by a user, who may differentiate it. It has a
twin of each such operator, of its name and ``_recorded``, which records as the composite does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bnext.torch.context import is_drawn, is_transformed

__all__ = ["define", "define_recorded", "work_of"]

_LIBRARY: Any = torch.library.Library("bnext", "DEF")
_TAGS = tuple(
    getattr(torch.Tag, name)
    for name in ("pt2_compliant_tag", "flexible_layout")
    if hasattr(torch.Tag, name)
)


def define(name: str, schema: str, run: Any, fake: Any = None) -> None:
    """Define a composite, or with `fake` an operator that does the work of one."""
    _LIBRARY.define(name + schema, tags=_TAGS)
    _LIBRARY.impl(name, run, f"Composite{'Explicit' if fake else 'Implicit'}Autograd")
    if fake is not None:
        torch.library.register_fake(f"bnext::{name}", fake, lib=_LIBRARY)


def define_recorded(
    name: str, work: str, schema: str, record: Any, run: Any, fake: Any, formulas: Any
) -> None:
    """Define a composite, the operator that does its work, and the twin of that.

    Parameters
    ----------
    name : str
        Of the composite, which is `record`.
    work : str
        Of the operator, which is `run`; `fake` makes tensors like its results.
    schema : str
        Of all three.
    record : callable
        Records for autograd, and does the work by ``work_of(work)``.
    run, fake : callable
    formulas : callable
        Does the work in PyTorch's operations, for transforms of functions.
    """

    def record_twin(*given: Any) -> Any:
        return formulas(*given) if is_transformed() else record(*given)

    define(work, schema, run, fake)
    define(f"{work}_recorded", schema, run, fake)
    _LIBRARY.impl(f"{work}_recorded", record_twin, "Autograd")
    define(name, schema, record)


def work_of(name: str) -> Callable[..., Any]:
    """Give the operator of this name, or in a graph that make_fx draws its twin."""
    if not is_drawn():
        operator: Callable[..., Any] = getattr(torch.ops.bnext, name)
        return operator
    return partial(_below_autograd, getattr(torch.ops.bnext, f"{name}_recorded"))


def _below_autograd(operator: Any, *given: Any, **named: Any) -> Any:
    """Call an operator from a function that has recorded it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*given, **named)
