"""The state of a layer: reset, moved, copied, pickled; state dicts that PyTorch reads and writes.

Every function that writes to the layer's arrays writes to all of them, or after an error to none.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.arguments import counter_of, values_of
from bnext.arrays import engine_of
from bnext.arrays.libraries import library_of
from bnext.layers.checks import ARRAYS
from bnext.running import Running
from bnext.writes import Writes

if TYPE_CHECKING:
    from bnext.layers.normalization import Normalization

__all__ = [
    "IncompatibleKeys", "StateDict", "fill", "flattened", "load", "move", "restore", "state_of",
]  # fmt: skip

Array = npt.NDArray[Any]

VERSION = 2  # PyTorch's: since 2, the state has num_batches_tracked
COUNTER = "num_batches_tracked"
NAMES = ("weight", "bias", "running_mean", "running_var", COUNTER)

# Fields of `Running` by the layer's names for them, which pickles have.
OF_RUNNING = {"running_mean": "mean", "running_var": "var", COUNTER: "counter"}
OF_RUNNING |= {"estimator": "estimator", "dtype": "dtype"}
OF_CALLS = ("_latest", "_latest_of", "_moved_at")  # the last two in pickles of older versions


class StateDict(OrderedDict[str, Array]):
    """Arrays by name, with the metadata that PyTorch looks for."""

    _metadata: dict[str, dict[str, int]]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def state_of(layer: Normalization) -> StateDict:
    """Copy the layer's arrays; see `Normalization.state_dict`."""
    state = StateDict((name, _copy(array)) for name, array in _arrays(layer).items())
    state._metadata = {"": {"version": VERSION}}
    return state


def load(layer: Normalization, state_dict: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """Copy values into the layer's arrays; see `Normalization.load_state_dict`."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
    arrays = _arrays(layer)
    metadata = getattr(state_dict, "_metadata", None) or {}
    version = metadata.get("", {}).get("version")
    optional = {COUNTER} if version is None or version < VERSION else set()
    missing = [k for k in arrays if k not in state_dict and k not in optional]
    unexpected = [k for k in state_dict if k not in arrays]

    errors: list[str] = []
    if strict and missing:
        errors.append(f"Missing key(s) in state_dict: {_quoted(missing)}. ")
    if strict and unexpected:
        errors.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
    writes = Writes()
    for name, array in arrays.items():
        if name in state_dict:
            try:
                _add(writes, name, array, state_dict[name], layer.dtype)
            except _SizeError as mismatch:
                errors.append(str(mismatch))
            except Exception as error:  # whatever the library that the value is from raises
                text = f'While copying the parameter named "{name}", got: {error}'
                errors.append(text)
    if errors:
        text = "\n\t".join(errors)
        name = type(layer).__name__
        raise RuntimeError(f"Error(s) in loading state_dict for {name}:\n\t{text}")
    writes.commit()
    return IncompatibleKeys(missing, unexpected)


def fill(layer: Normalization, **values: int) -> None:
    """Fill the arrays of these names, as far as the layer has them."""
    writes = Writes()
    for name, value in values.items():
        if (array := getattr(layer, name)) is not None:
            writes.add(name, array, value, layer.dtype)
    writes.commit()


def move(layer: Normalization, like: Any) -> None:
    """Move the layer's arrays to where `like` is; see `Normalization.to`."""
    library = library_of(like)
    if library is None and not isinstance(like, np.ndarray):
        raise TypeError(f"like: expected an array, got {type(like).__name__}")
    if library is not None and library.immutable:
        raise TypeError(
            f"like: expected an array that can be written, got one of {library.name}; on the "
            "CPU a layer of NumPy arrays takes those"
        )
    engine_of(like, "like")
    moved: dict[str, Any] = {}
    for name in ARRAYS:
        if (array := getattr(layer, name)) is not None:
            values = values_of(array, name)
            moved[name] = values if library is None else library.from_numpy(values, like)
    of_running = {OF_RUNNING[n]: moved.pop(n) for n in OF_RUNNING if n in moved}
    moved["running"] = dataclasses.replace(layer.running, **of_running)
    vars(layer).update(moved | {"_latest": {}})  # all of them at once


def flattened(layer: Normalization) -> dict[str, Any]:
    """Give the attributes of a copy without a latest call; `running` as the arrays in it."""
    state = {name: value for name, value in vars(layer).items() if name not in OF_CALLS}
    running = state.pop("running")
    return state | {name: getattr(running, own) for name, own in OF_RUNNING.items()}


def restore(layer: Normalization, state: Mapping[str, Any]) -> None:
    """Set the attributes that `flattened` gives."""
    state = {name: value for name, value in state.items() if name not in OF_CALLS}
    running = Running(**{own: state[name] for name, own in OF_RUNNING.items()})
    for name in OF_RUNNING.keys() - {"dtype"}:
        del state[name]
    vars(layer).update(state | {"running": running, "_latest": {}})


def _arrays(layer: Normalization) -> dict[str, Array]:
    named = ((name, getattr(layer, name)) for name in NAMES)
    return {name: array for name, array in named if array is not None}


def _copy(array: Any) -> Any:
    library = library_of(array)
    if library is None:
        return array.copy()
    return array if library.immutable else library.copied(array)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class _SizeError(ValueError):
    """A value of another shape, which PyTorch has a text of its own for."""


def _add(writes: Writes, name: str, target: Any, value: Any, dtype: np.dtype[Any]) -> None:
    """Prepare to write `value` to the layer's array of that name."""
    array = values_of(value, name)
    shape = tuple(getattr(target, "shape", ()))
    if array.shape != shape:
        raise _SizeError(
            f"size mismatch for {name}: copying a param with shape {array.shape} from checkpoint, "
            f"the shape in current model is {shape}."
        )
    # Arrays of other libraries have the layer's dtype; NumPy's may have been replaced.
    expected = target.dtype if isinstance(target, np.ndarray) else dtype
    if name == COUNTER:
        counter = counter_of(array, name)
        if expected.kind in "iu" and counter > np.iinfo(expected).max:
            raise ValueError(f"{name}: expected a number that {expected} holds, got {counter}")
        array = np.array(counter)
    elif not np.can_cast(array.dtype, expected, "same_kind"):
        raise TypeError(f"{name}: expected dtype {expected}, got {array.dtype}")
    writes.add(name, target, array, expected)
