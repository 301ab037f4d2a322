"""What a layer does with its statistics and parameters in a call, and how that is switched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bnext.array_types import Parameter
from bnext.devices.checks import check_count
from bnext.estimators import Estimator, Exponential

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ModesMixin"]


class ModesMixin:
    """Training and evaluation, the switches beneath them, and `freeze`."""

    training: bool
    use_running_stats: bool | None
    update_running_stats: bool | None
    train_affine: bool
    track_running_stats: bool
    running_mean: Parameter
    running_var: Parameter
    weight: Parameter
    bias: Parameter
    weight_grad: Parameter
    bias_grad: Parameter
    num_batches_tracked: npt.NDArray[np.int64] | None
    estimator: Estimator

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with ``mode=False`` to evaluation mode.

        What `freeze`, or a switch that is not None, has settled stays settled.

        Parameters
        ----------
        mode : bool
            Whether to train.

        Returns
        -------
        BatchNorm
            The layer.
        """
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode.

        Returns
        -------
        BatchNorm
            The layer.
        """
        return self.train(False)

    def freeze(self, *, affine: bool = True) -> Self:
        """Make a constant of the layer, whatever its mode is and becomes.

        It normalizes by its running statistics and leaves them alone, and `backward` is a
        multiplication, which keeps neither the input nor computes gradients of parameters.

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
        if self.running_mean is None or self.running_var is None:
            raise ValueError(
                "freeze: expected a layer with running statistics, got one with "
                f"track_running_stats={self.track_running_stats}"
            )
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

    def _statistics_of_call(self) -> tuple[bool, bool]:
        """Whether a call normalizes by the running statistics, and whether it moves them."""
        uses, moves = self.use_running_stats, self.update_running_stats
        if uses is None:
            uses = not self.training
        if moves is None:
            moves = self.training
        there = self.running_mean is not None or self.running_var is not None
        return uses and there, moves and self.track_running_stats

    def _needs_gradients_of_parameters(self) -> bool:
        return self.train_affine and (self.weight is not None or self.bias is not None)

    # --- the estimator ----------------------------------------------------------------------------

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

    def _weight_of_batch(self, tracked: int | None = None) -> float:
        """Weight that the estimator gives to the batch that is to come.

        `tracked` is the number of batches before it, the layer's counter if not given.
        """
        estimator = self.estimator
        if type(estimator) is Exponential:
            return estimator.momentum  # whatever the counter is, which the kernels check
        if self.num_batches_tracked is None:
            return 0.0  # as PyTorch: an average that cannot count stays
        if tracked is None:
            check_count(self.num_batches_tracked)
            tracked = int(self.num_batches_tracked)
        return estimator.weight(tracked + 1)
