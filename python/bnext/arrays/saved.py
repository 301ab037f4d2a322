"""What a forward call on a GPU leaves for its backward call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnext.rows import ROW

if TYPE_CHECKING:
    from bnext import _core

__all__ = ["DeviceSaved"]


class DeviceSaved:
    """What a forward call on a GPU leaves for its backward call: as `Saved`, on the device.

    Calls make it. Whether `x` has changed since is not noticed here, as it is on the CPU: to look
    at its elements would mean to wait for the device.

    Attributes
    ----------
    count : int
        Values per channel.
    mean, m2, var, rstd, mean_low : array of float64, shape (C,)
        Of the library and on the device of `x`.
    eps : float
        What was added to the variance.
    shape, dtype : tuple of int, dtype
        Of `x`.
    channel_axis : int
        Which axis of `x` has the channels, from 0.
    batch_statistics : bool
        Whether the statistics are the batch's; False where they were given.
    """

    __slots__ = (
        "_device", "_dtype_name", "_of_group", "_statistics", "batch_statistics", "channel_axis",
        "count", "dtype", "eps", "shape",
    )  # fmt: skip

    def __init__(
        self,
        statistics: Any,
        device: str,
        *,
        count: int,
        eps: float,
        shape: tuple[int, ...],
        dtype: Any,
        dtype_name: str,
        channel_axis: int,
        batch_statistics: bool,
        of_group: _core.Saved | None = None,
    ) -> None:
        self._statistics = statistics  # rows as in bnext.rows
        self._of_group = of_group  # the same statistics on the host, where a group merged them
        self._device = device
        self._dtype_name = dtype_name
        self.count = count
        self.eps = eps
        self.shape = shape
        self.dtype = dtype
        self.channel_axis = channel_axis
        self.batch_statistics = batch_statistics

    @property
    def rows(self) -> Any:
        """All statistics, shape (5, C): mean, m2, var, rstd, mean_low."""
        return self._statistics

    @property
    def mean(self) -> Any:
        """Mean of each channel."""
        return self._statistics[ROW.mean, :]

    @property
    def m2(self) -> Any:
        """Sum of squared deviations from the mean; NaN where the statistics were given."""
        return self._statistics[ROW.m2, :]

    @property
    def var(self) -> Any:
        """Biased variance of each channel."""
        return self._statistics[ROW.var, :]

    @property
    def rstd(self) -> Any:
        """``1 / sqrt(var + eps)`` of each channel."""
        return self._statistics[ROW.rstd, :]

    @property
    def mean_low(self) -> Any:
        """Low part of the mean: the exact mean is ``mean + mean_low``."""
        return self._statistics[ROW.mean_low, :]

    def __repr__(self) -> str:
        return (
            f"<bnext.DeviceSaved of a {self._dtype_name} input of shape {self.shape} "
            f"on {self._device}>"
        )
