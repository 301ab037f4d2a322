"""`Convention`: what a library calls the numbers of batch normalization, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnext.inference.conventions.rules import Start

__all__ = ["Convention"]

Form = Literal["vector", "keepdims"]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One library's way to store a batch normalization.

    Everything else follows from these facts: no library has code of its own. Names of arrays are
    the library's, flat: what is nested there is joined with ``/``.
    """

    title: str
    names: tuple[str, str, str, str]  # of weight, bias, mean and variance
    releases: str = ""  # that were run; empty: by its documentation

    # Hyperparameters. None: the library has no default, and it must be given.
    eps: float | None = 1e-5
    eps_name: str = "eps"
    momentum: float | None = 0.9  # in the library's own meaning
    momentum_name: str = "momentum"
    momentum_weighs: Literal["new", "old"] = "old"  # what a number of that name weighs
    channel_axis: int = 1

    # The running statistics. `start` is None for libraries that only infer, and keep what they get.
    start: Start | None = "blended"
    bessel: bool | None = False  # of the stored variance; None: it depends, and must be given
    bessel_depends: str = ""  # on what
    moves_bessel: bool | None = None  # of batches to come, where the stored variance is another's
    cumulative: bool = False  # whether momentum None means the cumulative average

    # Further arrays.
    counters: tuple[str, ...] = ()
    counts: Literal["batches", "cumulative"] = "batches"  # of which average a counter counts steps
    hidden: tuple[str, str] | None = None  # mean and variance before the division by 1 - d^k
    factor: str = ""  # a number that mean and variance are to be divided by
    first_flag: str = ""  # a flag that no batch has come yet
    unit_weight_flag: str = ""  # a flag by which the weight is 1, whatever is stored
    unit_weight: bool | None = None  # its default; None: it must be given where that matters
    dropped: tuple[str, ...] = ()  # arrays that are known, and have no use here

    # The form of the arrays and of their names.
    form: Form = "vector"  # (C,), or the input's axes with 1 at all but the channels'
    form_of: tuple[str, ...] = ()  # arrays that have it; empty: all
    trailing: tuple[str, ...] = ()  # arrays (C, 1, ..., 1): 1 at the axes after the channels'
    ndim: int = 2  # of the input, where the form depends on it
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names, and what they stand for
    collections: tuple[str, ...] = ()  # what may stand before the prefix of an array's name
    prefixes: tuple[str, ...] = ()  # what may stand before a name where no prefix is given
    separator: str = "."  # in the names of a whole checkpoint
    underscores: bool = False  # whether a prefix may end in one
    needs_parameters: bool = False  # weight and bias cannot be left out
    folded: bool = False  # weight and bias are a scale and a shift; there are no statistics
    least_std: float = 0.0  # taken for sqrt(var + eps) = 0

    note: str = ""

    @property
    def divided(self) -> bool:
        """Whether what is stored is divided by 1 - d^k before use, and not before it is stored."""
        return self.start == "divided"

    @property
    def decay(self) -> float | None:
        """The default weight of the old average."""
        if self.momentum is None or self.momentum_weighs == "old":
            return self.momentum
        return 1.0 - self.momentum

    def optional_names(self) -> set[str]:
        """Names, besides the four arrays', that may be given with them."""
        named = (self.factor, self.first_flag, self.unit_weight_flag, *(self.hidden or ()))
        return {name for name in (*named, *self.counters, *self.dropped) if name}

    def hyperparameters(self) -> set[str]:
        """Names of the numbers that may be given with the arrays."""
        names = {self.eps_name}
        return names | ({self.momentum_name} if self.start is not None else set())
