"""What a layer with a value for each channel holds: parameters and running statistics."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnext.arguments import index_of
from bnext.array_types import Parameter
from bnext.estimators import Estimator
from bnext.groups.visits import Latest
from bnext.layers.checks import ARRAYS
from bnext.layers.holder import COUNTER, Holder, IncompatibleKeys, StateDict, parameter_dtype
from bnext.running import Running

__all__ = ["IncompatibleKeys", "Layer", "StateDict"]

# Fields of `Running` by the layer's names for them, which pickles have.
OF_RUNNING = {"running_mean": "mean", "running_var": "var", COUNTER: "counter"}
OF_RUNNING |= {"estimator": "estimator", "dtype": "dtype", "num_batches_skipped": "skipped"}
OF_CALLS = ("_latest", "_latest_of", "_moved_at")  # the last two in pickles of older versions


def of_running(name: str) -> Any:
    """Make an attribute of a layer that its `Running` has, under another name."""

    def set_it(layer: Layer, value: Any) -> None:
        setattr(layer.running, name, value)

    return property(operator.attrgetter(f"running.{name}"), set_it)


class Layer(Holder):
    """Parameters for each channel, running statistics, and what is done with all of them.

    Subclasses set `running`.
    """

    names: ClassVar[tuple[str, ...]] = ("weight", "bias", "running_mean", "running_var", COUNTER)
    movable: ClassVar[tuple[str, ...]] = ARRAYS
    version = 2

    running: Running
    running_kind: ClassVar[type[Running]] = Running

    running_mean: Parameter = of_running("mean")
    running_var: Parameter = of_running("var")
    num_batches_tracked: npt.NDArray[np.int64] | None = of_running("counter")
    num_batches_skipped: npt.NDArray[np.int64] | None = of_running("skipped")
    estimator: Estimator = of_running("estimator")
    skip_nonfinite: bool = of_running("skips")

    def __init__(self, num_features: int, affine: bool, dtype: npt.DTypeLike) -> None:
        self.num_features: int = index_of(num_features, "num_features")
        if self.num_features < 0:
            raise ValueError(f"num_features: expected an integer >= 0, got {num_features}")
        self.dtype: np.dtype[Any] = parameter_dtype(dtype)
        self.affine: bool = bool(affine)
        self.weight: Parameter = np.ones(self.num_features, self.dtype) if affine else None
        self.bias: Parameter = np.zeros(self.num_features, self.dtype) if affine else None
        self.weight_grad: Parameter = None
        self.bias_grad: Parameter = None
        # The input of the latest forward call and what it saved, until backward consumes them; in a
        # group, of each member by its rank.
        self._latest: Latest = {}

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

    def _move(self, moved: dict[str, Any]) -> None:
        of_running = {OF_RUNNING[n]: moved.pop(n) for n in OF_RUNNING if n in moved}
        super()._move(moved | {"running": dataclasses.replace(self.running, **of_running)})

    def __getstate__(self) -> dict[str, Any]:
        """Give all attributes but the latest call, which copies and pickles do not have."""
        state = {name: value for name, value in vars(self).items() if name not in OF_CALLS}
        running = state.pop("running")
        return state | {name: getattr(running, own) for name, own in OF_RUNNING.items()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the attributes that `__getstate__` gives."""
        state = {name: value for name, value in state.items() if name not in OF_CALLS}
        state.setdefault("num_batches_skipped", None)  # in pickles of older versions
        running = self.running_kind(**{own: state[name] for name, own in OF_RUNNING.items()})
        for name in OF_RUNNING.keys() - {"dtype"}:
            del state[name]
        vars(self).update(state | {"running": running, "_latest": {}})
