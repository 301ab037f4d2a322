"""What a layer holds: reset, moved, copied, pickled; state dicts that are PyTorch's both ways.

Whatever writes to the layer's arrays writes to all of them, or after an error to none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bnext.arguments import counter_of, values_of
from bnext.array_types import AnyArray
from bnext.devices import engine_of
from bnext.devices.libraries import library_of
from bnext.layer_checks import ARRAYS
from bnext.writes import Writes

__all__ = ["IncompatibleKeys", "StateDict", "StateMixin"]

Array = npt.NDArray[Any]
Layer = TypeVar("Layer", bound="StateMixin")

VERSION = 2  # PyTorch's: since 2, the state has num_batches_tracked
COUNTER = "num_batches_tracked"
NAMES = ("weight", "bias", "running_mean", "running_var", COUNTER)


class StateDict(OrderedDict[str, Array]):
    """Arrays by name, with the metadata that PyTorch looks for."""

    _metadata: dict[str, dict[str, int]]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class StateMixin:
    """The state of a layer whose arrays have the names in `NAMES` and `ARRAYS`."""

    dtype: np.dtype[Any]

    def state_dict(self) -> StateDict:
        """Parameters and running statistics by name.

        Returns
        -------
        StateDict
            Copies of `weight`, `bias`, `running_mean`, `running_var` (shape (C,), the layer's
            dtype) and `num_batches_tracked` (shape (), int64), as far as the layer has them; each
            where the layer's own is.
        """
        state = StateDict((name, _copy(array)) for name, array in self._arrays().items())
        state._metadata = {"": {"version": VERSION}}
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy parameters and running statistics into the layer's own arrays.

        Parameters
        ----------
        state_dict : mapping of str to array
            From `state_dict`, or from a PyTorch layer, of any library and on any device. Values are
            converted to the layer's dtype, as PyTorch does; the counter may be of any dtype, if it
            is a whole number that int64 holds. A checkpoint from before the counter existed keeps
            the current one.
        strict : bool
            Whether missing and unexpected names are errors.

        Returns
        -------
        IncompatibleKeys
            With `missing_keys` and `unexpected_keys`.

        Raises
        ------
        RuntimeError
            A value has another shape, a mask, or cannot become the layer's dtype; an array of the
            layer cannot be written; with `strict` also a missing or unexpected name. Nothing was
            changed then.
        TypeError
            `state_dict` is not a mapping.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        arrays = self._arrays()
        metadata = getattr(state_dict, "_metadata", None) or {}
        version = metadata.get("", {}).get("version")
        optional = {"num_batches_tracked"} if version is None or version < VERSION else set()
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
                    _add(writes, name, array, state_dict[name], self.dtype)
                except _SizeError as mismatch:
                    errors.append(str(mismatch))
                except Exception as error:  # whatever the library that the value is from raises
                    text = f'While copying the parameter named "{name}", got: {error}'
                    errors.append(text)
        if errors:
            text = "\n\t".join(errors)
            name = type(self).__name__
            raise RuntimeError(f"Error(s) in loading state_dict for {name}:\n\t{text}")
        writes.commit()
        return IncompatibleKeys(missing, unexpected)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the counter to 0.

        Raises
        ------
        ValueError, TypeError
            One of them cannot be written; then none has changed.
        """
        self._set(running_mean=0, running_var=1, num_batches_tracked=0)

    def reset_parameters(self) -> None:
        """Reset the running statistics; set `weight` to 1 and `bias` to 0.

        Raises
        ------
        ValueError, TypeError
            An array cannot be written; then none has changed.
        """
        self._set(running_mean=0, running_var=1, num_batches_tracked=0, weight=1, bias=0)

    def _set(self, **values: int) -> None:
        """Fill the arrays of these names, as far as the layer has them."""
        writes = Writes()
        for name, value in values.items():
            if (array := getattr(self, name)) is not None:
                writes.add(name, array, value, self.dtype)
        writes.commit()

    def to(self: Layer, like: AnyArray) -> Layer:
        """Move parameters, their gradients and the running statistics to where an array is.

        Parameters
        ----------
        like : array
            Of the library and on the device that the layer's arrays are to have; a NumPy array
            brings them back. The counter of batches stays on the CPU.

        Returns
        -------
        BatchNorm
            The layer. A forward call before is forgotten, as if `backward` had consumed it.

        Raises
        ------
        TypeError
            `like` is no array, or of a library whose arrays cannot be written: on the CPU, NumPy
            arrays serve that library as well.
        RuntimeError
            `like` is on a device on which bnext cannot compute.
        """
        library = library_of(like)
        if library is None and not isinstance(like, np.ndarray):
            raise TypeError(f"like: expected an array, got {type(like).__name__}")
        if library is not None and library.immutable:
            raise TypeError(
                f"like: expected an array that can be written, got one of {library.name}; on the "
                "CPU a layer of NumPy arrays takes those"
            )
        engine_of(like, "like")
        moved: dict[str, Any] = {"_latest": None, "_latest_of": {}}
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                values = values_of(array, name)
                moved[name] = values if library is None else library.from_numpy(values, like)
        vars(self).update(moved)  # all of them at once
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the latest call: a copy, or what comes out of a pickle, has had none."""
        return vars(self) | {"_latest": None, "_latest_of": {}, "_moved_at": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state over; arrays that cannot be written are copied.

        They come from pickles whose buffers lie elsewhere: memory maps of joblib, shared memory.
        """
        for name, value in state.items():
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                state = state | {name: np.array(value)}
        vars(self).update(state)

    def __copy__(self: Layer) -> Layer:
        """Make a layer with the same arrays, which has had no call."""
        other = type(self).__new__(type(self))
        vars(other).update(self.__getstate__())
        return other

    def _arrays(self) -> dict[str, Array]:
        named = ((name, getattr(self, name)) for name in NAMES)
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
