"""Arrays of other libraries: where they lie, and what computes on them.

Every engine has the calls of `bnext._core`, with the same arguments, checks and messages: `_core`
itself for arrays on the CPU, of NumPy and of other libraries, and `CudaEngine` for arrays on a GPU.
No library is imported here: an array of it exists, so it is imported already.

Some are whole passes, the others are what groups make passes of: ``collect_stats | apply_norm`` and
``backward_reduce | backward_apply``, with `move_running` and `parameter_gradients` for what else a
pass leaves. What a group exchanges in between is in NumPy arrays of float64, wherever the data is.
"""

from __future__ import annotations

import functools
from typing import Any

from bnext import _core
from bnext.arrays.libraries import library_of
from bnext.arrays.saved import DeviceSaved

__all__ = ["DeviceSaved", "engine_of"]


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
        return _engine_on()(library, x, where, name)
    raise RuntimeError(
        f"{name}: expected an array on the CPU or on a CUDA device, got one on {where}"
    )


@functools.cache  # the statement takes half a microsecond, also when all is imported
def _engine_on() -> Any:
    from bnext.arrays.cuda_engine import engine_on

    return engine_on
