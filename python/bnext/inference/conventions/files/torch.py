"""PyTorch's state dicts, read by ``torch.load(weights_only=True)``, which runs no code."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

from bnext.arguments import values_of
from bnext.inference.conventions.files.contents import Contents, library

__all__ = ["read_state_dict"]

CONVENTIONS = ("pytorch", "torch-geometric", "thunder", "e3nn")  # of libraries over PyTorch
WRONG = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, struct.error)
CONTAINERS = ("state_dict", "model_state_dict", "model")  # of checkpoints with more in them


def read_state_dict(path: Path) -> Contents:
    """Read a state dict, or a checkpoint with one in it."""
    torch = library("torch", "PyTorch's files")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except WRONG as error:
        first = (str(error).strip().splitlines() or ["nothing"])[0].partition(". ")[0]
        raise ValueError(
            f"{path}: expected a state dict that torch.load reads with weights_only=True (save "
            f"model.state_dict(), not the model), got: {first}"
        ) from None
    for name in CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a state dict, got a {type(state).__name__}")
    arrays: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            if value.dtype is torch.bfloat16:
                value = value.float()  # exactly
            arrays[str(name)] = values_of(value.detach(), str(name))
    return Contents(arrays, CONVENTIONS, writer="PyTorch")
