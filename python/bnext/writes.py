"""Writing to several arrays at once: all of them, or after an error none."""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bnext.arguments import refuse_mask
from bnext.arrays.libraries import Library, library_of, to_numpy

__all__ = ["Writes", "check_writeable"]


class _Write(NamedTuple):
    target: Any
    name: str
    values: Any
    library: Library | None


class Writes:
    """Values for arrays, prepared one by one and written together.

    `add` does all that can fail: it checks the target, converts the values and brings them to
    where the target is. `commit` only copies. NumPy arrays are written in one call of C, in which
    no signal handler runs, so that Ctrl-C comes before all of them or after. Arrays of other
    libraries are written before those, and get their old values back if one fails.
    """

    def __init__(self) -> None:
        self._writes: dict[int, _Write] = {}  # by the identity of the target

    def add(self, name: str, target: Any, values: Any, dtype: npt.DTypeLike) -> None:
        """Prepare to write `values` to `target`, an array of any library that errors call `name`.

        `values` are in NumPy's memory: of the shape of `target`, or a number for each element. They
        are rounded to the dtype of a NumPy array, to `dtype` for another library.

        Raises
        ------
        TypeError
            `target` is not an array, has a mask, or is of a library whose arrays are immutable.
        ValueError
            It is read-only, or of another shape than `values`.
        """
        check_writeable(name, target)
        shape = tuple(target.shape)
        if np.ndim(values) and np.shape(values) != shape:
            raise ValueError(f"{name}: expected shape {np.shape(values)}, got {shape}")
        library = library_of(target)
        prepared: Any = np.empty(shape, target.dtype if library is None else dtype)
        with np.errstate(all="ignore"):  # rounding says nothing of overflow, as kernels do not
            prepared[...] = values
        if library is not None:
            prepared = library.from_numpy(prepared, target)
        self._writes[id(target)] = _Write(target, name, prepared, library)

    def pending(self, target: Any) -> Any:
        """Give what `target` is going to be, as a NumPy array: what was added last, or it now."""
        write = self._writes.get(id(target))
        return to_numpy(target if write is None else write.values)

    def commit(self) -> None:
        """Write everything."""
        numpys = [write for write in self._writes.values() if write.library is None]
        others = [write for write in self._writes.values() if write.library is not None]
        before: list[tuple[Library, Any, Any]] = []
        done: list[bool] = []
        targets, prepared = [w.target for w in numpys], [w.values for w in numpys]
        setting = map(np.ndarray.__setitem__, targets, repeat(...), prepared)
        steps = chain(setting, map(done.append, (True,)))
        try:
            for target, name, values, library in others:
                assert library is not None
                target = library.readable(target, name)
                before.append((library, target, library.copied(target)))
                library.copy_into(target, values)
            deque(steps, maxlen=0)
        except BaseException:
            if not done:
                for library, target, values in before:
                    with contextlib.suppress(Exception):  # where it failed, nothing was written
                        library.copy_into(target, values)
            raise


def check_writeable(name: str, target: Any) -> None:
    """Refuse what `Writes.add` refuses of a target; see there."""
    refuse_mask(target, name)
    library = library_of(target)
    if library is None:
        if not isinstance(target, np.ndarray):
            raise TypeError(f"{name}: expected an array, got {type(target).__name__}")
        if not target.flags.writeable:
            raise ValueError(
                f"{name}: expected a writeable array, got a read-only one ({name}.copy() is "
                "writeable)"
            )
        return
    if library.immutable:
        raise TypeError(f"{name}: expected an array that can be written, got one of {library.name}")
    library.readable(target, name)
