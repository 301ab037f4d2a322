"""Modes of a layer: which statistics its calls use and move, and what trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnext.estimators import Estimator
from bnext.layers.state import Layer
from bnext.running import check_tracked

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Modes", "TrainingMode"]


class TrainingMode:
    """A layer in training or in evaluation mode. Subclasses set `training`."""

    training: bool

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with ``mode=False`` to evaluation mode.

        The mode changes nothing where statistics are always the input's, as in LayerNorm, and it
        does not change what `freeze`, or a switch that is not None, has set.

        Parameters
        ----------
        mode : bool
            Whether to train.

        Returns
        -------
        Self
            The layer.
        """
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode.

        Returns
        -------
        Self
            The layer.
        """
        return self.train(False)


class Modes(TrainingMode, Layer):
    """A layer with modes. Subclasses set the attributes."""

    track_running_stats: bool
    use_running_stats: bool | None
    update_running_stats: bool | None
    train_affine: bool
    estimator: Estimator

    def freeze(self, *, affine: bool = True) -> Self:
        """Make a constant of the layer, in every mode.

        It normalizes by its running statistics and leaves them alone, and `backward` is a
        multiplication: it neither needs the input nor computes gradients of parameters. (After an
        activation, it needs the input for the derivative.)

        Parameters
        ----------
        affine : bool
            Whether `weight` and `bias` are constants as well. Their gradients become None.

        Returns
        -------
        BatchNorm
            The layer.

        Raises
        ------
        ValueError
            The layer has no running statistics.
        """
        check_tracked(self, "freeze")
        switches: dict[str, object] = {"use_running_stats": True, "update_running_stats": False}
        if affine:
            switches |= {"train_affine": False, "weight_grad": None, "bias_grad": None}
        vars(self).update(switches)  # all of them at once
        return self

    def unfreeze(self) -> Self:
        """Undo `freeze`: the mode decides again, and parameters train.

        Returns
        -------
        BatchNorm
            The layer.
        """
        vars(self).update(use_running_stats=None, update_running_stats=None, train_affine=True)
        return self

    @property
    def frozen(self) -> bool:
        """Whether the statistics are constants in every mode, as after `freeze`."""
        return self.use_running_stats is True and self.update_running_stats is False

    def _trains_parameters(self) -> bool:
        return self.train_affine and (self.weight is not None or self.bias is not None)

    def statistics_of_call(self) -> tuple[bool, bool]:
        """Whether a call normalizes by the running statistics, and whether it moves them."""
        uses, moves = self.use_running_stats, self.update_running_stats
        if uses is None:
            uses = not self.training
        if moves is None:
            moves = self.training
        if uses:
            uses = self.running.mean is not None or self.running.var is not None
        return uses, moves and self.track_running_stats

    @property
    def momentum(self) -> float | None:
        """Weight of the new batch, of the layer's `estimator`; None in a cumulative average."""
        return self.estimator.momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self.estimator = self.estimator.with_momentum(value)

    @property
    def decay(self) -> float | None:
        """``1 - momentum``; None in a cumulative average."""
        return self.estimator.decay

    @decay.setter
    def decay(self, value: float) -> None:
        self.estimator = self.estimator.with_decay(value)
