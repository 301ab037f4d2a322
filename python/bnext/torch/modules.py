"""`torch.nn.BatchNorm1d/2d/3d` over bnext's kernels."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, is_grad_enabled
from torch.nn.modules.batchnorm import _BatchNorm

from bnext import _core
from bnext.docstrings import with_sections_of
from bnext.torch import kernels
from bnext.torch.context import is_compiling, is_traced_by_dynamo, is_watched
from bnext.torch.epilogues import Epilogue, made
from bnext.torch.functional import (
    activated_batch_norm,
    counted_batch_norm,
    weight_of_batch,
)
from bnext.torch.ghosts import Ghosts, set_ghosts
from bnext.torch.jagged import is_jagged, of_jagged
from bnext.torch.kernel_module import KernelModule
from bnext.torch.masked import masked_batch_norm, weighting_of_tensors
from bnext.torch.recomputation import note
from bnext.torch.skipping import SKIPPED, guarded, set_skipping
from bnext.weighting import check_positions, names_positions

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Forward"]


class Forward(KernelModule, _BatchNorm):
    """The forward pass of PyTorch's layers, with its kernels exchanged.

    It differs in two ways: a call that ends in an error has not been counted, and one that autograd
    repeats (activation checkpointing) is not counted again.
    """

    # Of most layers; another layer has an attribute of its own.
    _recompute = False
    _special: Any = None  # called in place of normalizing by the batch or by running statistics
    _acts = False  # whether modules that follow by its form are an activation alone
    takes_ghosts = True  # what a group normalizes is one batch

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        recompute: bool = False,
        ghost_batch_size: int | None = None,
        skip_nonfinite: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **more
        )
        _core.check_activation(activation=activation)
        slope = _core.check_negative_slope(negative_slope=negative_slope)
        if activation is not None:
            self._activation = activation, slope
        if recompute:
            self._recompute = True
        if ghost_batch_size is not None:
            self.ghost_batch_size = ghost_batch_size
        if skip_nonfinite:
            self.skip_nonfinite = True

    @property
    def ghost_batch_size(self) -> int | None:
        """Examples that are normalized together in training; None: the batch."""
        special = self._special
        return special.size if isinstance(special, Ghosts) else None

    @ghost_batch_size.setter
    def ghost_batch_size(self, value: int | None) -> None:
        set_ghosts(self, value)

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a batch that is not finite leaves the running statistics alone."""
        return SKIPPED in self._buffers

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        set_skipping(self, bool(value))

    @property
    def num_batches_skipped(self) -> Tensor | None:
        """How many batches were not finite, shape (); None without `skip_nonfinite`."""
        return self._buffers.get(SKIPPED)

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the counters to 0."""
        super().reset_running_stats()
        if (skipped := self._buffers.get(SKIPPED)) is not None:
            skipped.zero_()

    @names_positions
    def forward(self, input: Tensor, residual: Tensor | None = None, **positions: Any) -> Tensor:
        """Normalize `input`, as PyTorch's layer does; add `residual`, apply the activation.

        `mask`, `sample_weight`, `lengths` and `offsets` say which positions count, as
        `bnext.batch_norm_forward` has them, and `masked` what the others get; on the CPU. Of a
        nested tensor of jagged layout, shape (B, *, C, ...) or (B, C, *), the values of all
        examples are the batch; the result has its offsets.
        """
        if type(input) is not Tensor and is_jagged(input):
            return of_jagged(self, input, residual, positions)
        if positions:
            of = self, input, residual, positions
            if is_compiling():  # no part of a graph
                y: Tensor = torch._dynamo.disable(Forward._of_what_counts)(*of)
                return y
            return Forward._of_what_counts(*of)
        if (
            type(input) is not Tensor
            and isinstance(input, torch.fx.Proxy)
            and self._is_one_node(input)
        ):
            return self._node(input, residual)
        if is_traced_by_dynamo():
            return self._traced(input, residual)
        # The layer's own attributes: to look at its class as well takes twice as long.
        epilogue, own = None, self.__dict__
        if residual is not None or "_activation" in own:
            epilogue = made((residual, *self._activation))
        special = "_special" in own
        if "_recompute" in own:
            return note(self._normalized(input, epilogue, special), input, residual)
        return self._normalized(input, epilogue, special)

    def _traced(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """Do what `forward` does with a plain call, for Dynamo.

        Compiled code does not check that a name is missing in ``__dict__`` (PyTorch 2.13.0): it
        would run for a layer that has it. It checks attributes.
        """
        epilogue = None
        if residual is not None or self._activation[0] is not None:
            epilogue = made((residual, *self._activation))
        if self._recompute:
            return note(self._normalized(input, epilogue), input, residual)
        return self._normalized(input, epilogue)

    def _of_what_counts(
        self, input: Tensor, residual: Tensor | None, positions: dict[str, Any]
    ) -> Tensor:
        with self._announcing():
            self._check_input_dim(input)
            check_positions(Forward.forward, positions)
            weighting = weighting_of_tensors(input, **positions)
            if weighting is not None and self._is_special():
                raise ValueError(
                    f"{weighting[3]}: expected None for a layer that normalizes by ghosts, "
                    "renormalizes or adapts, got one"
                )
        if weighting is None:
            return self.forward(input, residual)
        return self._weighted(input, weighting, Epilogue(residual, *self._activation))

    def _is_special(self) -> bool:
        """Whether calls do something else in place of normalizing by the batch."""
        special = self._special
        if isinstance(special, Ghosts) and self.takes_ghosts:
            return self.training
        return special is not None

    def _announcing(self) -> Any:
        """Give the context of checks, which others may wait for."""
        return contextlib.nullcontext()

    def _weighted(self, input: Tensor, weighting: Any, epilogue: Epilogue) -> Tensor:
        """Normalize by what counts, and do what follows."""
        mean, var, counter = self.running_mean, self.running_var, self.num_batches_tracked
        by_batch = self.training or (mean is None and var is None)
        if by_batch and not (self.training and self.track_running_stats):
            mean = var = counter = None
        momentum = weight_of_batch(counter) if self.momentum is None else self.momentum

        def call(mean: Tensor | None, var: Tensor | None, counter: Tensor | None) -> Tensor:
            running = mean, var, momentum, counter
            return masked_batch_norm(
                input, running, self.weight, self.bias, by_batch, self.eps, weighting, epilogue
            )[0]

        skipped = self.num_batches_skipped
        if skipped is None or not by_batch or mean is None or var is None or counter is None:
            return call(mean, var, counter)
        return guarded(call, mean, var, counter, skipped)

    def _normalized(
        self, input: Tensor, epilogue: Epilogue | None, special: bool | None = None,
        over: bool = False,
    ) -> Tensor:  # fmt: skip
        """Normalize `input`, and do what follows; or what a special layer does in its place.

        `special`: whether it is a special layer, if that is known. With `over`, evaluation without
        gradients may write the result over `input`.
        """
        of = self.__dict__
        if special is None:
            special = self._special is not None
        if special:
            refuse_proxy(input, "ghost_batch_size")
            y: Tensor = self._special(self, input, epilogue)
            return y
        if type(input) is Tensor or not isinstance(input, torch.fx.Proxy):
            self._check_input_dim(input)
        if not (of["training"] or is_grad_enabled() or is_watched()) and type(input) is Tensor:
            known: Tensor | None = kernels.evaluate_layer(self, input, epilogue, over)
            if known is not None:
                return known
        # Not as attributes: PyTorch looks up each of these by a function in Python.
        parameters, buffers = of["_parameters"], of["_buffers"]
        try:
            weight, bias = parameters["weight"], parameters["bias"]
            running_mean, running_var = buffers["running_mean"], buffers["running_var"]
            counter = buffers["num_batches_tracked"]
        except KeyError:  # a parametrization computes it, say
            weight, bias = self.weight, self.bias
            running_mean, running_var = self.running_mean, self.running_var
            counter = self.num_batches_tracked
        by_batch = of["training"]
        if not by_batch:
            by_batch = running_mean is None and running_var is None
            counter = None
        elif not of["track_running_stats"]:
            running_mean = running_var = counter = None
        if SKIPPED in buffers and counter is not None:
            refuse_proxy(input, "skip_nonfinite")
            call = partial(_call, input, weight, bias, of["momentum"], of["eps"], epilogue)
            return guarded(call, running_mean, running_var, counter, buffers[SKIPPED])
        if epilogue is not None:
            return activated_batch_norm(
                input, running_mean, running_var, weight, bias, by_batch, of["momentum"], of["eps"],
                counter, epilogue,
            )  # fmt: skip
        return counted_batch_norm(
            input, running_mean, running_var, weight, bias, by_batch, of["momentum"], of["eps"],
            counter,
        )  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode, or with ``mode=False`` to evaluation; a frozen layer stays."""
        super().train(mode and "_frozen" not in self.__dict__)  # as `bnext.torch.freeze` has it
        return self

    def _forward_of_graphs(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Have the inputs that a graph of the layer alone has: no masks, which no graph takes."""
        raise NotImplementedError

    # Types and not strings: torch.fx has them in a graph of a layer alone, and pickles them.
    _forward_of_graphs.__annotations__.update(
        {"input": Tensor, "residual": Optional[Tensor], "return": Tensor}  # noqa: UP045
    )
    forward.__wrapped__ = _forward_of_graphs  # type: ignore[attr-defined]

    def _besides(self) -> str:
        text = ""
        activation, negative_slope = self._activation
        if activation is not None:
            text += f", activation={activation}"
        if activation == "leaky_relu":
            text += f", negative_slope={negative_slope}"
        if self._recompute:
            text += ", recompute=True"
        if self.ghost_batch_size is not None:
            text += f", ghost_batch_size={self.ghost_batch_size}"
        if self.skip_nonfinite:
            text += ", skip_nonfinite=True"
        return text


def refuse_proxy(input: Any, name: str) -> None:
    """TypeError for a layer whose calls are more than one node, which torch.fx traces by itself."""
    if type(input) is not Tensor and isinstance(input, torch.fx.Proxy):
        raise TypeError(
            f"input: expected a tensor, since a layer with {name} cannot be traced by itself, got "
            "a Proxy of torch.fx"
        )


def _call(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, momentum: Any, eps: float,
    epilogue: Epilogue | None, running_mean: Tensor, running_var: Tensor, counter: Tensor,
) -> Tensor:  # fmt: skip
    """Normalize by the batch, which moves the tensors given last."""
    of = input, running_mean, running_var, weight, bias, True, momentum, eps, counter
    return counted_batch_norm(*of) if epilogue is None else activated_batch_norm(*of, epilogue)


class BatchNorm1d(Forward, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, for input of shape (N, C) or (N, C, L).

    Parameters
    ----------
    num_features : int
        Channels C of the input.
    eps : float
        Added to the variance, in the square of the unit of the input.
    momentum : float or None
        Weight of the new batch in the running statistics; None keeps the cumulative average.
    affine : bool
        Whether the layer has `weight` and `bias`.
    track_running_stats : bool
        Whether the layer has running statistics.
    device : torch.device, optional
        Where the parameters and the running statistics are.
    dtype : torch.dtype, optional
        Of the parameters and the running statistics.
    activation : str, optional
        The function that is applied last: "relu", "relu6", "leaky_relu", "silu", "hardswish",
        "gelu", "gelu_tanh" (GELU's approximation), "sigmoid" or "tanh", as PyTorch defines them.
    negative_slope : float
        Slope of "leaky_relu" below 0; other activations ignore it.
    recompute : bool
        Whether autograd keeps the output for operations behind the layer, or has it made again in
        the backward pass, with the same bits: for calls in `bnext.torch.recomputing`, on the CPU.
    ghost_batch_size : int, optional
        Examples in a ghost batch: in training, consecutive ghosts of a batch are normalized each by
        its own statistics, and move the running ones and the counter one after the other as batches
        do (Hoffer, Hubara and Soudry 2017, algorithm 1). The last ghost has what remains; if that
        is one value per channel, it is joined to the ghost before. May be set at any time. Not for
        `SyncBatchNorm`.
    skip_nonfinite : bool
        Whether a training batch that would make a running statistic infinite or NaN, in any
        channel, leaves all of them and `num_batches_tracked` alone and is counted in
        `num_batches_skipped`, a buffer that state dicts do not have. Its output is the same either
        way. May be set at any time.
    bias : bool
        Whether an affine layer has `bias`; where PyTorch's layer has this argument.

    Raises
    ------
    ValueError
        `activation` is not one of the names, `negative_slope` is not finite, or `skip_nonfinite`
        is given for a layer without running statistics.
    TypeError
        `activation` is not a string, or `negative_slope` not a number.

    Notes
    -----
    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel (Ioffe and Szegedy 2015,
    algorithm 1), by bnext's kernels. ``layer(x, residual=r)`` gives ``act(y + r)``, in the
    same pass over memory for a residual of the shape and dtype of `x`. ``layer(x, mask=m)``,
    ``sample_weight=`` and ``lengths=`` say which positions count, and ``masked=`` what the others
    get, as `bnext.batch_norm_forward` has them: on the CPU, and for gradients of the first order.

    State dicts, hooks, modes and errors are PyTorch's.
    """


@with_sections_of(BatchNorm1d)
class BatchNorm2d(Forward, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, for input of shape (N, C, H, W)."""


@with_sections_of(BatchNorm1d)
class BatchNorm3d(Forward, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, for input of shape (N, C, D, H, W)."""
