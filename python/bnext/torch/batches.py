"""Batches as loaders give them, and the arguments that a model takes of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["caller", "device_of"]


def device_of(model: torch.nn.Module, device: Any) -> torch.device | None:
    """Give the device of a model's first parameter, unless another is wanted; None without any."""
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    return None if first is None or first.device.type == "meta" else first.device


def caller(
    model: torch.nn.Module, call: Callable[[torch.nn.Module, Any], Any] | None, device: Any
) -> Callable[[Any], Any]:
    """Give a function that calls the model with a batch, which it brings to the device."""
    if call is not None:
        if not callable(call):
            raise TypeError(f"call: expected a callable, got {type(call).__name__}")
        return lambda batch: call(model, moved(batch, device))
    signature = _signature_of(model)
    parameters = signature.parameters.values()
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    positional = [
        each for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        and each.default is each.empty
    ]  # fmt: skip
    count = max(len(positional), 1)

    def run(batch: Any) -> Any:
        batch = moved(batch, device)
        if isinstance(batch, Mapping):
            if len(positional) == 1 and positional[0].name not in batch:
                return model(batch)
            named = {k: v for k, v in batch.items() if takes_any or k in signature.parameters}
            return model(**named)
        if isinstance(batch, tuple | list):
            if len(batch) < count:
                raise ValueError(
                    f"loader: expected batches of at least {count} elements, as many as the "
                    f"model's forward has arguments, got one of {len(batch)}"
                )
            return model(*batch[:count])
        return model(batch)

    return run


def _signature_of(model: torch.nn.Module) -> inspect.Signature:
    """Give the arguments of a model, or of the one in a wrapper (`DistributedDataParallel`)."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return inspect.signature(lambda x: x)
    passes_on = {each.kind for each in signature.parameters.values()} == {
        inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD,
    }  # fmt: skip
    children = list(model.children())
    return _signature_of(children[0]) if passes_on and len(children) == 1 else signature


def moved(batch: Any, device: Any) -> Any:
    """Bring the tensors of a batch to a device: of dicts, tuples, lists, and what has ``to``."""
    if device is None:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(each, device) for each in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(each, device) for each in batch)
    if callable(getattr(batch, "to", None)):  # batches of other packages, also dicts of theirs
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(each, device) for name, each in batch.items()}
    return batch
