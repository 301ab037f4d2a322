"""Group normalization, with the arguments of ``torch.nn.GroupNorm``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bnext.arguments import index_of
from bnext.estimators import Exponential
from bnext.groups.group import Group
from bnext.layers.cells import CellNormalization
from bnext.running import Running

__all__ = ["GroupNorm"]


class GroupNorm(CellNormalization):
    """Group normalization: of each example, by the statistics of every group of its channels.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with mean and biased variance over the
    values of a group of channels of an example (Wu and He 2018, section 3), in every mode; with an
    activation and a residual of the call, ``act(y + residual)``.

    Parameters
    ----------
    num_groups : int
        Groups that the channels are divided into, neighbours together.
    num_channels : int
        Channels C of the input; a multiple of `num_groups`.
    eps : float
        Added to the variance, in the square of the unit of the input.
    affine : bool
        Whether the layer has `weight` and `bias`.
    channel_axis : int
        Which axis of the input has the channels: 1 for NCHW, -1 for NHWC. Axis 0 has the examples.
    dtype : dtype
        float32 or float64: of the parameters. The input has it as well; a float32 layer also takes
        float16 and bfloat16, and answers with what it was given.
    activation : str, optional
        What is applied to the result, in the same pass; `bnext.batch_norm_forward` has the names.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    group : bnext.sync.Group, optional
        Members that hold the positions of the same examples together, as
        `bnext.group_norm_forward` has it.
    parameter_gradients : {"local", "total"}
        In a group: whether `weight_grad` and `bias_grad` are sums over the member's positions or
        over the positions of all members. If all members share the layer, they are the total.

    Attributes
    ----------
    weight, bias : array, shape (C,), or None
        Parameters, initially 1 and 0.
    weight_grad, bias_grad : array, shape (C,), or None
        Set by `backward`; each call replaces them.
    training : bool
        True after construction and `train`, False after `eval`; it changes nothing.
    train_affine : bool
        Whether `backward` computes the gradients of `weight` and `bias`.
    activation, negative_slope
        As they were given; may be replaced at any time. A backward call goes by what its forward
        call applied.

    Raises
    ------
    ValueError
        `num_channels` is negative or no multiple of `num_groups`, `num_groups` is not positive,
        `eps` is negative or not finite, `activation` is not one of the names.
    TypeError
        `dtype` is not float32 or float64, an argument is not a number, or `activation` is not a
        string.
    """

    version = 1
    track_running_stats: bool = False

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        channel_axis: int = 1,
        dtype: npt.DTypeLike = np.float32,
        activation: str | None = None,
        negative_slope: float = 0.01,
        group: Group | None = None,
        parameter_gradients: str = "local",
    ) -> None:
        super().__init__(
            num_channels, eps, affine, channel_axis, dtype, activation, negative_slope, group,
            parameter_gradients,
        )  # fmt: skip
        self.num_groups: int = index_of(num_groups, "num_groups")
        if self.num_groups < 1:
            raise ValueError(f"num_groups: expected an integer >= 1, got {num_groups}")
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.running: Running = Running.new(0, Exponential(), self.dtype, tracked=False)

    @property
    def num_channels(self) -> int:
        """Channels of the input."""
        return self.num_features

    def __repr__(self) -> str:
        """As PyTorch prints it, with `channel_axis` and `dtype` where they are not the default."""
        return (
            f"GroupNorm({self.num_groups}, {self.num_channels}, eps={self.eps}, "
            f"affine={self.affine}{self._options()})"
        )
