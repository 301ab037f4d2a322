"""What layers of every norm hold: arrays, filled, moved, copied; state dicts of PyTorch's kind.

Whatever writes to the layer's arrays writes to all of them, or after an error to none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.arguments import counter_of, values_of
from bnext.array_types import AnyArray
from bnext.arrays import engine_of
from bnext.arrays.libraries import library_of
from bnext.writes import Writes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["COUNTER", "Holder", "IncompatibleKeys", "StateDict", "parameter_dtype"]

Array = npt.NDArray[Any]

COUNTED_SINCE = 2  # the version of PyTorch's state dicts that have num_batches_tracked
COUNTER = "num_batches_tracked"


class StateDict(OrderedDict[str, Array]):
    """Arrays by name, with the metadata that PyTorch looks for."""

    _metadata: dict[str, dict[str, int]]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def parameter_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Give the dtype of a layer's parameters, if it is one that they can have."""
    taken = np.dtype(dtype)
    if taken not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected dtype float32 or float64, got {taken}")
    return taken


class Holder:
    """Arrays by name, and what is done with all of them.

    Subclasses set `dtype` and the arrays, and say how they are copied and pickled.
    """

    names: ClassVar[tuple[str, ...]]  # of the state
    movable: ClassVar[tuple[str, ...]]  # arrays that `to` moves
    version: ClassVar[int]  # of the state dict, as PyTorch counts

    dtype: np.dtype[Any]

    def __getstate__(self) -> dict[str, Any]:
        """Give all attributes but the latest call, which copies and pickles do not have."""
        return {name: value for name, value in vars(self).items() if name != "_latest"}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that `__getstate__` gives."""
        vars(self).update({**state, "_latest": {}})

    def state_dict(self) -> StateDict:
        """Give the arrays by name.

        Returns
        -------
        StateDict
            Copies of the parameters and of running statistics (of the layer's dtype) and
            `num_batches_tracked` (shape (), int64), as far as the layer has them; each where the
            layer's own is.
        """
        state = StateDict((name, _copy(array)) for name, array in self._arrays().items())
        state._metadata = {"": {"version": self.version}}
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy arrays into the layer's own arrays.

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
        optional = {COUNTER} if version is None or version < COUNTED_SINCE else set()
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

    def to(self, like: AnyArray) -> Self:
        """Move parameters, their gradients and running statistics to where an array is.

        Parameters
        ----------
        like : array
            Of the library and on the device that the layer's arrays are to have; a NumPy array
            brings them back. The counter of batches stays on the CPU.

        Returns
        -------
        Self
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
        moved: dict[str, Any] = {}
        for name in self.movable:
            if (array := getattr(self, name)) is not None:
                values = values_of(array, name)
                moved[name] = values if library is None else library.from_numpy(values, like)
        self._move(moved)
        return self

    def _move(self, moved: dict[str, Any]) -> None:
        """Take arrays by the names of attributes, all of them at once."""
        vars(self).update(moved | {"_latest": {}})

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        """Set the attributes; arrays that cannot be written are copied.

        Pickles have such arrays where buffers lie elsewhere: memory maps of joblib, shared memory.
        """
        read_only = {
            name: np.array(value)
            for name, value in attributes.items()
            if isinstance(value, np.ndarray) and not value.flags.writeable
        }
        self._restore(attributes | read_only)

    def __copy__(self) -> Self:
        """Make a layer with the same arrays and no latest call."""
        other = type(self).__new__(type(self))
        other._restore(self.__getstate__())
        return other

    def _fill(self, **values: int) -> None:
        """Fill the arrays of these names, as far as the layer has them."""
        writes = Writes()
        for name, value in values.items():
            if (array := getattr(self, name)) is not None:
                writes.add(name, array, value, self.dtype)
        writes.commit()

    def _arrays(self) -> dict[str, Array]:
        named = ((name, getattr(self, name)) for name in self.names)
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
