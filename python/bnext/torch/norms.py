"""Which norms `convert` exchanges besides batch normalization: a class of PyTorch's, and bnext's.

A norm has a name and a table of classes. A layer is exchanged if its class is in the table; a
subclass, which may do anything, stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from bnext.arguments import chosen_names
from bnext.torch.cell_modules import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from bnext.torch.classes import NoCounterpart, class_of
from bnext.torch.row_modules import LayerNorm, RMSNorm

__all__ = ["BATCH", "TABLES", "checked_norms", "norm_of", "target_of_norm"]

BATCH = "batch"  # which `classes` has

TABLES: dict[str, dict[type, type]] = {
    "layer": {torch.nn.LayerNorm: LayerNorm},
    "rms": {torch.nn.RMSNorm: RMSNorm},
    "group": {torch.nn.GroupNorm: GroupNorm},
    "instance": {
        torch.nn.InstanceNorm1d: InstanceNorm1d,
        torch.nn.InstanceNorm2d: InstanceNorm2d,
        torch.nn.InstanceNorm3d: InstanceNorm3d,
    },
}
# A class of bnext's says which class it stands for, and whether `convert` was given a group.
for _table in TABLES.values():
    for _theirs, _ours in _table.items():
        _ours._stands_for = (_theirs, False)  # type: ignore[attr-defined]


def checked_norms(norms: str | Collection[str]) -> frozenset[str]:
    """Give the names of norms as a set: of "all", every one, of another string, itself."""
    return chosen_names(norms, "norms", (BATCH, *TABLES))


def norm_of(module: Any) -> str | None:
    """Name the norm that a layer of PyTorch's is of, besides batch normalization."""
    for name, table in TABLES.items():
        if isinstance(module, tuple(table)):
            return name
    return None


def target_of_norm(module: Any) -> type:
    """Find the class that `convert` gives a layer of one of these norms; NoCounterpart if none."""
    kind = class_of(module)
    for table in TABLES.values():
        if kind in table:
            return table[kind]
        if kind in table.values():
            return kind
    raise NoCounterpart("a subclass, which may compute something else")
