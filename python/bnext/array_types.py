"""How arrays of any library are typed: a result is of the type of the array that came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Union

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["AnyArray", "Array", "ArrayT", "NumpyT", "Parameter", "Values"]


class AnyArray(Protocol):
    """What arrays of NumPy, PyTorch, JAX and CuPy have in common."""

    @property
    def shape(self) -> Any:
        """Lengths of the axes."""

    @property
    def dtype(self) -> Any:
        """What the elements are, as the library says it."""


Array = npt.NDArray[Any]
ArrayT = TypeVar("ArrayT", bound=AnyArray)
NumpyT = TypeVar("NumpyT", bound=np.ndarray[Any, Any])

# What serves as a parameter: an array of any library, or what NumPy makes one of.
Values: TypeAlias = Union[AnyArray, npt.ArrayLike]  # noqa: UP007 - evaluated by Python 3.10

# A layer's array: NumPy's at first, None where the layer has none, another library's after `to`.
Parameter: TypeAlias = Union[npt.NDArray[Any], Any]  # noqa: UP007
