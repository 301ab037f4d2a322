"""Calls in programs for CUDA: which of them have handlers, and how.

On a GPU the kernels keep no flags, and take scratch memory, which a program gives them as a result
that it throws away. The rest of `bnext.jax` does not know: a call has the arguments and the results
that it has on the CPU. XLA makes flags from y. A backward pass by flags is XLA's dy times a slope,
and the kernels' backward pass of that. Both are elementwise, so XLA fuses them with neighbours, and
the residual need not be kept. csrc/README.md has the traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from bnext import cuda

__all__ = ["call", "register", "workspace"]

Arrays = Mapping[str, Any]
Structs = Mapping[str, tuple[tuple[int, ...], Any]]
# From a target, arguments, results and attributes to the results.
Invoke = Callable[[str, Arrays, Structs, Mapping[str, Any]], Sequence[Any]]

HOW = (
    "pip install --force-reinstall --no-deps . "
    "-C cmake.define.BNEXT_CUDA=ON -C cmake.define.BNEXT_XLA=ON"
)
_missing = ""  # why there are no handlers; empty where there are


def register() -> None:
    """Tell XLA the handlers for CUDA, if this build has them."""
    global _missing
    try:
        targets = cuda._load().foreign_targets()
    except ImportError as error:
        _missing = str(error)
        return
    if targets is None:
        _missing = "the CUDA kernels were built where no headers of jaxlib's were"
        return
    for name, stages in targets.items():
        jax.ffi.register_ffi_target(name, stages, platform="CUDA")


def call(
    invoke: Invoke, name: str, arguments: Arrays, results: Structs, attributes: Mapping[str, Any]
) -> Sequence[Any]:
    """Compute the results of the CPU's handler `name` in a program for CUDA.

    Parameters
    ----------
    invoke : callable
        Calls a target, with arrays and descriptions of results by their names.
    name : str
        Of the handler.
    arguments, results, attributes : mapping
        As for the CPU.
    """
    operation = OPERATIONS.get(name)
    first, *_ = arguments
    weighted = "counts" in arguments or "weights" in arguments
    if operation is None or weighted:
        what = "positions with weights" if weighted else name
        arguments = {**arguments, first: _guard(arguments[first], refused=what)}
        return invoke(f"bnext_{name}", arguments, results, attributes)
    arguments = {**arguments, first: _guard(arguments[first])}
    found = operation(invoke, f"bnext_gpu_{name}", arguments, results, attributes)
    return [found[each] for each in results]


# --- refusals -------------------------------------------------------------------------------------

_guard_p = Primitive("bnext_guard")
_guard_p.def_abstract_eval(lambda x, **_: x)
batching.primitive_batchers[_guard_p] = lambda arrays, axes, **how: (
    _guard_p.bind(*arrays, **how),
    axes[0],
)


def _guard(x: Any, refused: str = "") -> Any:
    """Give x; fail where a program is made that cannot run."""
    return _guard_p.bind(x, refused=refused)


def _lower_guard(context: Any, x: Any, *, refused: str) -> list[Any]:
    """Raise where a program for CUDA is made.

    A machine without a GPU may export a program, so the absence of handlers is an error only where
    the process has a GPU.
    """
    del context
    if refused:
        raise NotImplementedError(
            f"bnext.jax: expected a call that has kernels on a GPU (batch_norm and normalize, on "
            f"one device, without mask, lengths and sample_weight), got one that has none: "
            f"{refused}; on the CPU it has"
        )
    if _missing and _has_a_gpu():
        raise RuntimeError(
            f"bnext.jax: expected a build with foreign functions for CUDA, got one without: "
            f"{_missing}. With nvcc and jax installed, build again: {HOW}"
        )
    return [x]


mlir.register_lowering(_guard_p, _lower_guard, platform="cuda")
# A program that is exported for several platforms has this branch on the others too, unused.
mlir.register_lowering(_guard_p, lambda _, x, **__: [x])


def _has_a_gpu() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


# --- operations -----------------------------------------------------------------------------------


def _first(arguments: Arrays) -> Any:
    """Give the array that all calls have first, x."""
    return next(iter(arguments.values()))


def workspace(x: Any, channel_axis: int) -> tuple[tuple[int], Any]:
    """Describe the scratch memory of a call, as a result of it.

    It holds a few numbers for each channel, and sums (32 bytes) of each part that a block has of
    each channel: for two kernels at most 8 parts a multiprocessor of planes, and 2 of 64 channels
    side by side (csrc/cuda/plan.cpp), of which there is room for 256 multiprocessors. Blocks that
    wait for each other have parts of what their shared memory holds, so that their sums are a share
    of x, the larger the more channels lie side by side. A call that finds too little room runs as
    two kernels: what a program is made for need not be the device that it runs on.
    """
    channels, item = x.shape[channel_axis], x.dtype.itemsize
    last = math.prod(x.shape[channel_axis + 1 :]) == 1
    share = math.prod(x.shape) * item // (2 * item if last else 64)
    room = 32 * (2 * channels + 256 * 2 * 64) + 64 * channels + share
    return (-(-room // 256) * 256 + 2048,), jnp.uint8


def _forward(
    invoke: Invoke, target: str, arguments: Arrays, results: Structs, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute y, and flags from it: y says on which side of a kink z was, up to its rounding."""
    x = _first(arguments)
    wanted = {name: each for name, each in results.items() if name != "flags"}
    wanted["workspace"] = workspace(x, int(attributes["channel_axis"]))
    slope = float(attributes["negative_slope"])
    # y of a negative slope does not say it: there XLA applies the activation.
    folds = "flags" in results and attributes["activation"] == "leaky_relu" and slope < 0
    given = {**attributes, "activation": "none"} if folds else attributes
    found = dict(zip(wanted, invoke(target, arguments, wanted, given), strict=True))
    if "flags" in results:
        y = found["y"]
        (words,), _ = results["flags"]
        found["flags"] = _packed(_passes(attributes["activation"], y), words)
        if folds:
            found["y"] = jnp.where(y > 0, y, (y * slope).astype(y.dtype))
    return found


def _backward(
    invoke: Invoke, target: str, arguments: Arrays, results: Structs, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    x = _first(arguments)
    wanted = {**results, "workspace": workspace(x, int(attributes["channel_axis"]))}
    flags = arguments.get("flags")
    if flags is None:
        return dict(zip(wanted, invoke(target, arguments, wanted, attributes), strict=True))
    dy, leaky = arguments["dy"], attributes["activation"] == "leaky_relu"
    other = dy * attributes["negative_slope"].astype(dy.dtype) if leaky else jnp.zeros_like(dy)
    g = jnp.where(_unpacked(flags, dy.shape), dy, other)
    inputs = {name: each for name, each in arguments.items() if name != "flags"} | {"dy": g}
    wanted.pop("dresidual", None)
    given = {**attributes, "activation": "none", "residual": False}
    found = dict(zip(wanted, invoke(target, inputs, wanted, given), strict=True))
    return {**found, "dresidual": g}


OPERATIONS = {
    "forward": _forward, "normalize": _forward, "backward": _backward, "backward_given": _backward,
}  # fmt: skip


# --- flags ----------------------------------------------------------------------------------------


def _passes(activation: str, y: Any) -> Any:
    """Tell where the derivative is 1, from y; at kinks, and for NaN, as the kernels do."""
    if activation == "leaky_relu":
        return y > 0
    above = ~(y <= 0)
    return above & ~(y >= 6) if activation == "relu6" else above


def _packed(ones: Any, words: int) -> Any:
    bits = jnp.pad(ones.reshape(-1), (0, words * 16 - ones.size)).reshape(-1, 16)
    return (bits.astype(jnp.uint16) << jnp.arange(16, dtype=jnp.uint16)).sum(1, dtype=jnp.uint16)


def _unpacked(flags: Any, shape: tuple[int, ...]) -> Any:
    bits = (flags[:, None] >> jnp.arange(16, dtype=flags.dtype)) & 1
    return bits.reshape(-1)[: math.prod(shape)].reshape(shape) != 0
