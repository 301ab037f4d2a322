"""Print the error of many wrong calls, one a line: every function, argument and library.

Two builds agree if their lines do (`diff`). Run it with the build's python on PYTHONPATH.
"""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import bnext
from bnext import _core
from bnext.arrays import engine_of

F4 = np.float32
SHAPE = (4, 3, 2)


class Small:
    """An array of a library that has DLPack and nothing else."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        return _core.Exported(self.values).__dlpack__(max_version=(1, 0))

    def __array_namespace__(self) -> Any:
        return SMALL


def _from_dlpack(producer: Any) -> Any:
    return Small(_core.from_dlpack(producer.__dlpack__(max_version=(1, 0))))


SMALL = types.SimpleNamespace(__name__="small", from_dlpack=_from_dlpack)


def libraries() -> dict[str, Callable[[Any], Any]]:
    """Give what makes an array of each library that is installed."""
    found: dict[str, Callable[[Any], Any]] = {"numpy": np.array, "small": Small}
    try:
        import torch

        found["torch"] = lambda values: torch.tensor(np.asarray(values))
    except ImportError:
        pass
    try:
        import jax

        found["jax"] = jax.numpy.array
    except ImportError:
        pass
    return found


def wrong_arrays(right: Any, make: dict[str, Callable[[Any], Any]]) -> Iterator[tuple[str, Any]]:
    """Name what may stand where an array like `right` should."""
    yield from {"none": None, "number": 3, "text": "abc", "list": [1.0], "object": object()}.items()
    for dtype in ("int64", "float16", "float64", ">f4", "complex64", "bool", "object"):
        yield dtype, right.astype(dtype)
    yield "shorter", right[:-1].copy()
    yield "deeper", right[..., None].copy()
    yield "scalar", F4(1)
    yield "empty", np.zeros((0, *right.shape[1:]), right.dtype)
    yield "masked", np.ma.MaskedArray(right, mask=False)
    yield "list of masked", list(np.ma.MaskedArray(right, mask=False))
    yield "two", np.ones(2, right.dtype)
    read_only = right.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    memory = np.zeros(right.nbytes + 1, np.uint8)[1:]
    yield "unaligned", memory.view(right.dtype).reshape(right.shape)
    yield "broadcast", np.broadcast_to(right[:1], right.shape)
    one = np.lib.stride_tricks.as_strided(right.copy(), right.shape, (0,) * right.ndim)
    yield "one element", one
    yield "backwards", right[::-1]
    yield "itself", right
    for name, of in make.items():
        yield name, of(right)
        yield f"{name} int32", of(right.astype(np.int32))
        yield f"{name} shorter", of(right[:-1])
        yield f"{name} scalar", of(F4(1))
    if "torch" in make:
        import torch

        tensor = torch.tensor(np.array(right))
        yield "gradient", tensor.clone().requires_grad_()
        yield "parameter", torch.nn.Parameter(tensor.clone())
        yield "meta", tensor.to("meta")
        yield "sparse", tensor.to_sparse()
        yield "negative", torch.complex(tensor, tensor).conj().imag
        yield "expanded", tensor[:1].expand(tensor.shape)
        yield "double", tensor.double()
        yield "zeros", torch._efficientzerotensor(tensor.shape)
        yield "shared", torch.from_numpy(right)
        with torch.inference_mode():
            yield "inference", tensor.clone()
    if "jax" in make:
        import jax

        deleted = jax.numpy.array(right)
        deleted.delete()
        yield "deleted", deleted


def world(of: Callable[[Any], Any]) -> dict[str, Any]:
    """Give right arguments of every call."""
    x, dy = np.random.default_rng(5).normal(size=(2, *SHAPE)).astype(F4)
    ones, many = np.ones(3, F4), np.ones(3)
    return {
        "x": x, "dy": dy, "out": np.full(SHAPE, 7, F4), "weight": ones, "bias": ones + 1,
        "mean": ones + 2, "var": ones + 3, "running_mean": ones + 4, "running_var": ones + 5,
        "m2": many, "sum_dy": many, "sum_dy_xmu": many, "rows": np.ones((4, 3)), "count": 8,
        "momentum": 0.1, "num_batches_tracked": np.zeros((), np.int64), "eps": 1e-5,
        "channel_axis": 1, "saved": engine_of(of(x)).forward(
            of(x), eps=1e-5, channel_axis=1, **dict.fromkeys(FORWARD[1:7] + FORWARD[9:]))[1],
        "given": engine_of(of(x)).normalize_by_running(
            of(x), of(ones), of(ones), None, None, 1e-5, 1, None)[1],
    }  # fmt: skip


FORWARD = (
    "x", "weight", "bias", "running_mean", "running_var", "momentum", "num_batches_tracked", "eps",
    "channel_axis", "out",
)  # fmt: skip
CALLS = {
    "forward": FORWARD,
    "normalize": ("x", "mean", "var", "weight", "bias", "eps", "channel_axis", "out"),
    "normalize_by_running": (
        "x", "running_mean", "running_var", "weight", "bias", "eps", "channel_axis", "out"
    ),
    "backward": ("dy", "x", "saved", "weight", "out"),
    "backward_constant": ("dy", "given", "weight", "out"),
    "moments": ("x", "channel_axis"),
    "restored": ("x", "rows", "eps", "channel_axis"),
    "collect_stats": FORWARD,
    "apply_norm": (
        "x", "count", "mean", "mean_low", "m2", "weight", "bias", "eps", "channel_axis", "out"
    ),
    "move_running": ("saved", "running_mean", "running_var", "momentum", "num_batches_tracked"),
    "backward_reduce": ("dy", "x", "saved", "weight", "out"),
    "backward_apply": ("dy", "x", "saved", "weight", "sum_dy", "sum_dy_xmu", "count", "out"),
    "parameter_gradients": ("saved", "weight", "sum_dy", "sum_dy_xmu"),
}  # fmt: skip
ARRAYS = (
    "x", "dy", "out", "weight", "bias", "mean", "var", "running_mean", "running_var", "m2",
    "sum_dy", "sum_dy_xmu", "rows",
)  # fmt: skip
OTHERS: dict[str, tuple[Any, ...]] = {
    "eps": (None, "small", -1, -2.5e-7, float("nan"), float("inf"), 1j, np.float32(-1), -1e20),
    "momentum": (None, "small", float("nan"), float("inf"), 1j),
    "channel_axis": (None, 1.0, 3, -4, 2**80, True, np.int8(7)),
    "num_batches_tracked": (
        1, np.zeros(1, np.int64), np.zeros((), np.int32), np.array(-1), np.array(2**63 - 1),
        np.ma.MaskedArray(0), np.zeros((), ">i8"),
    ),
    "count": ("many",),
}  # fmt: skip


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Say what comes of a call."""
    try:
        result = function(**arguments)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    kinds = result if isinstance(result, tuple) else (result,)
    return " ".join(f"{type(each).__module__.partition('.')[0]}.{type(each).__name__}"
                    for each in kinds)  # fmt: skip


def right_call(name: str, of: Callable[[Any], Any], immutable: bool) -> dict[str, Any]:
    """Give right arguments of a call, its arrays of a library where that is allowed."""
    right = world(of)
    if name == "apply_norm":
        right["mean"] = np.ones(3)
    ours = {"m2", "sum_dy", "sum_dy_xmu", "running_mean", "running_var"}
    ours |= {"mean"} if name == "apply_norm" else set()
    for argument in set(ARRAYS) - ours:
        right[argument] = of(right[argument])
    if immutable:
        right["out"] = None
    right["mean_low"] = None
    return {argument: right[argument] for argument in CALLS[name]}


def wrong_values(argument: str, name: str, make: dict[str, Callable[[Any], Any]]) -> Any:
    """Pair what may be given for an argument with its name."""
    if argument in OTHERS:
        return [(repr(value), value) for value in OTHERS[argument]]
    if argument in ARRAYS:
        right = world(np.array)[argument]
        if name == "apply_norm" and argument == "mean":
            right = right.astype(np.float64)
        return list(wrong_arrays(right, make))
    if argument == "mean_low":
        return []
    other = world(np.array)
    return [("none", None), ("given", other["given"]), ("saved", other["saved"])]


def lines() -> Iterator[str]:
    """Give a line for each call."""
    make = libraries()
    for library, of in make.items():
        for name, parameters in CALLS.items():
            for argument in parameters:
                for kind, value in wrong_values(argument, name, make):
                    given = right_call(name, of, library == "jax") | {argument: value}
                    if "given" in given:
                        given["saved"] = given.pop("given")

                    def call(name: str = name, of: Any = of, **arguments: Any) -> Any:
                        leading = arguments.get("x", arguments.get("dy", of(F4(0))))
                        return getattr(engine_of(leading), name)(**arguments)

                    yield f"{library} {name} {argument}={kind} -> {outcome(call, given)}"
        layer_inputs = wrong_arrays(np.ones(SHAPE, F4), make)
        for kind, x in layer_inputs:
            for training in (True, False):
                layer = bnext.BatchNorm1d(3).train(training)
                yield f"{library} layer training={training} {kind} -> {outcome(layer, {'x': x})}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in lines():
        sys.stdout.write(re.sub(r"0x[0-9a-f]+", "ADDRESS", line) + "\n")
