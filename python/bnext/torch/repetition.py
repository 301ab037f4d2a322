"""Whether a forward pass repeats one, in a form that compiled code checks before every call.

``repetition.repeats`` is true within a backward pass, where a forward pass is a repetition, as
activation checkpointing makes them. Dynamo looks it up when it traces, and its code checks that it
is as it was: so a graph moves running statistics or is one that does not, and has to ask nothing.
"""

from __future__ import annotations

import torch

__all__ = ["backward_task", "repeats"]

backward_task = getattr(torch._C, "_current_graph_task_id", lambda: -1)  # -1: of no backward pass
repeats: bool


def __getattr__(name: str) -> bool:
    if name == "repeats":
        return bool(backward_task() != -1)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
