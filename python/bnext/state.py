"""State dicts that move either way between these layers and PyTorch's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.devices.libraries import library_of, to_numpy

__all__ = ["IncompatibleKeys", "StateDict", "StateMixin"]

Array = npt.NDArray[Any]

VERSION = 2  # PyTorch's: since 2, the state has num_batches_tracked
NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class StateDict(OrderedDict[str, Array]):
    """Arrays by name, with the metadata that PyTorch looks for."""

    _metadata: dict[str, dict[str, int]]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class StateMixin:
    """`state_dict` and `load_state_dict` of a layer whose arrays have the names in `NAMES`."""

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
            converted to the layer's dtype, as PyTorch does. A checkpoint from before the counter
            existed keeps the current one.
        strict : bool
            Whether missing and unexpected names are errors.

        Returns
        -------
        IncompatibleKeys
            With `missing_keys` and `unexpected_keys`.

        Raises
        ------
        RuntimeError
            A value has another shape, or cannot become the layer's dtype; with `strict` also a
            missing or unexpected name. Nothing was changed then.
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
        values: dict[str, Array] = {}
        for name, array in arrays.items():
            if name in state_dict:
                # Arrays of other libraries have the layer's dtype; NumPy's may have been replaced.
                dtype = array.dtype if isinstance(array, np.ndarray) else self.dtype
                shape = tuple(array.shape)
                values[name] = _converted(name, state_dict[name], shape, dtype, errors)
        if errors:
            text = "\n\t".join(errors)
            name = type(self).__name__
            raise RuntimeError(f"Error(s) in loading state_dict for {name}:\n\t{text}")
        for name, value in values.items():
            array, library = arrays[name], library_of(arrays[name])
            if library is None:
                array[...] = value
            else:
                library.copy_into(array, library.from_numpy(value, array))
        return IncompatibleKeys(missing, unexpected)

    def _arrays(self) -> dict[str, Array]:
        named = ((name, getattr(self, name)) for name in NAMES)
        return {name: array for name, array in named if array is not None}


def _copy(array: Any) -> Any:
    library = library_of(array)
    return array.copy() if library is None else library.copied(array)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _converted(
    name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], errors: list[str]
) -> Array:
    try:
        array = to_numpy(value)
    except Exception as error:  # whatever the library that the value is from raises
        errors.append(f'While copying the parameter named "{name}", got: {error}')
        return np.empty(shape, dtype)
    if array.shape != shape:
        errors.append(
            f"size mismatch for {name}: copying a param with shape {array.shape} from checkpoint, "
            f"the shape in current model is {shape}."
        )
    elif not np.can_cast(array.dtype, dtype, "same_kind"):
        errors.append(
            f'While copying the parameter named "{name}", expected dtype {dtype}, got {array.dtype}'
        )
    else:
        return array.astype(dtype)
    return array
