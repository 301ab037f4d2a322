"""What PyTorch's compilers are told of graphs with bnext's operators.

Caches on disk know a graph by what Dynamo sees, where one operator stands for all that a layer's
call does (`functional`). So it takes the package's revision, and another revision's code is not
found.

Inductor lays a graph out with channels last where it has convolutions. A graph of a backward pass
has only their derivatives, and each goes by the strides of its gradient of weights. Those of a
depthwise convolution say nothing, because its weights have one input channel: its operands were
copied to planes, where oneDNN's derivative takes 1.5 to 5 times as long, and the gradient that it
gave to a kernel of bnext was in planes beside an x with channels last (PyTorch 2.13.0).

Where a normalization in a graph of a backward pass has an x with channels last, so now have the
derivatives of convolutions behind it. Small calls are PyTorch's operations (`small_calls`), so
their graphs have an operator that does nothing but say so, and is gone from the code. Graphs
without bnext's operators are as they were.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch

from bnext.torch.formats import format_of
from bnext.torch.registration import define

__all__ = ["inform", "keep_layout", "revision", "revision_of"]


def revision() -> str:
    """Name the code that graphs are made by: `revision_of` the package bnext."""
    if not _FOUND:
        _FOUND.append(revision_of(Path(__file__).parents[1]))
    return _FOUND[0]


_FOUND: list[str] = []

# Dynamo runs it, and does not look into it.
revision._dynamo_marked_constant = True  # type: ignore[attr-defined]


def revision_of(folder: Path) -> str:
    """Name the Python files in a folder and its folders by their paths and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def inform(operator: Any, lower: Any = None) -> bool:
    """Let Inductor know of an operator whose second argument is x; whether it was imported.

    `lower` gives what stands for a call in Inductor's code; by default the call stands for itself.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    known = getattr(lowering, "user_lowerings", None)  # None: the version has none
    if known is None or not hasattr(known, "setdefault"):
        return False
    known.setdefault(operator, lower or _follow_x)
    return True


def _follow_x(*_: Any, **__: Any) -> None:
    """Keep channels last, and leave the operator to Inductor (None)."""
    from torch._inductor.virtualized import V

    x = V.graph.current_node.args[1].meta.get("val")
    if (
        isinstance(x, torch.Tensor)
        and x.device.type == "cpu"
        and format_of(x) is torch.channels_last
    ):
        V.graph.layout_opt = True


def keep_layout(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Give values of a backward pass; Inductor's graph of it keeps channels last if x has it."""
    if x.dim() == 4 and inform(torch.ops.bnext.keep_layout.default, _lower_keep_layout):
        values = torch.ops.bnext.keep_layout(values, x)
    return values


def _lower_keep_layout(values: Any, x: Any) -> Any:
    _follow_x(values, x)
    return values


define(
    "keep_layout", "(Tensor values, Tensor x) -> Tensor", lambda values, x: values.clone(),
    lambda values, x: torch.empty_like(values),
)  # fmt: skip
