"""What a layer holds: its arrays, filled, moved, copied, pickled; state dicts of PyTorch's kind.

Whatever writes to the layer's arrays writes to all of them, or after an error to none.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.arguments import counter_of, index_of, values_of
from bnext.array_types import AnyArray, Parameter
from bnext.arrays import engine_of
from bnext.arrays.libraries import library_of
from bnext.estimators import Estimator
from bnext.groups.visits import Latest
from bnext.layers.checks import ARRAYS
from bnext.running import Running
from bnext.writes import Writes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["IncompatibleKeys", "Layer", "StateDict"]

Array = npt.NDArray[Any]

VERSION = 2  # PyTorch's: since 2, the state has num_batches_tracked
COUNTER = "num_batches_tracked"
NAMES = ("weight", "bias", "running_mean", "running_var", COUNTER)

# Fields of `Running` by the layer's names for them, which pickles have.
OF_RUNNING = {"running_mean": "mean", "running_var": "var", COUNTER: "counter"}
OF_RUNNING |= {"estimator": "estimator", "dtype": "dtype", "num_batches_skipped": "skipped"}
OF_CALLS = ("_latest", "_latest_of", "_moved_at")  # the last two in pickles of older versions


class StateDict(OrderedDict[str, Array]):
    """Arrays by name, with the metadata that PyTorch looks for."""

    _metadata: dict[str, dict[str, int]]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found missing, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def of_running(name: str) -> Any:
    """Make an attribute of a layer that its `Running` has, under another name."""

    def set_it(layer: Layer, value: Any) -> None:
        setattr(layer.running, name, value)

    return property(operator.attrgetter(f"running.{name}"), set_it)


class Layer:
    """Parameters for each channel, running statistics, and what is done with all of them.

    Subclasses set `running`.
    """

    running: Running
    running_kind: ClassVar[type[Running]] = Running

    running_mean: Parameter = of_running("mean")
    running_var: Parameter = of_running("var")
    num_batches_tracked: npt.NDArray[np.int64] | None = of_running("counter")
    num_batches_skipped: npt.NDArray[np.int64] | None = of_running("skipped")
    estimator: Estimator = of_running("estimator")
    skip_nonfinite: bool = of_running("skips")

    def __init__(self, num_features: int, affine: bool, dtype: npt.DTypeLike) -> None:
        self.num_features = index_of(num_features, "num_features")
        if self.num_features < 0:
            raise ValueError(f"num_features: expected an integer >= 0, got {num_features}")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"dtype: expected dtype float32 or float64, got {self.dtype}")
        self.affine = bool(affine)
        self.weight: Parameter = np.ones(self.num_features, self.dtype) if affine else None
        self.bias: Parameter = np.zeros(self.num_features, self.dtype) if affine else None
        self.weight_grad: Parameter = None
        self.bias_grad: Parameter = None
        # The input of the latest forward call and what it saved, until backward consumes them; in a
        # group, of each member by its rank.
        self._latest: Latest = {}

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
        """Set the running mean to 0, the running variance to 1 and the counters to 0.

        Raises
        ------
        ValueError, TypeError
            One of them cannot be written; then none has changed.
        """
        self._fill(running_mean=0, running_var=1, num_batches_tracked=0, num_batches_skipped=0)

    def reset_parameters(self) -> None:
        """Reset the running statistics; set `weight` to 1 and `bias` to 0.

        Raises
        ------
        ValueError, TypeError
            An array cannot be written; then none has changed.
        """
        self._fill(
            running_mean=0, running_var=1, num_batches_tracked=0, num_batches_skipped=0, weight=1,
            bias=0,
        )  # fmt: skip

    def to(self, like: AnyArray) -> Self:
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
        moved: dict[str, Any] = {}
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                values = values_of(array, name)
                moved[name] = values if library is None else library.from_numpy(values, like)
        of_running = {OF_RUNNING[n]: moved.pop(n) for n in OF_RUNNING if n in moved}
        moved["running"] = dataclasses.replace(self.running, **of_running)
        vars(self).update(moved | {"_latest": {}})  # all of them at once
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Give all attributes but the latest call, which copies and pickles do not have."""
        state = {name: value for name, value in vars(self).items() if name not in OF_CALLS}
        running = state.pop("running")
        return state | {name: getattr(running, own) for name, own in OF_RUNNING.items()}

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

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that `__getstate__` gives."""
        state = {name: value for name, value in state.items() if name not in OF_CALLS}
        state.setdefault("num_batches_skipped", None)  # in pickles of older versions
        running = self.running_kind(**{own: state[name] for name, own in OF_RUNNING.items()})
        for name in OF_RUNNING.keys() - {"dtype"}:
            del state[name]
        vars(self).update(state | {"running": running, "_latest": {}})

    def _fill(self, **values: int) -> None:
        """Fill the arrays of these names, as far as the layer has them."""
        writes = Writes()
        for name, value in values.items():
            if (array := getattr(self, name)) is not None:
                writes.add(name, array, value, self.dtype)
        writes.commit()

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
