"""Arrays of other libraries: where they lie, and what computes on them.

Every engine has the calls of `bnext._core`, with the same arguments, checks and messages: `_core`
itself for arrays on the CPU, of NumPy and of other libraries, and for arrays of one library on one
GPU what `_core.calls_on` makes. No library is imported here: an array of it exists, so it is
imported already.

Some are whole passes, the others are what groups make passes of: ``collect_stats | apply_norm`` and
``backward_reduce | backward_apply``, with `move_running` and `parameter_gradients` for what else a
pass leaves. What a group exchanges in between is in NumPy arrays of float64, wherever the data is.
"""

from __future__ import annotations

from typing import Any

from bnext import _core, cuda
from bnext._core import DeviceRowSaved, DeviceSaved
from bnext.arrays.libraries import Library, Where, library_of

__all__ = ["DeviceRowSaved", "DeviceSaved", "engine_of"]


def engine_of(x: Any, name: str = "x") -> Any:
    """Find what computes on `x`, which errors call `name`; RuntimeError if nothing does."""
    library = library_of(x)
    if library is None:
        return _core
    where = library.where(x)
    if where.kind == "cpu":
        return _core
    if where.kind == "cuda" and library.immutable:
        raise RuntimeError(
            f"{name}: expected an array on the CPU, got one on {where}; there bnext would have to "
            f"write to arrays of {library.name}, which cannot be written"
        )
    if where.kind == "cuda":
        return _engine_on(library, x, where, name)
    raise RuntimeError(
        f"{name}: expected an array on the CPU or on a CUDA device, got one on {where}"
    )


_ENGINES: dict[Any, Any] = {}


def _engine_on(library: Library, x: Any, where: Where, name: str) -> Any:
    try:
        kernels = cuda._load()
        key = library, where.index, kernels
        if where.index >= 0 and key in _ENGINES:
            return _ENGINES[key]
        if where.index < 0 and kernels.device_count():  # only the address of x tells on which
            where = Where("cuda", kernels.device_of(library.view(x, name).address))
            key = library, where.index, kernels
        problem = cuda._problem_of(kernels, where.index)
    except ImportError as error:
        problem = str(error)
    if problem:
        raise RuntimeError(
            f"{name}: got an array on {where}, and bnext cannot compute there: {problem}"
        )
    if key not in _ENGINES:
        _ENGINES.setdefault(key, _core.calls_on(kernels, library, where.index))
    return _ENGINES[key]
